"""The packet table of a video file: when each frame is shown and where its packet is, read without decoding.

Files come from strangers: only video containers are opened, none that can refer to other files or addresses.
"""

import functools
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
from pipeline.video.bitstream import is_idr

CONTAINERS = (
    *("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi", "flv", "asf", "mpegts", "mpeg", "mpegvideo", "h264", "hevc"),
    *("m4v", "ogg", "ivf", "gif", "mxf", "rm", "dv"),
)
"""FFmpeg's names of the containers that are opened. Playlists and scripts, which name other files, are not in it."""

STREAMED = ("mpegts", "mpeg")
"""Containers without an index, whose frames come at a steady rate."""

GAP = 1.75
"""Frames between two packets from which on some were lost in between; a repeated field makes it 1.5."""

CUT_OFF = 0.05
"""Share of the announced duration that must be missing before a file counts as cut off: headers are often a bit off."""

INTERLACED = (2, 3, 4, 5)
"""FFmpeg's AVFieldOrder of streams that may code the two fields of a frame as two pictures."""


class DecodeError(Exception):
    """A clip cannot be read: the reason in a few words, and the decoder that gave up."""

    def __init__(self, reason: str, decoder: str = "container"):
        super().__init__(reason)
        self.decoder = decoder


class Packet(NamedTuple):
    """One packet: presentation time in ticks (None: unknown), decoding time, duration, size and position in bytes;
    `hidden`: it gives no frame, by an edit list or because it holds none."""

    tick: int | None
    dts: int | None
    duration: int
    size: int
    pos: int | None
    key: bool
    idr: bool
    hidden: bool
    corrupt: bool


class VideoTable(NamedTuple):
    """Frames and packets of the video stream that players show.

    `times_N` float64: ascending seconds on the container's clock, of all frames that the file announces; the first
    `present` of them are there, the rest was cut off. `rows_N` is the row in `packets` (file order) of each present
    frame. `counted`: there are no presentation times, so frames are told apart by their packets' order. `paired`: a
    frame may be two packets, one per field. `packed`: a packet of MPEG-4 may hold a B-frame beside another frame, and a
    tiny one stand for it later. `indexed`: `packets` agree with the container's own index.
    """

    times_N: np.ndarray
    rows_N: np.ndarray
    packets: list[Packet]
    present: int
    counted: bool
    paired: bool
    packed: bool
    indexed: bool
    reorders: bool
    container: str
    codec: str
    streams: int
    mirrored: bool


def read_table(path: Path, max_pixels: float = math.inf, max_duration: float = math.inf) -> VideoTable:
    """Read the packet table; the latest few files are cached.

    Raises:
        DecodeError: not a readable video, or over the limits `max_pixels` (of a frame), `max_duration` (seconds).
    """
    try:
        stat = os.stat(path)
    except OSError as error:
        raise DecodeError(error.strerror) from None
    if os.path.isfile(path) and stat.st_size == 0:
        raise DecodeError("empty file")
    table = _read_table(os.path.abspath(path), stat.st_size, stat.st_mtime_ns, max_pixels)
    length = table.times_N[table.present - 1] - table.times_N[0] if table.present else 0
    if length > max_duration:
        raise DecodeError(f"{length:.0f} s are over the limit decode.max_duration")
    return table


@functools.lru_cache(maxsize=4)  # Many clips may be segments of one file.
def _read_table(path: str, size: int, mtime_ns: int, max_pixels: float) -> VideoTable:
    with open_video(path) as (container, stream):
        codec = stream.codec_context
        name, reorders = container.format.name, bool(codec.has_b_frames)
        if stream.width * stream.height > max_pixels:
            raise DecodeError(f"frames of {stream.width}x{stream.height} are over the limit decode.max_pixels")
        index = [entry.size for entry in stream.index_entries]
        packets, mirrored, packed = _read_packets(container, stream)
        rate, second = float(stream.average_rate or stream.guessed_rate or 25), float(stream.time_base)
        announced = stream.duration * second if stream.duration else (container.duration or 0) / av.time_base
        if name == "avi":  # Of a cut file FFmpeg gives the duration of what is left.
            announced = max(announced, stream.frames * second)
        counts_from_zero = not stream.duration  # A container's duration does; a stream's counts from its first frame.
        streams = sum(not other.disposition & av.stream.Disposition.attached_pic for other in container.streams.video)
        paired = codec.name == "h264" and name in (*STREAMED, "h264") and codec.field_order in INTERLACED

    rows = [row for row, packet in enumerate(packets) if not packet.hidden]
    if paired:
        rows = _first_fields(packets, rows, 0.75 / (rate * second))
    if not rows:
        raise DecodeError("no frames")
    untimed = any(packets[row].tick is None for row in rows)
    counted = untimed or (name == "avi" and reorders)  # AVI stores no presentation times: FFmpeg guesses them.
    if not counted:
        rows.sort(key=lambda row: packets[row].tick)
    times_N = np.arange(len(rows)) / rate if counted else np.array([packets[row].tick for row in rows]) * second

    length = times_N[-1] - times_N[0]
    read = length + max(packets[rows[-1]].duration * second, 1 / rate)
    read += max(times_N[0], 0) if counts_from_zero else 0
    cut_off = (announced - read) * rate if announced - read > max(CUT_OFF * announced, 3 / rate) else 0
    # Where it is not of keyframes alone, the index too knows how many there should be. Either may lie wildly.
    cut_off = round(min(max(cut_off, len(index) - len(packets)), 100 * len(rows)))
    missing_M = times_N[-1] + np.arange(1, cut_off + 1) / rate
    sizes = [packet.size for packet in packets]
    present = len(rows)
    if name == "avi" and len(index) > 1 and index != sizes:
        # AVI numbers its packets by counting: from where they differ from the index, none can be identified.
        agree = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(index, sizes, strict=False)))
        present = min(present, max(agree - 1, 0))
    return VideoTable(
        times_N=np.concatenate([times_N, missing_M]),
        rows_N=np.array(rows),
        packets=packets,
        present=present,
        counted=counted,
        paired=paired,
        packed=packed,
        indexed=not cut_off and (name != "avi" or index == sizes),
        reorders=reorders,
        container=name,
        codec=codec.name,
        streams=streams,
        mirrored=mirrored,
    )


