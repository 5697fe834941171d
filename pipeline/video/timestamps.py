"""Video file -> when each of its frames is shown, read from the container's packets without decoding.

Files come from strangers: only video containers are opened, none that can refer to other files or addresses.
"""

import itertools
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np

from pipeline.base.errors import first_line

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


class DecodeError(Exception):
    """A clip that cannot be read; the message is the reason in a few words, `decoder` who found it."""

    def __init__(self, reason: str, decoder: str = "container"):
        super().__init__(reason)
        self.decoder = decoder


class Timestamps(NamedTuple):
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
    corrupt: bool


def read_timestamps(path: Path, max_pixels: float = math.inf, max_duration: float = math.inf) -> Timestamps:
    """Reads when each frame is shown from the container's packets, without decoding.

    Args:
        path: a video file.
        max_pixels: pixels of a frame that are still allowed.
        max_duration: seconds that are still allowed.

    Raises:
        DecodeError: not a readable video, or one over the limits.
    """
    if path.is_file() and path.stat().st_size == 0:
        raise DecodeError("empty file")
    with open_video(path) as container:
        if not container.streams.video:
            raise DecodeError("no video stream")
        stream = container.streams.video[0]
        if not stream.codec_context:
            raise DecodeError("no decoder for its codec")
        name, codec = container.format.name, stream.codec_context.name
        reorders = bool(stream.codec_context.has_b_frames)
        if stream.width * stream.height > max_pixels:
            raise DecodeError(f"frames of {stream.width}x{stream.height} are over the limit decode.max_pixels")
        index = [entry.size for entry in stream.index_entries]
        packets = [
            _Packet(tick_of(packet), packet.duration or 0, packet.size, packet.is_discard, corrupt)
            for packet, corrupt in packets_of(container, stream)
            if packet.size
        ]
        rate, second = float(stream.average_rate or stream.guessed_rate or 25), float(stream.time_base)
        announced = stream.duration * second if stream.duration else (container.duration or 0) / av.time_base
        if name == "avi":  # Of a cut file FFmpeg gives the duration of what is left.
            announced = max(announced, stream.frames * second)
        counts_from_zero = not stream.duration  # A container's duration does; a stream's counts from its first frame.
    shown = [packet for packet in packets if not packet.is_discard]
    if not shown:
        raise DecodeError("no frames")
    # Packets too small for a picture stand for frames that were dropped; with B-frames they stand for delayed ones.
    pictures = [packet for packet in shown if packet.size > 8] if name == "avi" and not reorders else shown
    untimed = any(packet.tick is None for packet in pictures)
    ticks_N = np.arange(len(pictures)) / (rate * second) if untimed else np.sort([packet.tick for packet in pictures])
    times_N = ticks_N * second
    length = times_N[-1] - times_N[0]
    if length > max_duration:
        raise DecodeError(f"{length:.0f} s are over the limit decode.max_duration")

    read = length + max(pictures[-1].duration * second, 1 / rate) + (max(times_N[0], 0) if counts_from_zero else 0)
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
    elif any(packet.corrupt for packet in packets):
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
    return Timestamps(np.concatenate([times_N, missing_M]), present, counted, distrust)


def _plausible(ticks: list[int], reorders: bool) -> bool:
    """Whether times, in the order of decoding, may be those of a healthy stream: they run forwards where a codec does
    not reorder its frames; where it does, not all of them, and they are evenly spaced."""
    forwards = all(after > before for before, after in itertools.pairwise(ticks))
    steps = np.diff(np.sort(ticks))
    even = len(steps) == 0 or (steps.min() > 0 and steps.max() < 1.5 * steps.min())
    return even and not forwards if reorders else forwards


@contextmanager
def open_video(path: Path) -> Iterator[av.container.InputContainer]:
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


def packets_of(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[tuple[av.Packet, bool]]:
    """Yields the packets up to the end of the file, or up to where it can be read no further.

    With each comes whether the container is damaged just before or after it, so that it may be cut short, and others be
    lost. In MPEG streams a gap in the decoding times tells that.
    """
    previous: tuple[av.Packet, bool] | None = None
    gap = GAP / float((stream.average_rate or 25) * stream.time_base) if container.format.name in STREAMED else math.inf
    expected = math.inf
    with suppress(av.FFmpegError), av.logging.Capture() as log:
        for packet in container.demux(stream):
            corrupt = packet.is_corrupt or any(line[1] == container.format.name for line in log)
            log.clear()
            if packet.dts is not None:
                corrupt, expected = corrupt or packet.dts > expected, packet.dts + gap
            if previous:
                yield previous[0], previous[1] or corrupt
            previous = packet, corrupt
    if previous:
        yield previous


def tick_of(packet: av.Packet) -> int | None:
    return packet.dts if packet.pts is None else packet.pts
