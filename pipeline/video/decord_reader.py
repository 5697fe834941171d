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
from pipeline.video.pyav_reader import orientation
from pipeline.video.sampling import ROUNDING
from pipeline.video.timestamps import DecodeError, VideoTable, open_video

# Where decord returns the frame that it seeks: containers, and codecs with B-frames. In MPEG-4 it returns a neighbour.
SAFE_CONTAINERS = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi", "flv")
SAFE_BFRAME_CODECS = ("h264", "hevc")
FILTERS = ("in", "swscaler")  # They warn about healthy VP9 and MJPEG.
COMPLAINT = re.compile(r"\[([\w,]+) @ 0x[0-9a-f]+\] |\[\d\d:\d\d:\d\d\] ")  # Begins a line of FFmpeg's or decord's log.

_one_at_a_time = threading.Lock()


def unsafe_reasons(path: Path, table: VideoTable) -> list[str]:
    """Return why decord may give other frames of a file than players show."""
    with open_video(path) as (container, stream):
        video_streams = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
        first = next(container.decode(stream), None)
    shown = [packet for packet in table.packets if not packet.hidden]
    ticks, steps = [packet.tick or 0 for packet in shown], np.diff(table.times_N)
    ascending, even = ticks == sorted({*ticks}), steps.max() < 1.5 * steps.min()
    reasons = {
        f"container {table.container}": table.container not in SAFE_CONTAINERS,
        f"B-frames in {table.codec}": table.counted or (table.reorders and table.codec not in SAFE_BFRAME_CODECS),
        "dropped frames": table.container == "avi" and len(shown) < len(table.packets),
        "open GOPs": any(packet.key and not packet.idr for packet in table.packets),
        "damage": not table.indexed or any(packet.corrupt for packet in table.packets),
        "times that do not fit the codec": ascending == table.reorders or (table.reorders and not even),
        "several video streams": len(video_streams) > 1,
        "rotated or mirrored video": not first or orientation(first) != (False, 0),
    }
    return [reason for reason, applies in reasons.items() if applies]


def read_decord(path: Path, table: VideoTable, indices: np.ndarray) -> np.ndarray:
    """Read frames, uint8 [T,H,W,3]; raises `DecodeError` where decord fails or is unreliable."""
    if reasons := unsafe_reasons(path, table):
        raise DecodeError(f"decord is unreliable for this file: {', '.join(reasons)}", "decord")
    distinct, places = np.unique(indices, return_inverse=True)
    try:
        with decoder_log() as lines:
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
        raise DecodeError(f"decoder warning: {lines[0]}", "decord")
    if any(np.array_equal(one, two) for one, two in itertools.pairwise(frames)):
        raise DecodeError("consecutive frames are equal: stuck decoder or static scene", "decord")
    return frames if len(frames) == len(places) else frames[places]


@contextmanager
def decoder_log() -> Iterator[list[str]]:
    """Collect the log of decord and its FFmpeg, which alone reports damage: standard error, or PyAV's log if both share
    a library. Lines of other threads are passed on."""
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
