"""Compute the features of a data set and cache them.

kinema extract --config configs/ucf101.yaml
"""

import time
from collections import Counter, defaultdict
from collections.abc import Iterator

import joblib

from pipeline.base.device import resolve_device
from pipeline.base.errors import KinemaError
from pipeline.base.progress import progress
from pipeline.config import Config, DecodeConfig
from pipeline.data.clip import Clip, segment_of
from pipeline.data.splits import load_dataset
from pipeline.features.backbone import Backbone
from pipeline.features.extraction import clip_features
from pipeline.features.index import read_content
from pipeline.features.store import FeatureStore
from pipeline.video.workers import Failure, run_isolated


def extract(config: Config, shard: tuple[int, int] = (1, 1), retry_failed: bool = False) -> None:
    """Compute the missing features of a data set.

    Args:
        config: all settings.
        shard: (i, n) takes the i-th of n parts of the clips.
        retry_failed: try clips again that failed before.

    Raises:
        KinemaError: the data set or the store cannot be used, or no clip at all could be read.
    """
    began = time.monotonic()
    device = resolve_device(config.device)
    dataset = load_dataset(config.data)
    clips = dataset.clips[shard[0] - 1 :: shard[1]]
    backbone = Backbone(config.backbone, device)
    store = FeatureStore.prepare(config, backbone)
    print(f"{len(clips)} clips, {len(dataset.classes)} classes, store {store.folder}, {backbone.engine}")

    copies = _group_by_content(clips, store, config.decode)
    counts = _compute(copies, config, backbone, store, retry_failed)
    counts["failed"] += len(clips) - sum(map(len, copies.values()))  # Those that cannot even be hashed.
    partial = f" ({counts['partial']} partial)" if counts["partial"] else ""
    rate = f", {counts['frames'] / counts['seconds']:.0f} frames/s" if counts["done"] else ""
    print(
        f"extract: {counts['done']} done{partial}, {counts['skipped']} skipped, {counts['failed']} failed{rate}, "
        f"{time.monotonic() - began:.0f} s"
    )
    if counts["failed before"]:
        print(f"{counts['failed before']} of the skipped clips failed before. Use --retry-failed to try them again.")
    if failed := counts["failed"] + counts["failed before"]:
        print("Run `kinema failures` with the same settings for details.")
        if failed == len(clips):
            raise KinemaError(f"none of {len(clips)} clips could be read")


def _group_by_content(clips: list[Clip], store: FeatureStore, decode: DecodeConfig) -> dict[str, list[Clip]]:
    """Return the clips of each key, without those that cannot be read. Unknown files are hashed in worker processes."""
    unknown = {clip.path for clip in clips if not store.index.find(clip.path)}
    if unknown:
        with progress("hash", len(unknown), "files") as bar:
            workers = decode.workers or joblib.cpu_count()
            for path, outcome in run_isolated(read_content, sorted(unknown), workers, decode.timeout):
                if not isinstance(outcome, Failure):
                    store.index.add(path, outcome)
                bar.update()
    copies = defaultdict(list)
    for clip in clips:
        if sha256 := store.index.find(clip.path):
            copies[sha256 + segment_of(clip)].append(clip)
    return copies


def _compute(
    copies: dict[str, list[Clip]], config: Config, backbone: Backbone, store: FeatureStore, retry_failed: bool
) -> Counter[str]:
    """Compute the features that are missing, once per key.

    Returns:
        The numbers of clips by outcome, the number of frames, and the seconds.
    """
    counts: Counter[str] = Counter()
    key_of = {clips[0]: key for key, clips in copies.items()}
    pending = [*key_of]
    with progress("extract", sum(map(len, copies.values())), "clips") as bar:

        def todo(clips: list[Clip]) -> Iterator[Clip]:
            """Claim and yield the clips without features. Those that another process has claimed become pending."""
            for clip in clips:
                key = key_of[clip]
                if not store.claims.claim(key):
                    pending.append(clip)
                    continue
                found = store.find(clip)
                if not found and (retry_failed or not store.failures([clip])):
                    yield clip
                    continue
                store.claims.release(key)
                counts["skipped"] += len(copies[key])
                counts["failed before"] += 0 if found else len(copies[key])
                bar.initial += len(copies[key])  # Not counted in the rate.
                bar.update(len(copies[key]))

        while pending:
            clips, pending = pending, []
            for clip, outcome in clip_features(todo(clips), backbone, config.sampling, config.decode):
                key = key_of[clip]
                if isinstance(outcome, Failure):
                    store.record_failure(key, clip, outcome)
                    counts["failed"] += len(copies[key])
                elif store.index.find(clip.path) != key[:64]:  # Changed since it was hashed.
                    counts["failed"] += len(copies[key])
                else:
                    store.write(key, outcome, backbone.engine, left=bar.total - bar.n)
                    counts["done"] += 1
                    counts["skipped"] += len(copies[key]) - 1
                    counts["partial"] += len(outcome.indices) < outcome.planned
                    counts["frames"] += len(outcome.features)
                store.claims.release(key)
                bar.set_postfix_str(f"{counts['frames'] / bar.format_dict['elapsed']:.0f} frames/s", refresh=False)
                bar.update(len(copies[key]))
            if pending:
                bar.set_postfix_str("waiting for another process")
                time.sleep(0.5)
        counts["seconds"] = bar.format_dict["elapsed"]
    return counts
