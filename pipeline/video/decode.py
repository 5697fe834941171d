"""A video file -> the sampled frames of a clip, or the reason for failure."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline.config import DecodeConfig
from pipeline.video.decord_reader import read_decord
from pipeline.video.pyav_reader import read_pyav
from pipeline.video.sampling import sample_indices
from pipeline.video.timestamps import DecodeError, read_table

DECODERS = "decord", "pyav"
MAX_DECORD_SPACING = 4  # In frames between two sampled ones; beyond it, PyAV needs less CPU time.


class DecodedClip(NamedTuple):
    frames: np.ndarray  # uint8 [T,H,W,3], RGB, upright; fewer than planned where damage left fewer.
    pts: np.ndarray  # float32 [T], seconds from the first frame of the file.
    indices: np.ndarray  # int64 [T], ascending; a frame that lasts long may be repeated.
    planned: int
    decoder: str  # 'decord' or 'pyav'.


def decode_clip(
    path: Path,
    frames: int,
    start: float | None = None,
    end: float | None = None,
    config: DecodeConfig | None = None,
    decoders: tuple[str, ...] = DECODERS,
    rate: float | None = None,
) -> DecodedClip:
    """Read the sampled frames, with decord where it is reliable, else with PyAV; raises DecodeError."""
    config = config or DecodeConfig()
    table = read_table(path, config.max_pixels, config.max_duration)
    times_N = table.times_N - table.times_N[0]
    indices = sample_indices(times_N, frames, start, end, rate)
    if not len(indices):
        stop = times_N[-1] if end is None else end
        raise DecodeError("only one frame" if len(times_N) == 1 else f"no frame from {start or 0:g} s to {stop:g} s")
    pts = times_N[indices].astype(np.float32)
    if decoders == ("decord",) or ("decord" in decoders and np.ptp(indices) < MAX_DECORD_SPACING * len(indices)):
        try:
            return DecodedClip(read_decord(path, table, indices), pts, indices, len(indices), "decord")
        except DecodeError:
            if decoders == ("decord",):
                raise
    found, pixels = read_pyav(path, table, indices, config.max_pixels)
    readable = np.isin(indices, found)
    if readable.sum() < max(1, config.min_readable * len(indices)):
        raise DecodeError(f"damaged: {readable.sum()} of {len(indices)} planned frames can be read", "pyav")
    if readable.sum() > len(found):  # Some last long and are repeated.
        pixels = pixels[np.searchsorted(found, indices[readable])]
    return DecodedClip(pixels, pts[readable], indices[readable], len(indices), "pyav")
