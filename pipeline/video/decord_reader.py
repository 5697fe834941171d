"""Frames with decord, where it can be believed."""

import itertools
import os
import re
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch  # noqa: F401  (before decord: the other order can hang at import, dmlc/decord#293)

# isort: split
import av
import decord
import numpy as np

from pipeline.base.errors import first_line
from pipeline.video.timestamps import DecodeError, VideoTable

SEEKS_RIGHT = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi", "flv")
"""Containers in which decord lands on the frame that it seeks."""

REORDERS_RIGHT = ("h264", "hevc")
"""Codecs with B-frames of which decord returns the frame that it seeks; in MPEG-4 it returns a neighbour."""

CLOCK_ROUNDING = 5e-4
"""Seconds by which two clocks may differ on one frame; less than any frame lasts."""

FILTERS = ("in", "swscaler")
"""What remarks on healthy VP9 and MJPEG."""

COMPLAINT = re.compile(rf"^(\[((?P<filter>{'|'.join(FILTERS)})|[\w,]+) @ 0x[0-9a-f]+\] |\[\d\d:\d\d:\d\d\] )")
"""How the lines of FFmpeg's and of decord's log begin."""


def unsafe_reason(table: VideoTable) -> str:
    """Return why decord cannot be believed on a file, or ''."""
    ticks = [packet.tick for packet in table.packets if not packet.hidden]
    if table.container not in SEEKS_RIGHT or table.counted:
        return f"does not seek right in {table.container}"
    if table.container == "avi" and any(packet.hidden for packet in table.packets):
        return f"does not seek right in {table.container} with dropped frames"
    if table.reorders and table.codec not in REORDERS_RIGHT:
        return f"does not seek right in {table.codec} with B-frames"
    if not all(packet.idr for packet in table.packets if packet.key):
        return "does not seek right in open GOPs"
    if any(packet.corrupt for packet in table.packets):
        return "loses count where the container is damaged"
    if not _plausible(ticks, table.reorders):
        return "would go by times that do not suit the codec"
    if not table.indexed:
        return "loses count where packets are missing or the index is wrong"
    if table.streams > 1:
        return "may take another video stream"
    return "does not mirror the picture" if table.mirrored else ""


def _plausible(ticks: list[int], reorders: bool) -> bool:
    """Whether times, in decoding order, may be those of a healthy stream: ascending where a codec does not reorder its
    frames; where it does, not all of them, and evenly spaced."""
    ascending = all(after > before for before, after in itertools.pairwise(ticks))
    steps = np.diff(np.sort(ticks))
    even = len(steps) == 0 or (steps.min() > 0 and steps.max() < 1.5 * steps.min())
    return even and not ascending if reorders else ascending


def read_decord(path: Path, table: VideoTable, indices: np.ndarray) -> np.ndarray:
    """Fetch frames, uint8 [T,H,W,3].

    Raises:
        DecodeError: decord fails or cannot be believed.
    """
    if reason := unsafe_reason(table):
        raise DecodeError(reason, "decord")
    distinct, places = np.unique(indices, return_inverse=True)
    try:
        with complaints() as lines:
            decord.logging.set_level(decord.logging.INFO)
            reader = decord.VideoReader(os.path.abspath(path), num_threads=1, fault_tol=0)
            own_times_N = reader.get_frame_timestamp(np.arange(len(reader)))[:, 0]
            times_N = table.times_N - table.times_N[0] + own_times_N[0]
            same_length = len(own_times_N) == len(times_N)
            if not same_length or not np.allclose(own_times_N, times_N, rtol=1e-6, atol=CLOCK_ROUNDING):
                raise DecodeError("time table differs from the container's", "decord")
            frames = reader.get_batch(distinct).asnumpy()
            del reader  # Ends its threads, which may complain too.
    except (decord.DECORDError, RuntimeError, UnicodeEncodeError) as error:
        raise DecodeError(first_line(error), "decord") from None
    if lines:
        raise DecodeError(f"complains: {lines[0]}", "decord")
    return frames if len(frames) == len(places) else frames[places]


_one_at_a_time = threading.Lock()


@contextmanager
def complaints() -> Iterator[list[str]]:
    """Collect what decord and its FFmpeg log: the only place where they tell of damage.

    FFmpeg's log goes to standard error, or to PyAV where both use the same library. Other lines on standard error, of
    other threads, are passed on.
    """
    lines: list[str] = []
    with _one_at_a_time, tempfile.TemporaryFile() as file, av.logging.Capture(local=False) as log:
        terminal = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield lines
        finally:
            os.dup2(terminal, 2)
            file.seek(0)
            for line in file.read().splitlines(keepends=True):
                if match := COMPLAINT.match(text := line.decode(errors="replace")):
                    lines += [text.rstrip()] if match["filter"] is None else []
                else:
                    os.write(terminal, line)
            os.close(terminal)
            lines += [f"[{name}] {text.strip()}" for _, name, text in log if name not in FILTERS]
