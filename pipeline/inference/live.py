"""Live sources: cameras and streams, read by a background thread, so that predictions are never late."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import NamedTuple

import av
import numpy as np
import torch

from pipeline.features.backbone import Backbone
from pipeline.models.segmenter import Segment, Segmenter
from pipeline.models.windows import SlidingWindow, Window
from pipeline.video.pyav_reader import Converter

STREAMS = ("rtsp://", "rtsps://", "rtmp://", "rtp://", "udp://", "tcp://", "srt://", "lavfi:")
CAMERAS = "/dev/video"
SILENT = 5.0
"""Seconds without a frame after which a source counts as lost."""
LONGEST_WAIT = 30.0
"""Seconds between attempts to connect, at most; the first is half a second, then they double."""


def is_live(source: str) -> bool:
    return source.startswith((*STREAMS, CAMERAS))


class LiveAnswer(NamedTuple):
    segment: Segment  # Seconds since the stream was opened.
    is_finished: bool  # Else the segment goes on; another answer with the same start follows.
    age: float  # Seconds since the end of the segment was received.
    dropped: int  # Sampled frames so far that were too old when their turn came.


class LiveReader:
    """Reads a source in a thread, and keeps the last `most` frames of a grid of times, `step` seconds apart.

    Times are those of the frames (pts), counted from the moment of connection. A lost source is opened again."""

    def __init__(self, source: str, step: float, most: int, transform: Callable, note: Callable[[str], None]):
        self.source, self.step, self.transform, self.note = source, step, transform, note
        self.frames: deque[tuple[int, np.ndarray]] = deque()
        self.most, self.dropped, self.began = most, 0, time.monotonic()
        self.ready, self.stopped = threading.Condition(), threading.Event()
        self.next = 0  # The first time of the grid that has no frame yet.
        threading.Thread(target=self._run, daemon=True).start()

    def take(self) -> list[tuple[int, np.ndarray]]:
        """Wait for frames, at most a second; return (place in the grid, uint8 [3,H,W]) of all there are."""
        with self.ready:
            self.ready.wait_for(lambda: self.frames, timeout=1)
            taken = [*self.frames]
            self.frames.clear()
        return taken

    def close(self) -> None:
        self.stopped.set()

    def _run(self) -> None:
        wait = 0.5
        while not self.stopped.is_set():
            try:
                for _ in self._read():
                    wait = 0.5
                reason = "the stream ended"
            except (av.FFmpegError, OSError) as error:
                reason = error.strerror or str(error)
            if not self.stopped.is_set():
                self.note(f"{self.source}: {reason}; connecting again in {wait:g} s")
                self.stopped.wait(wait)
                wait = min(2 * wait, LONGEST_WAIT)

    def _read(self) -> Iterator[None]:
        """Read from connection to loss; yield after each frame."""
        name, form, options = self.source, None, {}
        if name.startswith("lavfi:"):
            name, form = name.removeprefix("lavfi:"), "lavfi"
        elif name.startswith(CAMERAS):
            form = "v4l2"
        elif name.startswith("rtsp"):
            options = {"rtsp_transport": "tcp"}
        convert, offset, before = Converter(), None, None
        with av.logging.Capture(), av.open(name, format=form, options=options, timeout=(10, SILENT)) as container:
            stream = container.streams.video[0]
            for frame in self._decode(container, stream):
                if self.stopped.is_set():
                    return
                now = time.monotonic() - self.began
                if frame.time is None:
                    continue
                if offset is None or abs(frame.time + offset - now) > 2:  # The first frame, or a jump of its clock.
                    offset, before = now - frame.time, None
                self._sample(before or frame, frame.time + offset, convert)
                before = frame
                yield

    @staticmethod
    def _decode(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[av.VideoFrame]:
        for packet in container.demux(stream):
            try:
                yield from packet.decode()
            except av.error.InvalidDataError:  # Lost packets: the next keyframe is whole again.
                continue

    def _sample(self, shown: av.VideoFrame, until: float, convert: Converter) -> None:
        """Keep `shown` for the latest time of the grid before `until`, if there is a new one."""
        place = int(np.ceil(until / self.step - 0.5)) - 1
        if place < self.next:
            return
        self.next = place + 1
        picture = torch.from_numpy(np.ascontiguousarray(convert(shown))).permute(2, 0, 1)[None]
        with self.ready:
            if len(self.frames) == self.most:
                self.frames.popleft()
                self.dropped += 1
            self.frames.append((place, self.transform(picture)[0].numpy()))
            self.ready.notify()


def answer_stream(
    source: str, backbone: Backbone, classifier: torch.nn.Module, window: Window, classes: list[str], note: Callable
) -> Iterator[LiveAnswer]:
    """Yield finished segments, and the current one at least once per window, until the iterator is closed."""
    windows, segmenter = SlidingWindow(classifier, window), Segmenter(window, classes, lag=window.seconds)
    place, told = 0, 0.0
    backbone(np.zeros((1, 3, *backbone.transform.crop), np.uint8))  # Starts the engine before the first frame comes.
    reader = LiveReader(source, window.step, max(window.frames // 2, 2), backbone.transform, note)

    def answer(segment: Segment, is_finished: bool) -> LiveAnswer:
        return LiveAnswer(segment, is_finished, time.monotonic() - reader.began - segment.end, reader.dropped)

    with closing(reader):
        while True:
            taken = [(number, picture) for number, picture in reader.take() if number >= place]
            features = {}
            if taken:
                pictures_N3HW = np.stack([picture for _, picture in taken])
                features = dict(zip((number for number, _ in taken), backbone(pictures_N3HW), strict=True))
            # Without frames for a second, that second is lost: what came before it is answered now.
            last = taken[-1][0] if taken else int((time.monotonic() - reader.began - 1) / window.step) - 1
            if last < place:
                continue
            frames = [features.get(number) for number in range(place, last + 1)]
            place = last + 1
            for segment in segmenter.push(windows.push(frames)):
                yield answer(segment, is_finished=True)
                told = segment.end
            current = segmenter.current()
            if current and current.end - told >= window.seconds / 2:
                yield answer(current, is_finished=False)
                told = current.end
