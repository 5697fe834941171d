"""Log-probabilities over time -> labelled segments, each as soon as its end is certain."""

from collections import deque
from typing import NamedTuple

import numpy as np

from pipeline.models.viterbi import Viterbi
from pipeline.models.windows import Window


class Segment(NamedTuple):
    start: float  # Seconds from the first frame.
    end: float
    label: str
    probability: float  # Average over the segment.


class Segmenter:
    """Takes what `SlidingWindow` returns; `lag` is that of `Viterbi`, in seconds."""

    def __init__(self, window: Window, classes: list[str], lag: float | None = None):
        self.classes, self.cell_seconds = classes, window.hop * window.step
        self.viterbi = Viterbi(window.penalty, lag and max(round(lag / self.cell_seconds), 1))
        self.uncertain: deque[np.ndarray] = deque()  # Probabilities of the cells from `cell` on.
        self.cell = 0
        self.label: int | None = None  # Of the segment that is not finished, which began at cell `began`.
        self.began, self.probabilities = 0, []

    def push(self, cells: list[np.ndarray | None], duration: float | None = None) -> list[Segment]:
        """Take the next cells, and with the last the `duration` of the recording; return the finished segments.

        Cells without an answer are in no segment."""
        found = []
        for logs_C in cells:
            if logs_C is None:
                found += self._append(self.viterbi.rest()) + self._finish()
                self.cell += 1
            else:
                self.viterbi.push(logs_C)
                self.uncertain.append(np.exp(logs_C))
        if duration is None:
            return found + self._append(self.viterbi.certain())
        found += self._append(self.viterbi.rest())
        return found + [segment._replace(end=duration) for segment in self._finish()]

    def _append(self, labels: list[int]) -> list[Segment]:
        found = []
        for label in labels:
            if label != self.label:
                found += self._finish()
                self.label, self.began = label, self.cell
            self.probabilities.append(float(self.uncertain.popleft()[label]))
            self.cell += 1
        return found

    def current(self) -> Segment | None:
        """Return the segment that is not finished, up to where it is certain."""
        if self.label is None:
            return None
        edges = self.began * self.cell_seconds, self.cell * self.cell_seconds
        return Segment(*edges, self.classes[self.label], float(np.mean(self.probabilities)))

    def _finish(self) -> list[Segment]:
        segment, self.label, self.probabilities = self.current(), None, []
        return [segment] if segment else []
