"""The packet table of a video file: when each frame is shown and where its packet is, read without decoding."""

import functools
import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np

from pipeline.base.errors import first_line

# FFmpeg's names of the containers that are opened: none that can refer to other files or addresses, as playlists do.
FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,flv,asf,mpegts,mpeg,mpegvideo,h264,hevc,m4v,ogg,ivf,gif,mxf,rm,dv"
STREAMED = ("mpegts", "mpeg")  # Containers without an index, whose frames come at a steady rate.
GAP = 1.75  # Frames between two packets above which some were lost; a repeated field makes it 1.5.
CUT_OFF = 0.05  # Missing fraction of the announced duration above which a file is cut off: headers are a bit off.
INTERLACED = (2, 3, 4, 5)  # FFmpeg's AVFieldOrder of streams whose frames may be two pictures, one per field.
IDR = {"h264": (5,), "hevc": (19, 20)}  # NAL unit types (ITU-T H.264, table 7-1; H.265, table 7-1).
PICTURE_HEADERS = {  # Patterns of B-frames, and of all frames (ISO/IEC 14496-2, 6.2.5; ITU-T H.262, 6.2.3).
    "mpeg4": (rb"\x00\x00\x01\xb6[\x80-\xbf]", rb"\x00\x00\x01\xb6."),
    "mpeg2video": (rb"\x00\x00\x01\x00.[\x18-\x1f\x58-\x5f\x98-\x9f\xd8-\xdf]", rb"\x00\x00\x01\x00."),
}


class DecodeError(Exception):
    """A clip cannot be read: why, and which decoder failed."""

    def __init__(self, reason: str, decoder: str = "container"):
        super().__init__(reason)
        self.decoder = decoder


class Packet(NamedTuple):
    tick: int | None  # Presentation time.
    dts: int | None  # Decoding time.
    duration: int  # In ticks, as the times.
    size: int
    pos: int | None  # In bytes.
    key: bool
    idr: bool
    hidden: bool  # It gives no frame, by an edit list or because it is empty.
    corrupt: bool  # The container is damaged next to it, so it may be cut short, and others lost.


class VideoTable(NamedTuple):
    """Frames and packets of the video stream that players show."""

    times_N: np.ndarray  # float64: ascending seconds on the container's clock, of all frames that the file announces.
    rows_N: np.ndarray  # The row in `packets` of each frame that the file holds.
    packets: list[Packet]  # In file order.
    present: int  # Number of frames that can be identified; the rest is cut off.
    counted: bool  # There are no presentation times, so frames are identified by their packets' order.
    paired: bool  # A frame may be two packets, one per field.
    packed: bool  # An MPEG-4 packet may hold a B-frame beside another frame, and a tiny one stand for it later.
    indexed: bool  # `packets` agree with the container's own index.
    reorders: bool
    container: str
    codec: str


def read_table(path: Path, max_pixels: float = math.inf, max_duration: float = math.inf) -> VideoTable:
    """Read the packet table, or raise `DecodeError`. Limits: pixels per frame, and seconds."""
    try:
        stat = os.stat(path)
    except OSError as error:
        raise DecodeError(error.strerror) from None
    if not os.path.isfile(path) or not stat.st_size:
        raise DecodeError("empty file" if os.path.isfile(path) else "not a regular file")
    return _read_table(os.path.abspath(path), stat.st_size, stat.st_mtime_ns, max_pixels, max_duration)


