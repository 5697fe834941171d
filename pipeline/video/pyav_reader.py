"""Frames with PyAV: start at the keyframe before, identify every packet in the packet table, stop at damage."""

import bisect
import itertools
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import av
import numpy as np
from av.bitstream import BitStreamFilterContext

from pipeline.video.timestamps import Packet, VideoTable, is_disposable, open_video

BY_BYTE = ("mpegts", "mpeg", "mpegvideo", "h264", "hevc", "m4v")  # Containers without an index.
ONE_TO_ONE = ("h264", "hevc", "mpeg4", "mpeg2video", "mpeg1video")  # Codecs in which every packet gives a frame.


def read_pyav(
    path: Path, table: VideoTable, indices: np.ndarray, max_pixels: int, transform: Callable | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Decode the frames that are certain; return their indices, int64 [T], ascending, and pixels, uint8 [T,H,W,3], or
    what `transform` makes of each frame's pixels.

    A frame is identified by the packet that it was made from; where the container has no presentation times, by the
    packet that made the decoder return it: from its first frames on, a decoder returns at most one for each packet.
    After damage no frame is taken up to the next keyframe. Frames of another size than the first are scaled to it."""
    found: list[int] = []
    wanted = deque(index for index in dict.fromkeys(indices.tolist()) if index < table.present)
    pixels, convert = np.empty((0, 0, 0, 3), np.uint8), Converter()
    with ExitStack() as files:
        stream = _Stream(files, path, table, max_pixels)
        while wanted:
            first = wanted[0]
            for start in stream.starts(first):
                for index, frame in stream.frames_from(start, set(wanted)):
                    if index > first and first not in found:
                        break  # It cannot be decoded from here.
                    while wanted and wanted[0] < index:
                        wanted.popleft()
                    if wanted and wanted[0] == index:
                        picture = transform(convert(frame)) if transform else convert(frame)
                        pixels = pixels if found else np.empty((len(wanted), *picture.shape), np.uint8)
                        pixels[len(found)] = picture
                        found.append(wanted.popleft())
                    if not wanted or (first in found and stream.should_jump(wanted[0])):
                        break
                if first in found or stream.damaged:
                    break
            while wanted and (wanted[0] == first or (stream.damaged and not stream.should_jump(wanted[0]))):
                wanted.popleft()  # Lost.
    return np.array(found, np.int64), pixels[: len(found)]


class _Stream:
    def __init__(self, files: ExitStack, path: Path, table: VideoTable, max_pixels: int):
        self.files, self.path, self.table, self.max_pixels = files, path, table, max_pixels
        self.index_of = {row: index for index, row in enumerate(table.rows_N.tolist())}
        self.keys = [n for n, p in enumerate(table.packets) if n == 0 or (p.key and not p.corrupt and not p.hidden)]
        self._open()

    def _open(self) -> None:
        self.files.close()
        self.container, self.stream = self.files.enter_context(open_video(self.path))
        codec = self.codec = self.stream.codec_context
        self.delay = codec.reorder_depth
        codec.options = {"err_detect": "explode", "max_pixels": str(self.max_pixels)}
        codec.thread_count = 1
        # Makes every packet hold one frame, so that an unwanted one can be skipped.
        self.unpack = BitStreamFilterContext("mpeg4_unpack_bframes", self.stream) if self.table.packed else None
        self.fresh = True

    def starts(self, index: int) -> Iterator[int]:
        """Yield rows of keyframes from which the frame may be decodable: the nearest, the one before, the first."""
        packets, row = self.table.packets, int(self.table.rows_N[index])
        at = bisect.bisect_right(self.keys, row) - 1
        while at and not self.table.counted and (packets[self.keys[at]].tick or 0) > packets[row].tick:
            at -= 1  # The frame is shown before this keyframe, so it may refer to the one before.
        yield from dict.fromkeys([self.keys[at], self.keys[max(at - 1, 0)], 0])

    def should_jump(self, index: int) -> bool:
        """Whether a keyframe lies between what was sent and the wanted frame."""
        return next(self.starts(index)) >= self.sent

    def frames_from(self, start: int, wanted: set[int]) -> Iterator[tuple[int, av.VideoFrame]]:
        """Yield (index, frame) in order of presentation up to damage or the end; unwanted frames may be left out."""
        table, late = self.table, set()  # Frames sent to the decoder and not yet returned.
        # H.264 without presentation times needs all frames for its order.
        skips = not table.paired and not (table.counted and table.codec == "h264")
        self.damaged = begun = False  # Stopped at damage; has returned a frame.
        self.sent = start  # The row after the latest that went into the decoder.
        # After a start in mid-stream, FFmpeg returns no frame of H.264 before it has all that the frame refers to.
        whole = start == 0 or table.codec == "h264"
        for row, packet in zip(itertools.count(start), self._packets_from(start)):
            known = table.packets[row] if row < len(table.packets) else None
            if known and not self._is(packet, known) or bool(known) != bool(packet.size):
                return
            self.sent = row + 1
            if self.unpack and known:
                packet = self.unpack.filter(packet)[0]
            index = self._index(row)
            if index not in wanted and skips and known and is_disposable(table.codec, self.codec.extradata, packet):
                continue
            if index >= 0:
                late.add(index)
            packet.pts = row  # The decoder hands it on to the frame.
            try:
                frames = self.codec.decode(packet)
            except av.FFmpegError:
                frames = None
            damaged = frames is None or (known and known.corrupt) or any(frame.is_corrupt for frame in frames)
            # Another stream was spliced in, whose frames come with another delay.
            damaged = damaged or (table.counted and self.codec.reorder_depth != self.delay)
            shown = [index + n if table.counted else self._index(frame.pts) for n, frame in enumerate(frames or ())]
            late -= set(shown)
            if begun and known and table.codec in ONE_TO_ONE and not damaged:
                overtaken = bool(late and shown) and min(late) < max(shown)
                damaged = len(shown) != 1 and index >= 0 if table.counted else overtaken
            if damaged:
                self.damaged = begun or start == 0
                if not self.damaged:
                    self.keys.remove(start)
                return
            for index, frame in zip(shown, frames, strict=True):
                whole = whole or bool(frame.key_frame)
                if not whole and index >= self._index(start):
                    self.keys.remove(start)  # Not a keyframe, although the container marks it as one.
                    return
                if whole and index >= 0:
                    if not begun:  # Leading frames of an open GOP never come.
                        begun, late = True, {n for n in late if n > index}
                    yield index, frame

    def _index(self, row: int) -> int:
        """Return the index of the frame of a packet, or of the one that it makes the decoder return; negative: none."""
        if not self.table.counted:
            return self.index_of.get(row, -1)
        # Frames at the end of the stream come without a packet.
        return self.index_of.get(row, len(self.index_of) if row == len(self.table.packets) else -1) - self.delay

    def _packets_from(self, start: int) -> Iterator[av.Packet]:
        """Yield the packets from a row on, and nothing if the container does not find it."""
        if start == 0 and not self.fresh:
            self._open()
        fresh, self.fresh, target = self.fresh, False, self.table.packets[start]
        with suppress(av.FFmpegError):
            if start:
                self._seek(start, fresh)
            for packet in self.container.demux(self.stream):
                if not packet.size and packet.dts is not None:
                    continue
                if target and not self._is(packet, target):
                    if not packet.size or (packet.is_keyframe and (packet.dts or 0) > (target.dts or 0)):
                        return  # Passed the target packet.
                    continue
                target = None
                yield packet

    def _is(self, packet: av.Packet, known: Packet) -> bool:
        if self.table.container in BY_BYTE:  # Decoding times, and which packets have a position, depend on the start.
            same = packet.pos == known.pos or packet.pos is None or known.pos is None
        else:
            same = (packet.pos, packet.dts) == (known.pos, known.dts)
        return same and (packet.size, packet.is_keyframe) == (known.size, known.key)

    def _seek(self, start: int, fresh: bool) -> None:
        if fresh:  # The first packet may hold headers that later frames need.
            with suppress(av.FFmpegError, StopIteration):
                next(self.container.demux(self.stream)).decode()
        packet = self.table.packets[start]
        if self.table.container in BY_BYTE:
            before = reversed(self.table.packets[: start + 1])
            pos = next((packet.pos for packet in before if packet.pos is not None), 0)
            self.container.seek(pos, stream=self.stream, unsupported_byte_offset=True)
        else:
            self.container.seek(packet.tick or 0 if packet.dts is None else packet.dts, stream=self.stream)
        self.codec.flush_buffers()
        if self.unpack:
            self.unpack.flush()


class Converter:
    """Frames of a file -> RGB as players show it, of the size of the first, uint8 [H,W,3]. HDR is not tone-mapped."""

    def __init__(self) -> None:
        self.reformatter = av.video.reformatter.VideoReformatter()  # Reused, because its setup is most of the work.
        self.shape: tuple[int, int] | None = None

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        mirrored, turns = orientation(frame)
        height, width = frame.height, frame.width
        if self.shape:
            height, width = self.shape if turns % 2 == 0 else self.shape[::-1]
        rgb = self.reformatter.reformat(frame, width, height, "rgb24", threads=1).to_ndarray()
        picture = np.rot90(rgb[:, ::-1] if mirrored else rgb, turns)
        self.shape = self.shape or picture.shape[:2]
        return picture


def orientation(frame: av.VideoFrame) -> tuple[bool, int]:
    """Return whether to mirror the picture left-right, and the quarter turns counterclockwise after that."""
    for data in frame.side_data:
        if data.type == av.sidedata.sidedata.Type.DISPLAYMATRIX:
            matrix = np.frombuffer(bytes(data), np.int32).reshape(3, 3)[:2, :2] / 65536
            mirrored = bool(np.linalg.det(matrix) < 0)
            a, b = matrix[0] * (-1 if mirrored else 1)  # Where the stored x axis points, y down.
            turns = np.degrees(np.arctan2(-b, a)) / 90
            return mirrored, round(turns) % 4 if abs(turns - round(turns)) < 0.01 else 0
    return False, 0
