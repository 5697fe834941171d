"""Video file -> the frames that were asked for, or a named failure.

PyAV reads the container's packet table, which says when each frame is shown; decord fetches the frames. decord is
believed only in containers where it finds what it seeks, and only if its own time table agrees with the container's:
elsewhere (WMV, MPEG-TS, AVI with B-frames or dropped frames) it was seen to return other frames than asked, silently.
PyAV then decodes from the start.
"""

from pathlib import Path
from typing import NamedTuple

import torch  # noqa: F401  (before decord: the other order can hang at import, dmlc/decord#293)

# isort: split
import av
import decord
import numpy as np
from pydantic import NonNegativeInt, PositiveFloat

from pipeline.errors import first_line
from pipeline.sampling import plan_frames
from pipeline.settings import settings

decord.logging.set_level(decord.logging.QUIET)

DECORD_SEEKS_RIGHT = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi", "flv")
"""FFmpeg's names of the containers in which decord lands on the frame that it seeks."""

CLOCK_ROUNDING = 5e-4
"""Seconds by which two clocks may differ on one frame; less than any frame lasts."""


@settings
class DecodeConfig:
    """How video files are read."""

    workers: NonNegativeInt = 0
    """Decoding processes; 0 takes one a core."""
    deadline: PositiveFloat = 60.0
    """Seconds that one clip may take before its process is ended and the clip recorded as failed."""


class DecodeError(Exception):
    """A clip that cannot be read; the message is the reason in a few words."""


class Timeline(NamedTuple):
    """When each frame of a file is shown: `times_N` float64, ascending seconds on the container's own clock; FFmpeg's
    name of the container; and whether it has packets too small for a picture, which stand for dropped frames."""

    times_N: np.ndarray
    container: str
    drops_frames: bool


class DecodedClip(NamedTuple):
    """Frames of one clip: `frames` uint8 [T,H,W,3] RGB, upright; `pts` float32 [T], seconds from the first frame of
    the file; `indices` int64 [T], in presentation order; `decoder` 'decord' or 'pyav'."""

    frames: np.ndarray
    pts: np.ndarray
    indices: np.ndarray
    decoder: str


def decode_clip(path: Path, frames: int, start: float | None = None, end: float | None = None) -> DecodedClip:
    """Reads the planned frames of a clip (see `plan_frames`).

    Raises:
        DecodeError: the file has no readable video, no frame in the segment, or neither decoder gives the frames.
    """
    timeline = read_timeline(path)
    from_first_N = timeline.times_N - timeline.times_N[0]
    indices = plan_frames(from_first_N, frames, start, end)
    if not len(indices):
        held = "only one frame" if len(from_first_N) == 1 else f"no frame between {start} s and {end} s"
        raise DecodeError(held)
    pts = from_first_N[indices].astype(np.float32)
    reasons = []
    for decoder, read in (("decord", read_decord), ("pyav", read_pyav)):
        try:
            return DecodedClip(read(path, timeline, indices), pts, indices, decoder)
        except DecodeError as error:
            reasons.append(f"{decoder}: {error}")
    raise DecodeError("; ".join(reasons))


def read_timeline(path: Path) -> Timeline:
    """Reads when each frame is shown from the container's packets, without decoding.

    Raises:
        DecodeError: not a readable video.
    """
    if path.is_file() and path.stat().st_size == 0:
        raise DecodeError("empty file")
    try:
        with av.open(path, metadata_errors="replace") as container:
            if not container.streams.video:
                raise DecodeError("no video stream")
            stream = container.streams.video[0]
            packets = [
                (packet.dts if packet.pts is None else packet.pts, packet.size)
                for packet in container.demux(stream)
                if packet.size and not packet.is_discard
            ]
            if not packets or any(tick is None for tick, _ in packets):
                raise DecodeError("frames without times" if packets else "no frames")
            ticks_N = np.sort(np.array([tick for tick, _ in packets], np.float64))
            drops_frames = container.format.name == "avi" and min(size for _, size in packets) <= 8
            return Timeline(ticks_N * float(stream.time_base), container.format.name, drops_frames)
    except (av.FFmpegError, OSError) as error:
        raise DecodeError(first_line(error)) from None


def read_decord(path: Path, timeline: Timeline, indices: np.ndarray) -> np.ndarray:
    """Fetches frames with decord, uint8 [T,H,W,3].

    Raises:
        DecodeError: decord fails or cannot be believed.
    """
    if timeline.container not in DECORD_SEEKS_RIGHT or timeline.drops_frames:
        with_drops = " with dropped frames" if timeline.drops_frames else ""
        raise DecodeError(f"not trusted to seek in {timeline.container}{with_drops}")
    try:
        reader = decord.VideoReader(str(path), num_threads=1)
        own_times_N = reader.get_frame_timestamp(np.arange(len(reader)))[:, 0]
        same_length = len(own_times_N) == len(timeline.times_N)
        if not same_length or not np.allclose(own_times_N, timeline.times_N, rtol=1e-6, atol=CLOCK_ROUNDING):
            raise DecodeError("time table differs from the container's")
        frames = reader.get_batch(indices).asnumpy()
    except (decord.DECORDError, RuntimeError) as error:
        raise DecodeError(first_line(error)) from None
    if len(frames) != len(indices):
        raise DecodeError(f"gave {len(frames)} of {len(indices)} frames")
    return frames


def read_pyav(path: Path, timeline: Timeline, indices: np.ndarray) -> np.ndarray:
    """Decodes from the start with PyAV up to the last wanted frame, uint8 [T,H,W,3].

    A wanted frame is the one on screen at its time. AVI stores no presentation times, so with B-frames FFmpeg can only
    guess them; there the order in which the decoder gives the frames is the truth, and they are counted.
    Frames of another size than the first are scaled to it.

    Raises:
        DecodeError: the stream ends or breaks before the last wanted frame.
    """
    frames: list[np.ndarray] = []
    try:
        with av.open(path, metadata_errors="replace") as container:
            stream = container.streams.video[0]
            counted = timeline.container == "avi" and stream.codec_context.has_b_frames
            wanted = list(indices if counted else timeline.times_N[indices])
            shown = None
            for number, frame in enumerate(container.decode(stream)):
                position = number if counted else frame.time
                if position is None:
                    raise DecodeError(f"frame {number} has no presentation time")
                while wanted and position >= wanted[0] - CLOCK_ROUNDING:
                    passed = shown is not None and position > wanted[0] + CLOCK_ROUNDING
                    frames.append(_to_rgb(shown if passed else frame, frames))
                    wanted.pop(0)
                if not wanted:
                    return np.stack(frames)
                shown = frame
    except (av.FFmpegError, OSError) as error:
        raise DecodeError(first_line(error)) from None
    raise DecodeError(f"ends early, with {len(frames)} of {len(indices)} frames read")


def _to_rgb(frame: av.VideoFrame, earlier: list[np.ndarray]) -> np.ndarray:
    """Converts a frame to upright RGB of the size of the earlier ones, uint8 [H,W,3]."""
    turns = round(frame.rotation / 90) % 4
    height, width = frame.height, frame.width
    if earlier:
        height, width = earlier[0].shape[:2] if turns % 2 == 0 else earlier[0].shape[1::-1]
    return np.rot90(frame.to_ndarray(format="rgb24", width=width, height=height), turns)
