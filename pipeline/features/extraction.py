"""Clips -> features: decode in worker processes, run the CNN in batches across clips."""

import functools
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import Any

import joblib
import numpy as np

from pipeline.config import DecodeConfig, SamplingConfig
from pipeline.data.clip import Clip
from pipeline.features.backbone import Backbone
from pipeline.features.entry import ClipFeatures
from pipeline.video.decode import DecodedClip
from pipeline.video.recording import Chunk, read_chunk
from pipeline.video.transform import ResizeAndCrop, read_frames
from pipeline.video.workers import Failure, run_isolated

Outcomes = Iterable[tuple[Any, ClipFeatures | Failure]]


def clip_features(
    clips: Iterable[Clip], backbone: Backbone, sampling: SamplingConfig, decode: DecodeConfig
) -> Iterator[tuple[Clip, ClipFeatures | Failure]]:
    """Yield failures at once and features in batches. Closing the iterator, or an exception, ends the processes."""
    return compute_features(decode_clips(clips, backbone.transform, sampling, decode), backbone)


def chunk_features(
    chunks: Iterable[Chunk], backbone: Backbone, decode: DecodeConfig
) -> Iterator[tuple[Chunk, ClipFeatures | Failure]]:
    """Compute the features of chunks of a recording."""
    load = functools.partial(read_chunk, decode=decode, transform=backbone.transform)
    return compute_features(_in_processes(load, chunks, decode), backbone)


def decode_clips(
    clips: Iterable[Clip], transform: ResizeAndCrop, sampling: SamplingConfig, decode: DecodeConfig
) -> Iterator[tuple[Clip, DecodedClip | Failure]]:
    """Yield the sampled frames of clips as the CNN gets them, in order of completion."""
    load = functools.partial(read_frames, sampling=sampling, decode=decode, transform=transform)
    return _in_processes(load, clips, decode, functools.partial(load, decoders=("pyav",)))


def _in_processes(
    load: Callable, jobs: Iterable, decode: DecodeConfig, fallback: Callable | None = None
) -> Iterator[tuple[Any, DecodedClip | Failure]]:
    workers = decode.workers or joblib.cpu_count()
    return run_isolated(load, jobs, workers, decode.timeout, decode.memory_limit, fallback)


def compute_features(
    outcomes: Iterator[tuple[Any, DecodedClip | Failure]], backbone: Backbone
) -> Iterator[tuple[Any, ClipFeatures | Failure]]:
    """Yield (job, features or failure) of decoded jobs."""
    backbone.recover_after_fork()
    waiting: list[tuple[Any, DecodedClip]] = []
    in_cnn: Future[Outcomes] | None = None
    # The thread runs the CNN on one batch while the next is collected here. Its exceptions end the workers first.
    with ThreadPoolExecutor(1) as thread, closing(outcomes):
        for job, outcome in outcomes:
            if isinstance(outcome, Failure):
                yield job, outcome
                continue
            waiting.append((job, outcome))
            if sum(len(decoded.frames) for _, decoded in waiting) >= backbone.batch:
                done = in_cnn.result() if in_cnn else []
                in_cnn, waiting = thread.submit(_run_cnn, waiting, backbone), []
                yield from done
        yield from in_cnn.result() if in_cnn else []
        yield from _run_cnn(waiting, backbone) if waiting else []


def _run_cnn(waiting: list[tuple[Any, DecodedClip]], backbone: Backbone) -> Outcomes:
    features = backbone(np.concatenate([decoded.frames for _, decoded in waiting]))
    ends = np.cumsum([len(decoded.frames) for _, decoded in waiting])
    remedy = "--backbone.view grid" if backbone.precision == "fp32" else "--backbone.precision fp32"
    overflow = Failure(f"features overflow in {backbone.engine}, or are too large for float16; try {remedy}")
    return [
        (job, ClipFeatures(part, *decoded[1:]) if np.isfinite(part).all() else overflow)
        for (job, decoded), part in zip(waiting, np.split(features, ends[:-1]), strict=True)
    ]
