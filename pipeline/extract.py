"""Videos -> features: decode in worker processes, transform, CNN in batches across clips, feature store.

kinema extract --config configs/ucf101.yaml
"""

import functools
import os
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import joblib
import numpy as np

from pipeline.backbone import Backbone
from pipeline.clip import Clip, Source
from pipeline.config import Config, DecodeConfig, SamplingConfig
from pipeline.data import load_dataset
from pipeline.decode import DecodedClip
from pipeline.device import resolve_device
from pipeline.entry import ClipFeatures
from pipeline.errors import KinemaError
from pipeline.frames import read_frames
from pipeline.progress import progress
from pipeline.store import FeatureStore
from pipeline.workers import Failure, run_isolated


def clip_features(
    clips: Iterable[Clip], backbone: Backbone, sampling: SamplingConfig, decode: DecodeConfig
) -> Iterator[tuple[Clip, ClipFeatures | Failure]]:
    """Turns clips into features; the one way for extraction and prediction.

    Frames of several clips go through the CNN together, so that its batches are full.

    Yields:
        (clip, features or failure), failures as they come, features in batches.
    """
    load = functools.partial(read_frames, sampling=sampling, decode=decode, transform=backbone.transform)
    outcomes = run_isolated(
        load,
        clips,
        decode.workers or joblib.cpu_count(),
        decode.deadline,
        decode.memory,
        fallback=functools.partial(load, decoders=("pyav",)),
    )
    waiting: list[tuple[Clip, DecodedClip, Source]] = []
    in_cnn: deque[Future] = deque()
    # The CNN works on one batch while the next is gathered here.
    with ThreadPoolExecutor(1) as thread:
        for clip, outcome in outcomes:
            if isinstance(outcome, Failure):
                yield clip, outcome
                continue
            waiting.append((clip, *outcome))
            if sum(len(decoded.frames) for _, decoded, _ in waiting) >= backbone.batch:
                in_cnn.append(thread.submit(_through_cnn, waiting, backbone))
                waiting = []
            if len(in_cnn) == 2:
                yield from in_cnn.popleft().result()
        if waiting:
            in_cnn.append(thread.submit(_through_cnn, waiting, backbone))
        for batch in in_cnn:
            yield from batch.result()


def _through_cnn(
    waiting: list[tuple[Clip, DecodedClip, Source]], backbone: Backbone
) -> list[tuple[Clip, ClipFeatures | Failure]]:
    features = backbone(np.concatenate([decoded.frames for _, decoded, _ in waiting]))
    bounds = np.cumsum([len(decoded.frames) for _, decoded, _ in waiting])[:-1]
    outcomes: list[tuple[Clip, ClipFeatures | Failure]] = []
    for (clip, decoded, source), features_TD in zip(waiting, np.split(features, bounds), strict=True):
        if np.isfinite(features_TD).all():
            outcomes.append((clip, ClipFeatures(features_TD, *decoded[1:], source)))
        else:
            remedy = "--backbone.view grid" if backbone.choice.precision == "fp32" else "--backbone.precision fp32"
            reason = f"features overflow in {backbone.engine}, or are too large for float16; try {remedy}"
            outcomes.append((clip, Failure(reason)))
    return outcomes


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
    store = FeatureStore.prepare(config.store, backbone, config.sampling, config.decode.partial)
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