@functools.lru_cache(maxsize=4)  # Many clips may be segments of one file, which is then read once.
def _read_table(path: str, size: int, mtime_ns: int, max_pixels: float, max_duration: float) -> VideoTable:
    with open_video(path) as (container, stream):
        codec, name = stream.codec_context, container.format.name
        if stream.width * stream.height > max_pixels:
            raise DecodeError(f"frame size {stream.width}x{stream.height} exceeds decode.max_pixels")
        reorders = bool(codec.has_b_frames)
        index = [entry.size for entry in stream.index_entries]
        packets, packed = _read_packets(container, stream)
        rate, second = float(stream.average_rate or stream.guessed_rate or 25), float(stream.time_base)
        announced = stream.duration * second if stream.duration else (container.duration or 0) / av.time_base
        if name == "avi":  # For truncated files FFmpeg reports the remaining duration.
            announced = max(announced, stream.frames * second)
        counts_from_zero = not stream.duration  # A container's duration does; a stream's counts from its first frame.
        paired = codec.name == "h264" and name in (*STREAMED, "h264") and codec.field_order in INTERLACED

    rows = [row for row, packet in enumerate(packets) if not packet.hidden]
    if paired:
        rows, candidates, half = [], rows, 0.75 / (rate * second)
        for row in candidates:  # A second field follows the first at once, without a time or half a frame later.
            dts, before = packets[row].dts, packets[row - 1].dts
            if rows[-1:] != [row - 1] or (dts is not None and before is not None and dts - before > half):
                rows.append(row)
    if not rows:
        raise DecodeError("no frames")
    # AVI stores no presentation times: FFmpeg guesses them.
    counted = any(packets[row].tick is None for row in rows) or (name == "avi" and reorders)
    if not counted:
        rows.sort(key=lambda row: packets[row].tick)
    times_N = np.arange(len(rows)) / rate if counted else np.array([packets[row].tick for row in rows]) * second

    length = times_N[-1] - times_N[0]
    if length > max_duration:
        raise DecodeError(f"duration {length:.0f} s exceeds decode.max_duration")
    read = length + max(packets[rows[-1]].duration * second, 1 / rate)
    read += max(times_N[0], 0) if counts_from_zero else 0
    cut_off = (announced - read) * rate if announced - read > max(CUT_OFF * announced, 3 / rate) else 0
    # Unless it lists only keyframes, the index also gives the number of packets. Both can be far off.
    cut_off = round(min(max(cut_off, len(index) - len(packets)), 100 * len(rows)))
    present, sizes = len(rows), [packet.size for packet in packets]
    if name == "avi" and len(index) > 1 and index != sizes:
        # AVI numbers its packets by counting: from where they differ from the index, none can be identified.
        differ = (n for n, pair in enumerate(zip(index, sizes, strict=False)) if pair[0] != pair[1])
        present = min(present, max(next(differ, min(len(index), len(sizes))) - 1, 0))
    rows_N, indexed = np.array(rows), not cut_off and (name != "avi" or index == sizes)
    times_N = np.concatenate([times_N, times_N[-1] + np.arange(1, cut_off + 1) / rate])
    return VideoTable(times_N, rows_N, packets, present, counted, paired, packed, indexed, reorders, name, codec.name)


def _read_packets(container: av.container.InputContainer, stream: av.VideoStream) -> tuple[list[Packet], bool]:
    """Read all packets up to the end of what can be read, and whether B-frames are packed."""
    packets: list[Packet] = []
    name, codec, extradata = container.format.name, stream.codec_context.name, stream.codec_context.extradata
    packed, expected, late = False, math.inf, None  # late: row of a packed B-frame without its tiny packet so far.
    # In MPEG streams a gap in the decoding times shows that packets were lost.
    gap = GAP / float((stream.average_rate or 25) * stream.time_base) if name in STREAMED else math.inf
    with suppress(av.FFmpegError), av.logging.Capture() as log:
        for packet in container.demux(stream):
            corrupt = packet.is_corrupt or any(line[1] == name for line in log)
            log.clear()
            if packet.dts is not None:
                corrupt, expected = corrupt or packet.dts > expected, packet.dts + gap
            if corrupt and packets:
                packets[-1] = packets[-1]._replace(corrupt=True)
            if not packet.size:
                continue
            # In AVI, packets too small for a picture stand for dropped frames, or for a B-frame packed into one before.
            empty = name == "avi" and packet.size <= 8 and late is None
            if name == "avi" and codec == "mpeg4":
                pictures = bytes(packet).count(b"\0\0\1\xb6")
                if late is not None and (pictures > 1 or packet.is_keyframe):  # Damage: no tiny packet stood for it.
                    packets[late] = packets[late]._replace(corrupt=True)
                packed = packed or (late is not None and packet.size <= 8)
                late = len(packets) if pictures > 1 else late if packet.size > 8 else None
            idr = packet.is_keyframe and is_idr(codec, extradata, packet)
            tick, hidden = packet.dts if packet.pts is None else packet.pts, packet.is_discard or empty
            place = packet.duration or 0, packet.size, packet.pos
            packets.append(Packet(tick, packet.dts, *place, packet.is_keyframe, idr, hidden, corrupt))
    return packets, packed


