"""Video file -> the planned frames of a clip, or a named failure: decord where it can be believed, else PyAV."""

import itertools
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline.config import DecodeConfig
from pipeline.video.decord_reader import read_decord
from pipeline.video.pyav_reader import read_pyav
from pipeline.video.sampling import plan_instants
from pipeline.video.timestamps import DecodeError, VideoTable, read_table
from pipeline.video.worker import part_of_deadline


class DecodedClip(NamedTuple):
    """Frames of one clip: `frames` uint8 [T,H,W,3] RGB, upright; `pts` float32 [T], seconds from the first frame of
    the file; `indices` int64 [T], ascending, a long-lasting frame may be repeated; `planned` the number of frames asked
    for, more than T where damage left fewer; `decoder` 'decord' or 'pyav'."""

    frames: np.ndarray
    pts: np.ndarray
    indices: np.ndarray
    planned: int
    decoder: str


def decode_clip(
    path: Path,
    frames: int,
    start: float | None = None,
    end: float | None = None,
    config: DecodeConfig | None = None,
    decoders: tuple[str, ...] = ("decord", "pyav"),
) -> DecodedClip:
    """Read the planned frames of a clip (see `plan_instants`) with the first decoder that gives them.

    Raises:
        DecodeError: the file has no readable video, no frame in the segment, or no decoder gives enough frames.
    """
    config = config or DecodeConfig()
    table = read_table(path, config.max_pixels, config.max_duration)
    times_N = table.times_N - table.times_N[0]
    indices = plan_instants(times_N, frames, start, end)
    if not len(indices):
        raise DecodeError("only one frame" if len(times_N) == 1 else f"no frame between {start} s and {end} s")
    pts = times_N[indices].astype(np.float32)
    if "decord" in decoders:
        try:
            with part_of_deadline(0.5):
                pixels = read_decord(path, table, indices)
            if _lacks_frames(path, table, indices, pixels, config):
                raise DecodeError("gives one frame for several", "decord")
            return DecodedClip(pixels, pts, indices, len(indices), "decord")
        except DecodeError:
            if decoders == ("decord",):
                raise
    found = read_pyav(path, table, indices, config.max_pixels)
    readable = np.isin(indices, list(found))
    if readable.sum() < max(1, config.min_readable * len(indices)):
        raise DecodeError(f"damaged: {readable.sum()} of {len(indices)} planned frames can be read", "pyav")
    pixels = np.stack([found[index] for index in indices[readable].tolist()])
    return DecodedClip(pixels, pts[readable], indices[readable], len(indices), "pyav")


def _lacks_frames(path: Path, table: VideoTable, indices: np.ndarray, frames: np.ndarray, config: DecodeConfig) -> bool:
    """Whether decord gave one frame for several, as it does for frames that it cannot find, and the scene is not still.

    PyAV decodes the last frame of each run of equal ones.
    """
    distinct, places = np.unique(indices, return_index=True)
    equal = [np.array_equal(frames[one], frames[two]) for one, two in itertools.pairwise(places)]
    lasts = [n + 1 for n, same in enumerate(equal) if same and equal[n + 1 : n + 2] != [True]]
    found = read_pyav(path, table, distinct[lasts], config.max_pixels) if lasts else {}
    return any(
        int(distinct[n]) not in found or np.abs(found[int(distinct[n])].astype(int) - frames[places[n]]).mean() > 2
        for n in lasts
    )
