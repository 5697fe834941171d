"""Which clips could not be read and why: for people, on demand.

kinema failures --config configs/ucf101.yaml
"""

import functools
import re
import shlex
from collections import defaultdict
from typing import Any

from pipeline.base.errors import ConfigError, printable
from pipeline.config import Config
from pipeline.data.clip import Clip
from pipeline.data.splits import load_dataset
from pipeline.features.store import FeatureStore
from pipeline.video.decode import decode_clip
from pipeline.video.timestamps import read_timestamps
from pipeline.video.workers import Failure, run_isolated


def show_failures(config: Config, arguments: list[str], clip_id: str | None) -> None:
    """Prints the clips that could not be read, grouped by reason, and those that could in part; or what each decoder
    says of one clip.

    Raises:
        ConfigError: the data set has no such clip.
    """
    clips = {clip.id: clip for clip in load_dataset(config.data).clips}
    if clip_id is not None:
        if clip_id not in clips:
            raise ConfigError(f"{printable(clip_id)}: no such clip in {config.data.lists or config.data.root}")
        _examine(clips[clip_id], config)
        return
    store = FeatureStore.last(config.store, config.backbone, config.sampling, config.decode.min_readable)
    headers = {name: store.find(clip) for name, clip in clips.items()}
    lines = [line for name, line in store.ledger.failures(clips.values()).items() if not headers[name]]
    print(f"{len(lines)} of {len(clips)} clips could not be read" + (f", see {store.ledger.path}" if lines else ""))
    _show_groups(lines, arguments)
    partial = {name: header for name, header in headers.items() if header and header.frames < header.planned}
    if partial:
        print(f"\n{len(partial)} clips are partial: damage left fewer frames than planned")
    for name, header in partial.items():
        print(f"    {printable(name)}: {header.frames} of {header.planned}")


def _show_groups(lines: list[dict[str, Any]], arguments: list[str]) -> None:
    groups = defaultdict(list)
    for line in sorted(lines, key=lambda line: line["clip"]):
        groups[re.sub(r"\d+(\.\d+)?", "#", line["reason"])].append(line)
    for kind, alike in sorted(groups.items(), key=lambda group: len(group[1]), reverse=True):
        tried = max(line["attempt"] for line in alike)
        last = max(line["time"] for line in alike)
        same = len({line["reason"] for line in alike}) == 1
        reason = printable(alike[0]["reason"] if same else kind)
        print(f"\n{len(alike)} x {reason} (tried {tried} times at most, last {last})")
        for line in alike[:3]:
            print(f"    {printable(line['clip'])}" + ("" if same else f": {printable(line['reason'])}"))
        if len(alike) > 3:
            print(f"    and {len(alike) - 3} more")
        look = "kinema", "failures", *arguments, f"--clip={alike[0]['clip']}"  # An id may begin with a hyphen.
        print(f"  look at one: {shlex.join(look)}")


def _examine(clip: Clip, config: Config) -> None:
    print(f"{printable(clip.path)}: {clip.path.stat().st_size} bytes")
    looks = {
        "container": functools.partial(_look_at_container, config=config),
        "decord": functools.partial(_look_at_frames, config=config, decoder="decord"),
        "pyav": functools.partial(_look_at_frames, config=config, decoder="pyav"),
    }
    for name, look in looks.items():
        for _, outcome in run_isolated(look, [clip], 1, config.decode.timeout, config.decode.memory_limit):
            print(f"  {name}: {printable(outcome.reason if isinstance(outcome, Failure) else outcome)}")


def _look_at_container(clip: Clip, config: Config) -> str:
    timeline = read_timestamps(clip.path, config.decode.max_pixels, config.decode.max_duration)
    times_N = timeline.times_N
    counted = ", without presentation times" if timeline.counted else ""
    return f"{timeline.present} of {len(times_N)} frames over {times_N[-1] - times_N[0]:.2f} s{counted}"


def _look_at_frames(clip: Clip, config: Config, decoder: str) -> str:
    decoded = decode_clip(clip.path, config.sampling.frames, clip.start, clip.end, config.decode, (decoder,))
    return f"{len(decoded.indices)} of {decoded.planned} frames, {decoded.frames.shape[2]}x{decoded.frames.shape[1]}"
