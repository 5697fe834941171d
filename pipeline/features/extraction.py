"""Clips -> features: decode in worker processes, run the CNN in batches across clips."""

import functools
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing

import joblib
import numpy as np

from pipeline.config import DecodeConfig, SamplingConfig
from pipeline.data.clip import Clip
from pipeline.features.backbone import Backbone
from pipeline.features.entry import ClipFeatures
from pipeline.video.decode import DecodedClip
from pipeline.video.transform import read_frames
from pipeline.video.workers import Failure, run_isolated

Outcomes = Iterable[tuple[Clip, ClipFeatures | Failure]]


def clip_features(
    clips: Iterable[Clip], backbone: Backbone, sampling: SamplingConfig, decode: DecodeConfig
) -> Iterator[tuple[Clip, ClipFeatures | Failure]]:
    """Yield failures at once and features in batches. Closing the iterator, or an exception, ends the processes."""
    backbone.recover_after_fork()
    load = functools.partial(read_frames, sampling=sampling, decode=decode, transform=backbone.transform)
    fallback = functools.partial(load, decoders=("pyav",))
    workers = decode.workers or joblib.cpu_count()
    outcomes = run_isolated(load, clips, workers, decode.timeout, decode.memory_limit, fallback)
    waiting: list[tuple[Clip, DecodedClip]] = []
    in_cnn: Future[Outcomes] | None = None
    # The thread runs the CNN on one batch while the next is collected here. Its exceptions end the workers first.
    with ThreadPoolExecutor(1) as thread, closing(outcomes):
        for clip, outcome in outcomes:
            if isinstance(outcome, Failure):
                yield clip, outcome
                continue
            waiting.append((clip, outcome))
            if sum(len(decoded.frames) for _, decoded in waiting) >= backbone.batch:
                done = in_cnn.result() if in_cnn else []
                in_cnn, waiting = thread.submit(_run_cnn, waiting, backbone), []
                yield from done
        yield from in_cnn.result() if in_cnn else []
        yield from _run_cnn(waiting, backbone) if waiting else []


def _run_cnn(waiting: list[tuple[Clip, DecodedClip]], backbone: Backbone) -> Outcomes:
    features = backbone(np.concatenate([decoded.frames for _, decoded in waiting]))
    ends = np.cumsum([len(decoded.frames) for _, decoded in waiting])
    remedy = "--backbone.view grid" if backbone.precision == "fp32" else "--backbone.precision fp32"
    overflow = Failure(f"features overflow in {backbone.engine}, or are too large for float16; try {remedy}")
    return [
        (clip, ClipFeatures(part, *decoded[1:]) if np.isfinite(part).all() else overflow)
        for (clip, decoded), part in zip(waiting, np.split(features, ends[:-1]), strict=True)
    ]
