"""Frames of clips, as the CNN gets them."""

import functools
from collections.abc import Iterable, Iterator

import joblib

from pipeline.config import Config
from pipeline.data.clip import Clip
from pipeline.video.decode import DecodedClip
from pipeline.video.transform import ResizeAndCrop, read_frames
from pipeline.video.workers import Failure, run_isolated


def decoded_clips(
    clips: Iterable[Clip], config: Config, transform: ResizeAndCrop
) -> Iterator[tuple[Clip, DecodedClip | Failure]]:
    """Yield the sampled frames of clips, uint8 [T,3,H,W], in order of completion."""
    decode = config.decode
    load = functools.partial(read_frames, sampling=config.sampling, decode=decode, transform=transform)
    fallback = functools.partial(load, decoders=("pyav",))
    workers = decode.workers or joblib.cpu_count()
    return run_isolated(load, clips, workers, decode.timeout, decode.memory_limit, fallback)