def is_idr(codec: str, extradata: bytes | None, packet: av.Packet) -> bool:
    """Whether no picture after a keyframe packet refers to one before it; True in codecs other than H.264 and HEVC.

    Containers mark open GOPs and intra-refresh points as keyframes too."""
    if codec not in IDR:
        return True
    shift, mask = (0, 31) if codec == "h264" else (1, 63)
    return any(header >> shift & mask in IDR[codec] for header in _nal_headers(codec, extradata, bytes(packet)))


def is_disposable(codec: str, extradata: bytes | None, packet: av.Packet) -> bool:
    """Whether no picture refers to those of a packet, so decoding can skip it; False where that is unknown."""
    data = bytes(packet)
    if codec == "h264":
        slices = [header for header in _nal_headers(codec, extradata, data) if 1 <= header & 31 <= 5]
        return bool(slices) and not any(header >> 5 for header in slices)
    if codec not in PICTURE_HEADERS:
        return False
    disposable, every = (re.findall(pattern, data, re.DOTALL) for pattern in PICTURE_HEADERS[codec])
    return len(disposable) == len(every) > 0


def _nal_headers(codec: str, extradata: bytes | None, data: bytes) -> Iterator[int]:
    """Yield the first byte of each NAL unit, after a start code (Annex B) or a length (MP4, Matroska)."""
    if not extradata or extradata[0] != 1:
        yield from (match[1][0] for match in re.finditer(rb"\x00\x00\x01(.)", data, re.DOTALL))
        return
    width = (extradata[4 if codec == "h264" else 21] & 3) + 1
    at = 0
    while at + width < len(data):
        yield data[at + width]
        at += width + int.from_bytes(data[at : at + width])


@contextmanager
def open_video(path: str | Path) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    """Open a video file, and nothing that it may refer to, with the stream that players show; raises `DecodeError`."""
    options = {"protocol_whitelist": "file", "format_whitelist": FORMATS}
    name = os.path.abspath(path)  # Begins with a slash, so it is not taken for a protocol, as `concat:a|b` would be.
    av.logging.set_level(max(av.logging.get_level() or 0, av.logging.ERROR))  # Damage is only seen in FFmpeg's log,
    av.logging.set_skip_repeated(False)  # where PyAV by default leaves out the second of two equal lines.
    try:
        # Capturing FFmpeg's log keeps it off the terminal.
        with av.logging.Capture(), av.open(name, options=options, metadata_errors="replace") as container:
            covers = av.stream.Disposition.attached_pic | av.stream.Disposition.timed_thumbnails
            video_streams = [stream for stream in container.streams.video if not stream.disposition & covers]
            best = container.streams.best("video")
            stream = best if best in video_streams else next(iter(video_streams), None)
            if not stream or not stream.codec_context:
                raise DecodeError("no decoder for its codec" if stream else "no video stream")
            yield container, stream
    except av.ArgumentError:
        raise DecodeError("not a video container") from None
    except (av.FFmpegError, OSError) as error:
        raise DecodeError(error.strerror or first_line(error)) from None
