"""Videos -> features in the store.

kinema extract --config configs/ucf101.yaml
"""

import os
import time
from collections.abc import Iterator

from pipeline.base.device import resolve_device
from pipeline.base.errors import KinemaError
from pipeline.base.progress import progress
from pipeline.config import Config
from pipeline.data.clip import Clip
from pipeline.data.splits import load_dataset
from pipeline.features.backbone import Backbone
from pipeline.features.extraction import clip_features
from pipeline.features.store import FeatureStore
from pipeline.video.workers import Failure


def extract(config: Config, shard: tuple[int, int] = (1, 1), retry_failed: bool = False) -> None:
    """Computes and stores the features of every clip of a data set that are not there yet.

    Args:
        config: all settings.
        shard: (i, n) takes the i-th of n parts of the clips, for n machines with one store.
        retry_failed: try clips again that ended two processes before.

    Raises:
        KinemaError: the data set or the store cannot be used, or no clip at all could be read.
    """
    began = time.monotonic()
    device = resolve_device(config.device)
    part, parts = shard
    dataset = load_dataset(config.data)
    clips = dataset.clips[part - 1 :: parts]
    backbone = Backbone(config.backbone, device)
    store = FeatureStore.prepare(config.store, backbone, config.sampling, config.decode.min_readable)
    deadly = set() if retry_failed else store.ledger.given_up(clips)
    print(
        f"{len(clips)} clips, {len(dataset.classes)} classes, store {store.folder}; "
        f"{backbone.engine}, cosine to fp32 {backbone.choice.cosine:.4f}"
    )

    skipped = done = partial = frames = failed = given_up = 0
    with progress("extract", len(clips), "clips") as bar:

        def is_there(clip: Clip) -> bool:
            found = store.find(clip)
            if found and found.source.is_at(clip.path):
                return True
            try:
                return store.renew(clip)
            except KinemaError:
                if found:  # A store that cannot be written may still be read.
                    return True
                raise

        def todo() -> Iterator[Clip]:
            nonlocal skipped, given_up
            # Looked up one by one as their turn comes, so that what another process has done meanwhile is skipped too.
            for clip in clips:
                if is_there(clip):
                    skipped += 1
                elif clip.id in deadly:
                    given_up += 1
                else:
                    store.make_way(clip)
                    yield clip
                    continue
                bar.initial += 1  # Not counted in the rate.
                bar.update()

        for clip, outcome in clip_features(todo(), backbone, config.sampling, config.decode):
            left = len(clips) - skipped - given_up - done - failed
            if isinstance(outcome, Failure):
                store.record_failure(clip, outcome)
                failed += 1
            else:
                store.write(clip, outcome, backbone.engine, left)
                done += 1
                partial += len(outcome.indices) < outcome.planned
                frames += len(outcome.features)
            bar.set_postfix_str(f"{frames / bar.format_dict['elapsed']:.0f} frames/s", refresh=False)
            bar.update()
        elapsed = bar.format_dict["elapsed"]
    of_them = f" ({partial} partial)" if partial else ""
    rate = f", {frames / elapsed:.0f} frames/s" if done else ""
    spent = time.monotonic() - began
    print(f"extract: {done} done{of_them}, {skipped} skipped, {failed} failed{rate}, {spent:.0f} s")
    if given_up:
        print(f"not tried again: {given_up} clips that ended two processes before; --retry-failed tries them")
    if failed or given_up:
        print(f"failures: {os.path.relpath(store.ledger.path)}, grouped by kinema failures with the same settings")
    if (failed or given_up) and not done and not skipped:
        raise KinemaError(f"none of {len(clips)} clips could be read; the reasons are in {store.ledger.path}")
