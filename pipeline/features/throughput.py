"""The speed of an extraction over time."""

import itertools
import time

INTERVAL = 5
"""Seconds between two points at least, since batches of the CNN end in bursts."""
POINTS = 100
"""Maximum number of points of a curve."""


class Throughput:
    """Collects how many frames are done, and how long the CNN was busy, over time."""

    def __init__(self, busy: float):
        self.began = time.monotonic()
        self.points = [(0.0, 0, busy)]  # Seconds, frames, seconds of the CNN, all since the start.

    def update(self, done: float, frames: int, busy: float) -> None:
        """Add a point if it is time: `done` is the finished fraction of the clips, `busy` the CNN's seconds so far."""
        seconds = time.monotonic() - self.began
        is_early = seconds - self.points[-1][0] < INTERVAL
        if done < 1 and (is_early or done * POINTS < len(self.points)):
            return
        if is_early and len(self.points) > 1:  # The rest of the last burst belongs to the point before.
            self.points.pop()
        self.points.append((seconds, frames, busy))

    def curve(self) -> list[dict[str, float]]:
        """Return for each point its `seconds`, and since the point before, `frames_per_second` and `cnn_busy`, the
        fraction of the time that the CNN was busy. If that is below 1, the CNN waits for the decoders."""
        rates = []
        for (before, frames_before, busy_before), (seconds, frames, busy) in itertools.pairwise(self.points):
            length = seconds - before
            rate, share = (frames - frames_before) / length, min((busy - busy_before) / length, 1)
            rates.append({"seconds": seconds, "frames_per_second": rate, "cnn_busy": share})
        return rates
