"""A long video -> its frames on a grid of times, in chunks that are decoded independently of each other."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from pipeline.config import DecodeConfig
from pipeline.video.decode import DecodedClip
from pipeline.video.pyav_reader import read_pyav
from pipeline.video.sampling import ROUNDING
from pipeline.video.timestamps import DecodeError, read_table

LEAST, MOST = 48, 256  # Sampled frames of a chunk.


class Recording(NamedTuple):
    path: Path
    duration: float  # Seconds.
    frame_rate: float  # On average.
    indices_T: np.ndarray  # int64: the frame shown at each time of the grid, ascending; some may be repeated.
    edges: list[int]  # Where chunks begin in `indices_T`, and the end of the last.


class Chunk(NamedTuple):
    path: Path
    number: int
    indices: np.ndarray


def plan(path: Path, step: float, decode: DecodeConfig) -> Recording:
    """Choose the frames at (k + 1/2) * `step` seconds. Chunks begin at keyframes, so that no frame is decoded twice,
    except where there is none for `MOST` frames. Raises DecodeError."""
    table = read_table(path, decode.max_pixels, decode.max_duration)
    times_N = table.times_N - table.times_N[0]
    duration = float(times_N[-1])
    if duration <= ROUNDING:
        raise DecodeError("only one frame")
    instants_T = (np.arange(max(math.ceil(duration / step - 0.5), 1)) + 0.5) * min(step, duration)
    indices_T = (np.searchsorted(times_N, instants_T, "right") - 1).clip(0, len(times_N) - 2)
    keys = np.flatnonzero([table.packets[row].key for row in table.rows_N])
    begins = np.flatnonzero(np.diff(np.searchsorted(keys, indices_T, "right"))) + 1
    edges = [0]
    for begin in [*begins.tolist(), len(indices_T)]:
        while begin - edges[-1] > MOST + LEAST:
            edges.append(edges[-1] + MOST)
        if begin - edges[-1] >= LEAST or begin == len(indices_T):
            edges.append(begin)
    return Recording(path, duration, (len(times_N) - 1) / duration, indices_T, edges)


def chunks(recording: Recording) -> list[Chunk]:
    pairs = zip(recording.edges, recording.edges[1:], strict=False)
    return [Chunk(recording.path, n, recording.indices_T[first:end]) for n, (first, end) in enumerate(pairs)]


def read_chunk(chunk: Chunk, decode: DecodeConfig, transform: Callable) -> DecodedClip:
    """Read the frames of a chunk with PyAV, since decord reads a whole file before its first frame."""
    table = read_table(chunk.path, decode.max_pixels, decode.max_duration)

    def resize(picture: np.ndarray) -> np.ndarray:
        return transform(torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1)[None])[0].numpy()

    found, frames = read_pyav(chunk.path, table, chunk.indices, decode.max_pixels, resize)
    if not len(found):
        raise DecodeError("damaged: no frame can be read", "pyav")
    pts = (table.times_N[found] - table.times_N[0]).astype(np.float32)
    return DecodedClip(frames, pts, found, len({*chunk.indices.tolist()}), "pyav")
