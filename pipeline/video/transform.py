"""A clip -> its planned frames, resized and cropped for the CNN: the work of the worker processes.

Imports neither timm nor torchvision, so a process starts in half the time.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from pipeline.config import DecodeConfig, SamplingConfig
from pipeline.data.clip import Clip
from pipeline.video.decode import DecodedClip, decode_clip
from pipeline.video.timestamps import DecodeError
from pipeline.video.workers import Failure


class ResizeAndCrop(NamedTuple):
    """Resize to `size` pixels, the short side or (height, width), then crop the centre to `crop`, (height, width).

    PyTorch's antialiasing on uint8 is several times as fast as Pillow's; pixels differ by 0.1 of 255 on average.
    """

    size: int | tuple[int, int]
    crop: tuple[int, int]
    mode: str

    def __call__(self, frames_T3HW: torch.Tensor) -> torch.Tensor:
        """Resize and crop uint8 [T,3,H,W]."""
        size = self.size
        if isinstance(size, int):
            height, width = frames_T3HW.shape[2:]
            short = min(height, width)
            size = size * height // short, size * width // short
        resized = torch.nn.functional.interpolate(frames_T3HW, size, mode=self.mode, antialias=True)
        top, left = (round((whole - part) / 2) for whole, part in zip(size, self.crop, strict=True))
        return resized[:, :, top : top + self.crop[0], left : left + self.crop[1]]


def read_frames(
    clip: Clip,
    sampling: SamplingConfig,
    decode: DecodeConfig,
    transform: Callable[[torch.Tensor], torch.Tensor],
    decoders: tuple[str, ...] = ("decord", "pyav"),
) -> DecodedClip | Failure:
    """Read a clip's planned frames, transformed for the CNN: `frames` is uint8 [T,3,H,W]."""
    try:
        decoded = decode_clip(clip.path, sampling.frames, clip.start, clip.end, decode, decoders)
    except OSError as error:
        return Failure(error.strerror, "file")
    except DecodeError as error:
        return Failure(str(error), error.decoder)
    # A frame that is shown for long may stand for several instants.
    _, firsts, places = np.unique(decoded.indices, return_index=True, return_inverse=True)
    once = decoded.frames if len(firsts) == len(places) else decoded.frames[firsts]
    frames_T3HW = transform(torch.from_numpy(once).permute(0, 3, 1, 2)).contiguous().numpy()
    return decoded._replace(frames=frames_T3HW if len(firsts) == len(places) else frames_T3HW[places])
