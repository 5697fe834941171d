"""A clip -> a small silent video for a web page, with its middle frame as a picture."""

import functools
import io
from collections.abc import Iterator
from fractions import Fraction
from typing import NamedTuple

import av
import joblib
import torch
from PIL import Image

from pipeline.config import DecodeConfig
from pipeline.data.clip import Clip
from pipeline.video.decode import DECODERS, decode_clip
from pipeline.video.transform import ResizeAndCrop
from pipeline.video.workers import Failure, run_isolated

FRAMES, SIDE = 30, 160  # Frames of a preview, pixels of its longer side.
SLOWEST = 6  # Frames per second; a clip that lasts longer than its preview is shown faster.


class Preview(NamedTuple):
    video: bytes  # MP4 with H.264.
    poster: bytes  # JPEG.


def make_previews(clips: list[Clip], decode: DecodeConfig) -> Iterator[tuple[Clip, Preview | Failure]]:
    """Yield previews of clips in order of completion, made in worker processes."""
    make = functools.partial(make_preview, decode=decode)
    fallback = functools.partial(make, decoders=("pyav",))
    workers = decode.workers or joblib.cpu_count()
    return run_isolated(make, clips, workers, decode.timeout, decode.memory_limit, fallback)


def make_preview(clip: Clip, decode: DecodeConfig, decoders: tuple = DECODERS) -> Preview:
    decoded = decode_clip(clip.path, FRAMES, clip.start, clip.end, decode, decoders)
    frames_T3HW = torch.from_numpy(decoded.frames).permute(0, 3, 1, 2)
    scale = SIDE / max(frames_T3HW.shape[2:])
    size = tuple(max(round(side * scale / 2) * 2, 2) for side in frames_T3HW.shape[2:])  # H.264 needs even sides.
    frames = ResizeAndCrop(size, size, "bicubic")(frames_T3HW).permute(0, 2, 3, 1).contiguous().numpy()
    seconds = float(decoded.pts[-1] - decoded.pts[0])
    rate = max((len(frames) - 1) / seconds, SLOWEST) if seconds else SLOWEST

    video, poster = io.BytesIO(), io.BytesIO()
    with av.open(video, "w", format="mp4") as container:
        stream = container.add_stream("libx264", Fraction(rate).limit_denominator(100), {"crf": "32"})
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        stream.codec_context.thread_count = 1
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    Image.fromarray(frames[len(frames) // 2]).save(poster, "JPEG", quality=60)
    return Preview(video.getvalue(), poster.getvalue())
