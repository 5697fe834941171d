"""The speed of an extraction over time."""

import time

INTERVAL = 5
"""Seconds between two points at least, since batches of the CNN end in bursts."""
POINTS = 100
"""Maximum number of points of a curve."""


class Throughput:
    """Collects `curve`: `seconds` since the start; since the last point, frames per second and the fraction of the time
    that the CNN was busy. If it is not always busy, it waits for the decoders."""

    def __init__(self, busy: float):
        self.began = time.monotonic()
        self.curve: list[dict[str, float]] = []
        self.last = 0.0, 0, busy

    def update(self, done: float, frames: int, busy: float) -> None:
        """Add a point if it is time: `done` is the finished fraction of the clips, `busy` the CNN's seconds so far."""
        now = time.monotonic() - self.began, frames, busy
        seconds, frames, busy = (new - old for new, old in zip(now, self.last, strict=True))
        if frames and (done == 1 or (seconds >= INTERVAL and done * POINTS >= len(self.curve) + 1)):
            rates = {"frames_per_second": frames / seconds, "cnn_busy": min(busy / seconds, 1)}
            self.curve.append({"seconds": now[0], **rates})
            self.last = now
