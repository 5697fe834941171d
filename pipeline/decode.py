"""Video file -> the frames that were asked for, or a named failure.

PyAV reads the container's packet table, which says when each frame is shown. decord then fetches the frames, where it
can be believed: not in containers and codecs in which it was seen to return other frames than asked, silently, and not
if a decoder complains of damage on the way. PyAV decodes all else from the start, and tells what damage left whole.

Files come from strangers: only video containers are opened, none that can refer to other files or addresses.
"""

import itertools
import math
import os
import tempfile
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, NamedTuple

import torch  # noqa: F401  (before decord: the other order can hang at import, dmlc/decord#293)

# isort: split
import av
import decord
import numpy as np
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from pipeline.errors import first_line
from pipeline.sampling import plan_frames
from pipeline.settings import settings

decord.logging.set_level(decord.logging.INFO)
av.logging.set_level(av.logging.ERROR)

CONTAINERS = (
    *("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi", "flv", "asf", "mpegts", "mpeg", "mpegvideo", "h264", "hevc"),
    *("m4v", "ogg", "ivf", "gif", "mxf", "rm", "dv"),
)
"""FFmpeg's names of the containers that are opened. Playlists and scripts, which name other files, are not in it."""

DECORD_SEEKS_RIGHT = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi", "flv")
"""The containers in which decord lands on the frame that it seeks."""

DECORD_REORDERS_RIGHT = ("h264", "hevc")
"""The codecs with B-frames of which decord returns the frame that it seeks; in MPEG-4 it returns a neighbour."""

STREAMED = ("mpegts", "mpeg")
"""The containers without an index, whose frames come at a steady rate."""

GAP = 1.75
"""Frames from one packet to the next that tell that some were lost in between; a repeated field makes it 1.5."""

CUT_OFF = 0.05
"""Share of the announced duration that must be missing before a file counts as cut off: headers are often a bit off."""

CLOCK_ROUNDING = 5e-4
"""Seconds by which two clocks may differ on one frame; less than any frame lasts."""


@settings
class DecodeConfig:
    """How video files are read."""

    workers: NonNegativeInt = 0
    """Decoding processes; 0 takes one a core."""
    deadline: PositiveFloat = 60.0
    """Seconds that one clip may take: half of them with all decoders, and if its process is then ended, or crashed, the
    rest with PyAV alone."""
    memory: PositiveFloat = 4.0
    """GiB that a decoding process may take before it is ended and the clip recorded as failed."""
    partial: Annotated[float, Field(ge=0, le=1)] = 0.5
    """A damaged clip is kept, and marked as partial, if this share of its planned frames can be read; 1 keeps none."""
    max_pixels: PositiveInt = 7680 * 4320
    """Pixels of a frame; files with larger ones are not decoded."""
    max_duration: PositiveFloat = 6 * 3600.0
    """Seconds of a file; longer ones are not decoded."""


class DecodeError(Exception):
    """A clip that cannot be read; the message is the reason in a few words, `decoder` who found it."""

    def __init__(self, reason: str, decoder: str = "container"):
        super().__init__(reason)
        self.decoder = decoder


class Timeline(NamedTuple):
    """When each frame of a file is shown.

    `times_N` float64, ascending seconds on the container's own clock, of all frames that the file announces; the first
    `present` of them are there, the rest was cut off. `counted`: the container holds no presentation times, so that
    frames can only be told by counting them. `distrust`: why decord cannot be believed here, or ''.
    """

    times_N: np.ndarray
    present: int
    counted: bool
    distrust: str


class _Packet(NamedTuple):
    """What a timeline is made from: presentation tick (None: unknown), duration in ticks, size in bytes, whether an
    edit list hides it, and whether the container is damaged there."""

    tick: int | None
    duration: int
    size: int
    is_discard: bool
    torn: bool


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
    timeline = read_timeline(path, config)
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
    if len(found) < max(1, config.partial * len(indices)):
        raise DecodeError(f"damaged: {len(found)} of {len(indices)} planned frames can be read", "pyav")
    readable = indices[list(found)]
    pts = from_first_N[readable].astype(np.float32)
    return DecodedClip(np.stack(list(found.values())), pts, readable, len(indices), "pyav")


