"""Features of a recording -> log-probabilities over time: overlapping windows, each classified as a clip."""

from typing import NamedTuple

import numpy as np
import torch
from torch import nn

PER_WINDOW = 8
"""Windows that begin while one lasts."""
BATCH = 64


class Window(NamedTuple):
    """Median length and number of frames of the training clips, and the penalty of a label change (see `Viterbi`)."""

    seconds: float
    frames: int
    penalty: float

    @property
    def step(self) -> float:
        """Seconds between two sampled frames."""
        return self.seconds / self.frames

    @property
    def hop(self) -> int:
        """Sampled frames between two windows."""
        return max(self.frames // PER_WINDOW, 1)


class SlidingWindow:
    """Windows over the sampled frames of a recording. All windows share the frames, so each goes through the CNN once.

    Time is divided into cells of `hop` frames. A cell gets the log-probabilities of the window around its centre, at
    both ends of the recording those of the first and the last window. A shorter recording is one window."""

    def __init__(self, classifier: nn.Module, window: Window):
        self.classifier, self.frames, self.hop = classifier, window.frames, window.hop
        self.device = next(classifier.buffers()).device
        self.kept: list[np.ndarray | None] = []  # Features of the frames from `first` on; None: it cannot be read.
        self.first = self.cells = 0

    def push(self, frames: list[np.ndarray | None], ended: bool = False) -> list[np.ndarray | None]:
        """Take features [D] of the next frames; return log-probabilities, float32 [C], of each cell that is now known,
        None where half of its window's frames cannot be read."""
        self.kept += frames
        total = self.first + len(self.kept)
        starts = []
        while (start := self._start()) + self.frames <= total or (ended and self.cells * self.hop < total):
            starts.append(max(min(start, total - self.frames), 0))
            self.cells += 1
        logs: dict[int, np.ndarray | None] = dict.fromkeys(starts)
        readable = [start for start in logs if self._is_readable(start)]
        for first in range(0, len(readable), BATCH):
            batch = readable[first : first + BATCH]
            logs |= zip(batch, self._classify(batch), strict=True)
        dropped = max(min(self._start(), total - self.frames) - self.first, 0)
        del self.kept[:dropped]
        self.first += dropped
        return [logs[start] for start in starts]

    def _start(self) -> int:
        return max(self.cells * self.hop + self.hop // 2 - self.frames // 2, 0)

    def _window(self, start: int) -> list[np.ndarray | None]:
        return self.kept[start - self.first :][: self.frames]

    def _is_readable(self, start: int) -> bool:
        window = self._window(start)
        return 2 * sum(frame is not None for frame in window) > len(window)

    @torch.inference_mode()
    def _classify(self, starts: list[int]) -> np.ndarray:
        windows = [[torch.from_numpy(f) for f in self._window(start) if f is not None] for start in starts]
        frames_WTD = nn.utils.rnn.pad_sequence([torch.stack(window) for window in windows], batch_first=True)
        lengths_W = torch.tensor([len(window) for window in windows])
        logits_WC = self.classifier(frames_WTD.to(self.device, torch.float32), lengths_W)
        return logits_WC.log_softmax(-1).cpu().numpy()
