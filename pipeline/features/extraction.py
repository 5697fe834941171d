"""Clips -> features: decode in worker processes, transform, CNN in batches across clips."""

import functools
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import joblib
import numpy as np

from pipeline.config import DecodeConfig, SamplingConfig
from pipeline.data.clip import Clip, Source
from pipeline.features.backbone import Backbone
from pipeline.features.entry import ClipFeatures
from pipeline.video.decode import DecodedClip
from pipeline.video.transform import read_frames
from pipeline.video.workers import Failure, run_isolated


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
        decode.timeout,
        decode.memory_limit,
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
