"""Video file -> the frames that were asked for, or a named failure.

`pipeline/video/timestamps.py` tells when each frame is shown. decord then fetches the frames, where it can be
believed: not in containers and codecs in which it was seen to return other frames than asked, silently, and not if a
decoder complains of damage on the way. PyAV decodes all else from the start, and tells what damage left whole.
"""

import itertools
import math
import os
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch  # noqa: F401  (before decord: the other order can hang at import, dmlc/decord#293)

# isort: split
import av
import decord
import numpy as np

from pipeline.base.errors import first_line
from pipeline.base.files import nameless_file
from pipeline.config import DecodeConfig
from pipeline.video.sampling import plan_frames
from pipeline.video.timestamps import DecodeError, Timestamps, open_video, packets_of, read_timestamps, tick_of

decord.logging.set_level(decord.logging.INFO)

CLOCK_ROUNDING = 5e-4
"""Seconds by which two clocks may differ on one frame; less than any frame lasts."""


class DecodedClip(NamedTuple):
    """Frames of one clip: `frames` uint8 [T,H,W,3] RGB, upright; `pts` float32 [T], seconds from the first frame of
    the file; `indices` int64 [T], in presentation order; `planned` how many frames were asked for, more than T where
    damage left no more to read; `decoder` 'decord' or 'pyav'."""

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
    """Reads the planned frames of a clip (see `plan_frames`) with the first decoder that gives them.

    Raises:
        DecodeError: the file has no readable video, no frame in the segment, or no decoder gives enough frames.
    """
    config = config or DecodeConfig()
    timeline = read_timestamps(path, config.max_pixels, config.max_duration)
    from_first_N = timeline.times_N - timeline.times_N[0]
    indices = plan_frames(from_first_N, frames, start, end)
    if not len(indices):
        raise DecodeError("only one frame" if len(from_first_N) == 1 else f"no frame between {start} s and {end} s")
    if "decord" in decoders:
        try:
            pixels = read_decord(path, timeline, indices)
            return DecodedClip(pixels, from_first_N[indices].astype(np.float32), indices, len(indices), "decord")
        except DecodeError as error:
            if decoders == ("decord",):
                raise DecodeError(str(error), "decord") from None
    found = read_pyav(path, timeline, indices, config.max_pixels)
    if len(found) < max(1, config.min_readable * len(indices)):
        raise DecodeError(f"damaged: {len(found)} of {len(indices)} planned frames can be read", "pyav")
    readable = indices[list(found)]
    pts = from_first_N[readable].astype(np.float32)
    return DecodedClip(np.stack(list(found.values())), pts, readable, len(indices), "pyav")


def read_decord(path: Path, timeline: Timestamps, indices: np.ndarray) -> np.ndarray:
    """Fetches frames with decord, uint8 [T,H,W,3].

    Raises:
        DecodeError: decord fails or cannot be believed.
    """
    if timeline.distrust:
        raise DecodeError(timeline.distrust)
    try:
        with _complaints() as complaints:
            reader = decord.VideoReader(os.path.abspath(path), num_threads=1, fault_tol=0)
            own_times_N = reader.get_frame_timestamp(np.arange(len(reader)))[:, 0]
            times_N = timeline.times_N - timeline.times_N[0] + own_times_N[0]
            same_length = len(own_times_N) == len(times_N)
            if not same_length or not np.allclose(own_times_N, times_N, rtol=1e-6, atol=CLOCK_ROUNDING):
                raise DecodeError("time table differs from the container's")
            frames = reader.get_batch(indices).asnumpy()
            del reader  # Ends its threads, which may complain too.
    except (decord.DECORDError, RuntimeError, UnicodeEncodeError) as error:
        raise DecodeError(first_line(error)) from None
    if complaints:
        raise DecodeError(f"complains: {complaints[0]}")
    if any(np.array_equal(*pair) for pair in itertools.pairwise(frames)):
        raise DecodeError("gave one frame twice")  # As it does for frames that it cannot find.
    return frames


