"""A clip -> its sampled frames, resized and cropped for the CNN, or the reason for failure: the job of the decoding
processes. Imports neither timm nor torchvision, so that a process starts in half the time."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from pipeline.config import DecodeConfig, SamplingConfig
from pipeline.data.clip import Clip
from pipeline.video.decord_reader import read_decord
from pipeline.video.pyav_reader import read_pyav
from pipeline.video.sampling import plan_instants
from pipeline.video.timestamps import DecodeError, read_table

DECODERS = "decord", "pyav"
DENSE = 4  # Frames per sampled frame up to which decord, whose seeks are slow, costs no more CPU time than PyAV.


class DecodedClip(NamedTuple):
    frames: np.ndarray  # uint8 [T,H,W,3], RGB, upright; fewer than planned where damage left fewer.
    pts: np.ndarray  # float32 [T], seconds from the first frame of the file.
    indices: np.ndarray  # int64 [T], ascending; a frame that lasts long may be repeated.
    planned: int
    decoder: str  # 'decord' or 'pyav'.


class ResizeAndCrop(NamedTuple):
    """Resize to `size` pixels, the short side or (height, width), then crop the centre to `crop`, (height, width).

    PyTorch's antialiasing on uint8 is several times as fast as Pillow's; pixels differ by 0.1 of 255 on average."""

    size: int | tuple[int, int]
    crop: tuple[int, int]
    mode: str

    def __call__(self, frames_T3HW: torch.Tensor) -> torch.Tensor:
        size = self.size
        if isinstance(size, int):
            height, width = frames_T3HW.shape[2:]
            short = min(height, width)
            size = size * height // short, size * width // short
        resized = torch.nn.functional.interpolate(frames_T3HW, size, mode=self.mode, antialias=True)
        top, left = (round((whole - part) / 2) for whole, part in zip(size, self.crop, strict=True))
        return resized[:, :, top : top + self.crop[0], left : left + self.crop[1]]


def decode_clip(
    path: Path,
    frames: int,
    start: float | None = None,
    end: float | None = None,
    config: DecodeConfig | None = None,
    decoders: tuple[str, ...] = DECODERS,
) -> DecodedClip:
    """Read the frames that `plan_instants` samples, with decord where it is reliable, else PyAV; raises DecodeError."""
    config = config or DecodeConfig()
    table = read_table(path, config.max_pixels, config.max_duration)
    times_N = table.times_N - table.times_N[0]
    indices = plan_instants(times_N, frames, start, end)
    if not len(indices):
        raise DecodeError("only one frame" if len(times_N) == 1 else f"no frame between {start} s and {end} s")
    pts = times_N[indices].astype(np.float32)
    if decoders == ("decord",) or ("decord" in decoders and np.ptp(indices) < DENSE * len(indices)):
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


def read_frames(
    clip: Clip, sampling: SamplingConfig, decode: DecodeConfig, transform: Callable, decoders: tuple = DECODERS
) -> DecodedClip:
    """Read the sampled frames of a clip, transformed for the CNN: `frames` is uint8 [T,3,H,W]."""
    decoded = decode_clip(clip.path, sampling.frames, clip.start, clip.end, decode, decoders)
    return decoded._replace(frames=transform(torch.from_numpy(decoded.frames).permute(0, 3, 1, 2)).contiguous().numpy())
