"""A clip -> its sampled frames, resized and cropped for the CNN: the job of the decoding processes.

Imports neither timm nor torchvision, so that a process starts in half the time."""

from collections.abc import Callable
from typing import NamedTuple

import torch

from pipeline.config import DecodeConfig, SamplingConfig
from pipeline.data.clip import Clip
from pipeline.video.decode import DECODERS, DecodedClip, decode_clip


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


def read_frames(
    clip: Clip, sampling: SamplingConfig, decode: DecodeConfig, transform: Callable, decoders: tuple = DECODERS
) -> DecodedClip:
    """Read the sampled frames of a clip, transformed for the CNN: `frames` is uint8 [T,3,H,W]."""
    decoded = decode_clip(clip.path, sampling.frames, clip.start, clip.end, decode, decoders, sampling.rate)
    return decoded._replace(frames=transform(torch.from_numpy(decoded.frames).permute(0, 3, 1, 2)).contiguous().numpy())
