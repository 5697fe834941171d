"""Long videos -> features of their sampled frames, in order, while they are decoded."""

import functools
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path

import joblib
import numpy as np

from pipeline.base.errors import KinemaError
from pipeline.config import DecodeConfig
from pipeline.features.backbone import Backbone
from pipeline.features.extraction import chunk_features
from pipeline.video.recording import Recording, chunks, plan
from pipeline.video.workers import Failure, run_isolated


def plan_recordings(paths: Iterable[Path], step: float, decode: DecodeConfig) -> dict[Path, Recording | Failure]:
    """Read the packet tables of videos, and choose a frame every `step` seconds."""
    job = functools.partial(plan, step=step, decode=decode)
    workers, absolute = decode.workers or joblib.cpu_count(), {path: path.absolute() for path in paths}
    outcomes = dict(run_isolated(job, {*absolute.values()}, workers, decode.timeout, decode.memory_limit))
    return {path: outcomes[absolute[path]] for path in absolute}


def read_recording(recording: Recording, backbone: Backbone, decode: DecodeConfig) -> Iterator[list[np.ndarray | None]]:
    """Yield the features [D] of the sampled frames of each chunk; None for a frame that cannot be read.

    Raises a KinemaError at the end if no chunk could be read."""
    done: dict[int, list[np.ndarray | None]] = {}
    failed: list[Failure] = []
    parts = chunks(recording)
    with closing(chunk_features(parts, backbone, decode)) as outcomes:
        for number in range(len(parts)):
            while number not in done:
                chunk, outcome = next(outcomes)
                features = {}
                if isinstance(outcome, Failure):
                    failed.append(outcome)
                else:
                    features = dict(zip(outcome.indices.tolist(), outcome.features, strict=True))
                done[chunk.number] = [features.get(index) for index in chunk.indices.tolist()]
            yield done.pop(number)
    if len(failed) == len(parts):
        raise KinemaError(failed[0].reason)
