"""Frames with decord, where its seeking is reliable."""

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
from pipeline.video.picture import orientation
from pipeline.video.sampling import ROUNDING
from pipeline.video.timestamps import DecodeError, VideoTable, open_video

# Where decord returns the frame that it seeks: containers, and codecs with B-frames. In MPEG-4 it returns a neighbour.
SEEKS_RIGHT = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi", "flv")
REORDERS_RIGHT = ("h264", "hevc")
FILTERS = ("in", "swscaler")  # They warn about healthy VP9 and MJPEG.
COMPLAINT = re.compile(r"\[([\w,]+) @ 0x[0-9a-f]+\] |\[\d\d:\d\d:\d\d\] ")  # Begins a line of FFmpeg's or decord's log.

_one_at_a_time = threading.Lock()


def unsafe_reason(path: Path, table: VideoTable) -> str:
    """Return why decord is unreliable on a file, or ''."""
    drops = table.container == "avi" and any(packet.hidden for packet in table.packets)
    closed = all(packet.idr for packet in table.packets if packet.key)
    reordered = table.counted or (table.reorders and table.codec not in REORDERS_RIGHT)
    if table.container not in SEEKS_RIGHT or reordered or not closed or drops:
        return f"does not seek right in this file ({table.container}, {table.codec})"
    if not table.indexed or any(packet.corrupt for packet in table.packets):
        return "loses count where packets are damaged or missing, or the index is wrong"
    ticks = [packet.tick for packet in table.packets if not packet.hidden]
    ascending = all(after > before for before, after in itertools.pairwise(ticks))
    steps = np.diff(np.sort(ticks))
    even = len(steps) == 0 or (steps.min() > 0 and steps.max() < 1.5 * steps.min())
    if ascending == table.reorders or (table.reorders and not even):
        return "seeks by time, and the times do not suit the codec"
    with open_video(path) as (container, stream):
        if sum(not other.disposition & av.stream.Disposition.attached_pic for other in container.streams.video) > 1:
            return "may take another video stream"
        shown_as_stored = (orientation(frame) == (False, 0) for frame in container.decode(stream))
        return "" if next(shown_as_stored, False) else "does not show a turned or mirrored picture as players do"


def read_decord(path: Path, table: VideoTable, indices: np.ndarray) -> np.ndarray:
    """Read frames, uint8 [T,H,W,3]; raises `DecodeError` where decord fails or is unreliable."""
    if reason := unsafe_reason(path, table):
        raise DecodeError(reason, "decord")
    distinct, places = np.unique(indices, return_inverse=True)
    try:
        with complaints() as lines:
            decord.logging.set_level(decord.logging.INFO)
            reader = decord.VideoReader(os.path.abspath(path), num_threads=1, fault_tol=0)
            own_times_N = reader.get_frame_timestamp(np.arange(len(reader)))[:, 0]
            times_N = table.times_N - table.times_N[0] + own_times_N[0]
            if len(reader) != len(times_N) or not np.allclose(own_times_N, times_N, rtol=1e-6, atol=ROUNDING):
                raise DecodeError("time table differs from the container's", "decord")
            frames = reader.get_batch(distinct).asnumpy()
            del reader  # Ends its threads, which may complain too.
    except (decord.DECORDError, RuntimeError, UnicodeEncodeError) as error:
        raise DecodeError(first_line(error), "decord") from None
    if lines:
        raise DecodeError(f"complains: {lines[0]}", "decord")
    if any(np.array_equal(one, two) for one, two in itertools.pairwise(frames)):
        raise DecodeError("gives one frame for several, or the scene is still", "decord")
    return frames if len(frames) == len(places) else frames[places]


@contextmanager
def complaints() -> Iterator[list[str]]:
    """Collect the log of decord and its FFmpeg, the only place where they report damage: standard error, or PyAV's log
    where both use the same library. Other lines on standard error, of other threads, are passed on."""
    lines: list[str] = []
    with _one_at_a_time, tempfile.TemporaryFile() as file, av.logging.Capture(local=False) as log:
        terminal = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield lines
        finally:
            os.dup2(terminal, 2)
            file.seek(0)
            for line in file:
                if not (match := COMPLAINT.match(text := line.decode(errors="replace"))):
                    os.write(terminal, line)
                elif match[1] not in FILTERS:
                    lines.append(text.rstrip())
            os.close(terminal)
            lines += [f"[{name}] {text.strip()}" for _, name, text in log if name not in FILTERS]