def read_timeline(path: Path, config: DecodeConfig | None = None) -> Timeline:
    """Reads when each frame is shown from the container's packets, without decoding.

    Raises:
        DecodeError: not a readable video, or one over the limits of `config`.
    """
    config = config or DecodeConfig()
    if path.is_file() and path.stat().st_size == 0:
        raise DecodeError("empty file")
    with _open(path) as container:
        if not container.streams.video:
            raise DecodeError("no video stream")
        stream = container.streams.video[0]
        if not stream.codec_context:
            raise DecodeError("no decoder for its codec")
        name, codec = container.format.name, stream.codec_context.name
        reorders = bool(stream.codec_context.has_b_frames)
        if stream.width * stream.height > config.max_pixels:
            raise DecodeError(f"frames of {stream.width}x{stream.height} are over the limit decode.max_pixels")
        index = [entry.size for entry in stream.index_entries]
        packets = [
            _Packet(_tick(packet), packet.duration or 0, packet.size, packet.is_discard, torn)
            for packet, torn in _packets(container, stream)
            if packet.size
        ]
        rate, second = float(stream.average_rate or stream.guessed_rate or 25), float(stream.time_base)
        announced = stream.duration * second if stream.duration else (container.duration or 0) / av.time_base
        if name == "avi":  # Of a cut file FFmpeg gives the duration of what is left.
            announced = max(announced, stream.frames * second)
        counts_from_nought = not stream.duration  # A container's own duration does, a stream's from its first frame.
    shown = [packet for packet in packets if not packet.is_discard]
    if not shown:
        raise DecodeError("no frames")
    # Packets too small for a picture stand for frames that were dropped; with B-frames they stand for delayed ones.
    pictures = [packet for packet in shown if packet.size > 8] if name == "avi" and not reorders else shown
    untimed = any(packet.tick is None for packet in pictures)
    ticks_N = np.arange(len(pictures)) / (rate * second) if untimed else np.sort([packet.tick for packet in pictures])
    times_N = ticks_N * second
    length = times_N[-1] - times_N[0]
    if length > config.max_duration:
        raise DecodeError(f"{length:.0f} s are over the limit decode.max_duration")

    read = length + max(pictures[-1].duration * second, 1 / rate) + (max(times_N[0], 0) if counts_from_nought else 0)
    cut_off = (announced - read) * rate if announced - read > max(CUT_OFF * announced, 3 / rate) else 0
    # Where it is not of keyframes alone, the index too knows how many there should be. Either may lie wildly.
    cut_off = round(min(max(cut_off, len(index) - len(packets)), 100 * len(pictures)))
    # AVI stores no presentation times: with B-frames FFmpeg can only guess them.
    counted = untimed or (name == "avi" and reorders)
    distrust = ""
    if name not in DECORD_SEEKS_RIGHT or counted:
        distrust = f"does not seek right in {name}"
    elif len(pictures) < len(shown):
        distrust = f"does not seek right in {name} with dropped frames"
    elif reorders and codec not in DECORD_REORDERS_RIGHT:
        distrust = f"does not seek right in {codec} with B-frames"
    elif any(packet.torn for packet in packets):
        distrust = "loses count where the container is damaged"
    elif not _plausible([packet.tick for packet in pictures], reorders):
        distrust = "would go by times that do not suit the codec"
    elif cut_off or (name == "avi" and index != [packet.size for packet in packets]):
        distrust = "loses count where packets are missing or the index is wrong"
    missing_M = times_N[-1] + np.arange(1, cut_off + 1) / rate
    present = len(times_N)
    if name == "avi" and len(index) > 1:
        # Its packets are told apart by counting them: from where they part from the index, none can be named.
        both = zip(index, packets, strict=False)
        agree = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1].size, both))
        present = present if agree == len(index) == len(packets) else max(agree - 1, 0)
    return Timeline(np.concatenate([times_N, missing_M]), present, counted, distrust)


def _plausible(ticks: list[int], reorders: bool) -> bool:
    """Whether times, in the order of decoding, may be those of a healthy stream: they run forwards where a codec does
    not reorder its frames; where it does, not all of them, and they are evenly spaced."""
    forwards = all(after > before for before, after in itertools.pairwise(ticks))
    steps = np.diff(np.sort(ticks))
    even = len(steps) == 0 or (steps.min() > 0 and steps.max() < 1.5 * steps.min())
    return even and not forwards if reorders else forwards


