"""Compute the features of a data set and cache them: `kinema extract --config configs/ucf101.yaml`."""

import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

import joblib

from pipeline.base.device import resolve_device
from pipeline.base.errors import KinemaError, command
from pipeline.base.files import read_content
from pipeline.base.progress import progress
from pipeline.config import Config, DecodeConfig
from pipeline.data.clip import Clip, segment_of
from pipeline.data.formats import read_clips
from pipeline.features.backbone import Backbone
from pipeline.features.extraction import clip_features
from pipeline.features.store import FeatureStore
from pipeline.features.throughput import Throughput
from pipeline.video.workers import Failure, run_isolated


def extract(
    config: Config, settings: Sequence[str] = (), shard: tuple[int, int] = (1, 1), retry_failed: bool = False
) -> None:
    """Compute the missing features of a data set, or of its shard (i, n), the i-th of n parts.

    `settings` are the arguments that give the configuration, for the commands in messages."""
    began = time.monotonic()
    device = resolve_device(config.device)
    every, classes, _ = read_clips(config.data)
    clips = every[shard[0] - 1 :: shard[1]]
    backbone = Backbone(config.backbone, device)
    store = FeatureStore.prepare(config, backbone)
    print(f"{len(clips)} clips, {len(classes)} classes, store {store.folder}, {backbone.engine}")

    copies = _group_by_content(clips, store, config.decode)
    counts, curve = _compute(copies, config, backbone, store, retry_failed)
    counts["failed"] += len(clips) - sum(map(len, copies.values()))  # Those that cannot even be hashed.
    partial = f" ({counts['partial']} partial)" if counts["partial"] else ""
    rate = f", {counts['frames'] / counts['seconds']:.0f} frames/s" if counts["done"] else ""
    outcomes = f"{counts['done']} done{partial}, {counts['skipped']} skipped, {counts['failed']} failed"
    print(f"extract: {outcomes}{rate}, {time.monotonic() - began:.0f} s")
    if counts["done"]:
        numbers = {name: counts[name] for name in ("done", "partial", "failed", "frames", "seconds")}
        rates = {"frames_per_second": counts["frames"] / counts["seconds"], "engine": backbone.engine}
        totals = {f"extract/{name}": value for name, value in (numbers | rates).items()}
        store.note_extraction({**totals, "throughput": curve})
    if counts["failed before"]:
        print(f"{counts['failed before']} clips failed before and were not tried; --retry-failed tries them again.")
    if failed := counts["failed"]:
        print(f"Why they failed: {command('failures', *settings)}")
        if failed == len(clips):
            raise KinemaError(f"none of {len(clips)} clips could be read")


def _group_by_content(clips: list[Clip], store: FeatureStore, decode: DecodeConfig) -> dict[str, list[Clip]]:
    """Return the clips of each key, without those that cannot be read. Unknown files are hashed in worker processes."""
    if unknown := sorted({clip.path for clip in clips if not store.index.find(clip.path)}):
        hashing = run_isolated(read_content, unknown, decode.workers or joblib.cpu_count(), decode.timeout)
        for path, outcome in progress("hash", len(unknown), "files", hashing):
            if not isinstance(outcome, Failure):
                store.index.add(path, outcome)
    copies = defaultdict(list)
    for clip in clips:
        if sha256 := store.index.find(clip.path):
            copies[sha256 + segment_of(clip)].append(clip)
    return copies


def _compute(
    copies: dict, config: Config, backbone: Backbone, store: FeatureStore, retry_failed: bool
) -> tuple[Counter, list[dict[str, float]]]:
    """Compute the missing features, once per key; count clips by outcome, frames, and seconds. Also return the curve of
    the throughput."""
    counts: Counter[str] = Counter()
    throughput = Throughput(backbone.busy)
    key_of = {clips[0]: key for key, clips in copies.items()}
    pending = [*key_of]
    with progress("extract", sum(map(len, copies.values())), "clips") as bar:

        def todo(clips: list[Clip]) -> Iterator[Clip]:
            """Claim and yield the clips without features. Those that another process has claimed become pending."""
            for clip in clips:
                key = key_of[clip]
                if not store.claim(key):
                    pending.append(clip)
                    continue
                found = store.find(clip)
                if not found and (retry_failed or not store.failures([clip])):
                    yield clip
                    continue
                store.release(key)
                counts.update(dict.fromkeys(["skipped"] if found else ["failed", "failed before"], len(copies[key])))
                bar.initial += len(copies[key])  # Not counted in the rate.
                bar.update(len(copies[key]))

        while pending:
            clips, pending = pending, []
            for clip, outcome in clip_features(todo(clips), backbone, config.sampling, config.decode):
                key = key_of[clip]
                unchanged = store.index.find(clip.path) == key[:64]  # Since it was hashed.
                if unchanged and not isinstance(outcome, Failure):
                    store.write(key, outcome, backbone.engine)
                    partial = len(outcome.indices) < outcome.planned
                    counts.update(done=1, skipped=len(copies[key]) - 1, partial=partial, frames=len(outcome.indices))
                else:
                    counts["failed"] += len(copies[key])
                    if unchanged:
                        store.record_failure(key, clip, outcome)
                store.release(key)
                bar.update(len(copies[key]))
                throughput.update(bar.n / bar.total, counts["frames"], backbone.busy)
            if pending:  # Another process is at work on them.
                time.sleep(0.5)
        counts["seconds"] = bar.format_dict["elapsed"]
    return counts, throughput.curve()