def _read_packets(container: av.container.InputContainer, stream: av.VideoStream) -> tuple[list[Packet], bool, bool]:
    """Read all packets, whether the display matrix mirrors the picture, which only a decoded frame tells, and whether
    B-frames are packed."""
    packets: list[Packet] = []
    avi, packed, late = container.format.name == "avi", False, False
    mirrored, undecoded = False, container.format.name in ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")
    extradata = stream.codec_context.extradata
    for packet, corrupt in _packets_of(container, stream):
        if not packet.size:
            continue
        # In AVI, packets too small for a picture stand for dropped frames, or for a B-frame packed into one before.
        empty = avi and packet.size <= 8 and not late
        if avi and stream.codec_context.name == "mpeg4":
            pictures = bytes(packet).count(b"\0\0\1\xb6")
            late = pictures > 1 or (late and packet.size > 8)
            packed = packed or late
        idr = packet.is_keyframe and is_idr(stream.codec_context.name, extradata, packet)
        packets.append(
            Packet(
                *(packet.dts if packet.pts is None else packet.pts, packet.dts, packet.duration or 0, packet.size),
                *(packet.pos, packet.is_keyframe, idr, packet.is_discard or empty, corrupt),
            )
        )
        if undecoded:
            try:
                frames = packet.decode()
            except av.FFmpegError:
                undecoded = False
                continue
            mirrored = any(_is_mirrored(frame) for frame in frames)
            undecoded = not frames and len(packets) < 32
    return packets, mirrored, packed


def _is_mirrored(frame: av.VideoFrame) -> bool:
    matrix = display_matrix(frame)
    return matrix is not None and np.linalg.det(matrix) < 0


def display_matrix(frame: av.VideoFrame) -> np.ndarray | None:
    """Return the upper left 2x2 of a frame's display matrix, None if it has none."""
    for data in frame.side_data:
        if data.type == av.sidedata.sidedata.Type.DISPLAYMATRIX:
            return np.frombuffer(bytes(data), np.int32).reshape(3, 3)[:2, :2] / 65536
    return None


def _first_fields(packets: list[Packet], rows: list[int], half: float) -> list[int]:
    """Keep the rows that begin a frame; the second field follows at once, without a time or half a frame later."""
    firsts: list[int] = []
    for row in rows:
        before = packets[firsts[-1]] if firsts and firsts[-1] == row - 1 else None
        dts = packets[row].dts
        if before is None or (dts is not None and before.dts is not None and dts - before.dts > half):
            firsts.append(row)
    return firsts


@contextmanager
def open_video(path: str | Path) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    """Open a video file, and nothing that it may refer to, with the stream that players show.

    Raises:
        DecodeError: it cannot be opened, or has no video.
    """
    options = {"protocol_whitelist": "file", "format_whitelist": ",".join(CONTAINERS)}
    if (av.logging.get_level() or 0) < av.logging.ERROR:
        av.logging.set_level(av.logging.ERROR)  # Else damage to the container would not be logged.
    try:
        # The absolute path begins with a slash, so no name can be taken for a protocol, as `concat:a|b` would be.
        # What FFmpeg logs is captured, and so kept from the terminal.
        with (
            av.logging.Capture(),
            av.open(os.path.abspath(path), options=options, metadata_errors="replace") as container,
        ):
            covers = av.stream.Disposition.attached_pic | av.stream.Disposition.timed_thumbnails
            films = [stream for stream in container.streams.video if not stream.disposition & covers]
            best = container.streams.best("video")
            if not films:
                raise DecodeError("no video stream")
            stream = best if best in films else films[0]
            if not stream.codec_context:
                raise DecodeError("no decoder for its codec")
            yield container, stream
    except av.ArgumentError:
        raise DecodeError("not a video container") from None
    except (av.FFmpegError, OSError) as error:
        raise DecodeError(error.strerror or first_line(error)) from None


def _packets_of(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[tuple[av.Packet, bool]]:
    """Yield the packets up to the end of what can be read, each with whether the container is damaged next to it.

    Next to damage a packet may be cut short, and others lost. In MPEG streams a gap in the decoding times tells that.
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
