"""Clips -> features: decode in worker processes, run the CNN in batches across clips."""

import functools
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import TYPE_CHECKING

import joblib
import numpy as np

from pipeline.config import DecodeConfig, SamplingConfig
from pipeline.data.clip import Clip
from pipeline.features.entry import ClipFeatures
from pipeline.video.decode import DecodedClip
from pipeline.video.transform import read_frames
from pipeline.video.workers import Failure, run_isolated

if TYPE_CHECKING:
    from pipeline.features.backbone import Backbone


def clip_features(
    clips: Iterable[Clip], backbone: "Backbone", sampling: SamplingConfig, decode: DecodeConfig
) -> Iterator[tuple[Clip, ClipFeatures | Failure]]:
    """Compute the features of clips, for extraction and prediction.

    Frames of several clips go through the CNN together, so that its batches are full. Closing the iterator, or an
    exception, ends the worker processes.

    Yields:
        (clip, features or failure), failures at once, features in batches.
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
    waiting: list[tuple[Clip, DecodedClip]] = []
    in_cnn: deque[Future] = deque()
    # The thread runs the CNN on one batch while the next is collected here. Its exceptions end the workers first.
    with ThreadPoolExecutor(1) as thread, closing(outcomes):
        for clip, outcome in outcomes:
            if isinstance(outcome, Failure):
                yield clip, outcome
                continue
            waiting.append((clip, outcome))
            if sum(len(decoded.frames) for _, decoded in waiting) >= backbone.batch:
                in_cnn.append(thread.submit(_run_cnn, waiting, backbone))
                waiting = []
            while in_cnn and (len(in_cnn) == 2 or in_cnn[0].done()):
                yield from in_cnn.popleft().result()
        if waiting:
            in_cnn.append(thread.submit(_run_cnn, waiting, backbone))
        for batch in in_cnn:
            yield from batch.result()


def _run_cnn(
    waiting: list[tuple[Clip, DecodedClip]], backbone: "Backbone"
) -> list[tuple[Clip, ClipFeatures | Failure]]:
    # A frame that is shown for long may be repeated: it goes through the CNN once.
    uniques = [np.unique(decoded.indices, return_index=True, return_inverse=True)[1:] for _, decoded in waiting]
    shown = [decoded.frames[first] for (_, decoded), (first, _) in zip(waiting, uniques, strict=True)]
    features = backbone(np.concatenate(shown))
    parts = np.split(features, np.cumsum([len(first) for first, _ in uniques])[:-1])
    outcomes: list[tuple[Clip, ClipFeatures | Failure]] = []
    for (clip, decoded), part, (_, inverse) in zip(waiting, parts, uniques, strict=True):
        if np.isfinite(part).all():
            of_clip = part[inverse], decoded.pts, decoded.indices, decoded.planned, decoded.decoder
            outcomes.append((clip, ClipFeatures(*of_clip)))
        else:
            remedy = "--backbone.view grid" if backbone.precision == "fp32" else "--backbone.precision fp32"
            reason = f"features overflow in {backbone.engine}, or are too large for float16; try {remedy}"
            outcomes.append((clip, Failure(reason)))
    return outcomes
