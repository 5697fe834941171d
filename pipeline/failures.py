"""Show which clips could not be read and why: `kinema failures --config configs/ucf101.yaml`."""

import functools
import re
from collections import defaultdict

from pipeline.base.errors import ConfigError, command, printable
from pipeline.config import Config
from pipeline.data.clip import Clip
from pipeline.data.formats import read_clips
from pipeline.features.store import FeatureStore
from pipeline.video.decode import decode_clip
from pipeline.video.workers import Failure, run_isolated


def failures(config: Config, settings: list[str], clip_id: str | None) -> None:
    """Print failed and partial clips, or what each decoder reports for one clip. `settings` are the arguments
    that give the configuration."""
    clips, _, _ = read_clips(config.data)
    if clip_id is not None:
        if not (named := [clip for clip in clips if clip.id == clip_id]):
            raise ConfigError(f"{clip_id}: no such clip in {config.data.lists or config.data.root}")
        return _examine(named[0], config)
    store = FeatureStore.last(config)
    headers = {clip: store.find(clip) for clip in clips}
    failure_of = store.failures(clip for clip, header in headers.items() if not header)
    print(f"{len(failure_of)} of {len(clips)} clips could not be read")
    groups = defaultdict(list)  # By reasons without the numbers in them.
    for clip in sorted(failure_of, key=lambda clip: clip.id):
        groups[re.sub(r"\d+(\.\d+)?", "#", failure_of[clip].reason)].append(clip)
    for kind, failed in sorted(groups.items(), key=lambda group: -len(group[1])):
        reasons = {failure_of[clip].reason for clip in failed}
        print(f"\n{len(failed)} x {printable(reasons.pop() if len(reasons) == 1 else kind)}")
        for clip in failed[:3]:
            print(f"    {printable(clip.id)}" + (f": {printable(failure_of[clip].reason)}" if reasons else ""))
        print(f"  details of one: {command('failures', *settings, f'--clip={failed[0].id}')}")
    partial = {clip: header for clip, header in headers.items() if header and header.frames < header.planned}
    if partial:
        print(f"\n{len(partial)} clips are partial: damage left fewer frames than planned")
    for clip, header in partial.items():
        print(f"    {printable(clip.id)}: {header.frames} of {header.planned}")


def _examine(clip: Clip, config: Config) -> None:
    print(f"{printable(clip.path)}: {clip.path.stat().st_size} bytes")
    frames, rate, times = config.sampling.frames, config.sampling.rate, (clip.start, clip.end)
    decode = functools.partial(decode_clip, clip.path, frames, *times, config.decode, rate=rate)
    decoders, limits = (("decord",), ("pyav",)), (config.decode.timeout, config.decode.memory_limit)
    for (decoder,), outcome in run_isolated(decode, decoders, 1, *limits):
        if isinstance(outcome, Failure):
            print(f"  {decoder}: {printable(outcome.reason)}")
        else:
            height, width = outcome.frames.shape[1:3]
            print(f"  {decoder}: {len(outcome.indices)} of {outcome.planned} frames, {width}x{height}")