def read_pyav(
    path: Path, timeline: Timestamps, indices: np.ndarray, max_pixels: int = 7680 * 4320
) -> dict[int, np.ndarray]:
    """Decodes from the start with PyAV up to the last wanted frame.

    A frame is believed to be the wanted one if it is shown at the very time. After damage nothing is believed up to the
    next keyframe, since frames are built upon those before them; where frames can only be counted, nothing at all.
    Frames of another size than the first are scaled to it.

    Returns:
        uint8 [H,W,3] by position in `indices`, ascending; positions that cannot be read are left out.

    Raises:
        DecodeError: the stream cannot be opened.
    """
    found: dict[int, np.ndarray] = {}
    wanted = deque((place, index) for place, index in enumerate(indices) if index < timeline.present)
    with open_video(path) as container:
        stream = container.streams.video[0]
        stream.codec_context.options = {"err_detect": "explode", "max_pixels": str(max_pixels)}
        stream.codec_context.thread_count = 1
        converter = av.video.reformatter.VideoReformatter()  # One for all frames: to set it up is most of the work.
        clock_N = np.arange(timeline.present) if timeline.counted else timeline.times_N
        shown_frames, last = 0, -math.inf
        damaged_at = -math.inf  # The latest damage; what is shown is whole once a keyframe has come after it.
        whole = True
        for sent, (packet, corrupt) in enumerate(packets_of(container, stream)):
            tick = tick_of(packet)
            at = math.inf if tick is None else float(tick * stream.time_base)
            frames: list[av.VideoFrame] = []
            damage = [at] if corrupt else []
            try:
                frames = packet.decode()
                damage += [math.inf if frame.time is None else frame.time for frame in frames if frame.is_corrupt]
            except av.FFmpegError:
                damage.append(at)
            if damage and timeline.counted:
                lost_before = sent - shown_frames > 1 + stream.codec_context.has_b_frames
                return {} if lost_before else found
            if damage:
                damaged_at, whole = max(damaged_at, *damage), False
            for frame in frames:
                now = shown_frames if timeline.counted else frame.time
                shown_frames += 1
                if now is None or now < last:
                    return found  # Times that run backwards belong to no timeline.
                last = now
                whole = whole or bool(frame.key_frame and now > damaged_at + CLOCK_ROUNDING)
                while wanted and now >= clock_N[wanted[0][1]] - CLOCK_ROUNDING:
                    place, index = wanted.popleft()
                    if whole and now <= clock_N[index] + CLOCK_ROUNDING:
                        found[place] = _to_rgb(frame, found, converter)
            if not wanted and not timeline.counted:
                break
    # A decoder may keep the very last frame for itself, but if it lost more, the count is not to be believed.
    if timeline.counted and shown_frames < timeline.present - 1:
        return {}
    return found


@contextmanager
def _complaints() -> Iterator[list[str]]:
    """Collects what native code writes to standard error: the only place where decord tells of damage."""
    lines: list[str] = []
    terminal = os.dup(2)
    with os.fdopen(nameless_file(), "rb") as file:
        os.dup2(file.fileno(), 2)
        try:
            yield lines
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)
            file.seek(0)
            written = file.read().decode(errors="replace").splitlines()
            # Filters remark on healthy VP9 and MJPEG.
            lines += [line for line in written if not line.startswith(("[in @", "[swscaler @"))]


def _to_rgb(
    frame: av.VideoFrame, earlier: dict[int, np.ndarray], converter: av.video.reformatter.VideoReformatter
) -> np.ndarray:
    """Converts a frame to upright RGB of the size of the earlier ones, uint8 [H,W,3]."""
    turns = frame.rotation // 90 % 4 if frame.rotation % 90 == 0 else 0
    height, width = frame.height, frame.width
    if earlier:
        shape = next(iter(earlier.values())).shape
        height, width = shape[:2] if turns % 2 == 0 else shape[1::-1]
    return np.rot90(converter.reformat(frame, width, height, "rgb24", threads=1).to_ndarray(), turns)