def read_decord(path: Path, timeline: Timeline, indices: np.ndarray) -> np.ndarray:
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
    if len(frames) != len(indices):
        raise DecodeError(f"gave {len(frames)} of {len(indices)} frames")
    if any(np.array_equal(*pair) for pair in itertools.pairwise(frames)):
        raise DecodeError("gave one frame twice")  # As it does for frames that it cannot find.
    return frames


def read_pyav(
    path: Path, timeline: Timeline, indices: np.ndarray, max_pixels: int = 7680 * 4320
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
    with _open(path) as container:
        stream = container.streams.video[0]
        stream.codec_context.options = {"err_detect": "explode", "max_pixels": str(max_pixels)}
        stream.codec_context.thread_count = 1
        converter = av.video.reformatter.VideoReformatter()  # One for all frames: to set it up is most of the work.
        clock_N = np.arange(timeline.present) if timeline.counted else timeline.times_N
        shown_frames, last = 0, -math.inf
        damaged_at = -math.inf  # The latest damage; what is shown is whole once a keyframe has come after it.
        whole = True
        for sent, (packet, torn) in enumerate(_packets(container, stream)):
            tick = _tick(packet)
            at = math.inf if tick is None else float(tick * stream.time_base)
            frames: list[av.VideoFrame] = []
            damage = [at] if torn else []
            try:
                frames = packet.decode()
                damage += [frame.time or math.inf for frame in frames if frame.is_corrupt]
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
def _open(path: Path) -> Iterator[av.container.InputContainer]:
    """Opens a video file, and nothing that it may refer to."""
    options = {"protocol_whitelist": "file", "format_whitelist": ",".join(CONTAINERS)}
    try:
        # The absolute path begins with a slash, so no name can be taken for a protocol, as `concat:a|b` would be.
        # What FFmpeg logs is captured, and so kept from the terminal.
        with (
            av.logging.Capture(),
            av.open(os.path.abspath(path), options=options, metadata_errors="replace") as container,
        ):
            yield container
    except av.ArgumentError:
        raise DecodeError("not a video container") from None
    except (av.FFmpegError, OSError) as error:
        raise DecodeError(error.strerror or first_line(error)) from None


def _packets(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[tuple[av.Packet, bool]]:
    """Yields the packets up to the end of the file, or up to where it can be read no further.

    With each comes whether the container is damaged just before or after it, so that it may be cut short, and others be
    lost. In MPEG streams a gap in the decoding times tells that.
    """
    previous: tuple[av.Packet, bool] | None = None
    gap = GAP / float((stream.average_rate or 25) * stream.time_base) if container.format.name in STREAMED else math.inf
    expected = math.inf
    with suppress(av.FFmpegError), av.logging.Capture() as log:
        for packet in container.demux(stream):
            torn = packet.is_corrupt or any(line[1] == container.format.name for line in log)
            log.clear()
            if packet.dts is not None:
                torn, expected = torn or packet.dts > expected, packet.dts + gap
            if previous:
                yield previous[0], previous[1] or torn
            previous = packet, torn
    if previous:
        yield previous


def _tick(packet: av.Packet) -> int | None:
    return packet.dts if packet.pts is None else packet.pts


@contextmanager
def _complaints() -> Iterator[list[str]]:
    """Collects what native code writes to standard error: the only place where decord tells of damage."""
    lines: list[str] = []
    terminal = os.dup(2)
    in_memory = hasattr(os, "memfd_create")  # So that no full disk swallows a complaint.
    with os.fdopen(os.memfd_create("complaints"), "rb") if in_memory else tempfile.TemporaryFile() as file:
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
    turns = frame.rotation // 90 % 4 if frame.rotation in (-270, -180, -90, 90, 180, 270) else 0
    height, width = frame.height, frame.width
    if earlier:
        shape = next(iter(earlier.values())).shape
        height, width = shape[:2] if turns % 2 == 0 else shape[1::-1]
    return np.rot90(converter.reformat(frame, width, height, "rgb24", threads=1).to_ndarray(), turns)
