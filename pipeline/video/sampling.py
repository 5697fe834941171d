"""Which frames of a clip are sampled."""

import numpy as np

ROUNDING = 5e-4
"""Seconds of rounding in written times; less than any frame lasts."""


def plan_instants(
    times_N: np.ndarray,
    frames: int,
    start: float | None = None,
    end: float | None = None,
    rate: float | None = None,
) -> np.ndarray:
    """Return the frames shown at the centres of equal segments of time (TSN, arXiv:1608.00859, at test time).

    The last frame of a file is never asked for: containers often announce one frame more than can be decoded.

    Args:
        times_N: presentation time of every frame, seconds from the first, ascending.
        frames: number of instants; a segment of fewer frames gets one per frame.
        start: start of the segment, seconds; None: start of the file.
        end: end of the segment, seconds, exclusive; None: end of the file.
        rate: instants per second, up to `frames` of them; None: always `frames`.

    Returns:
        Ascending frame indices, int64 [T]; a frame that lasts long may be repeated. Empty if the segment is empty.
    """
    begin, stop = max(start or 0.0, 0.0), times_N[-1] if end is None else min(end, times_N[-1])
    if stop - begin <= ROUNDING:
        return np.empty(0, np.int64)
    first = np.searchsorted(times_N, begin + ROUNDING, "right") - 1
    last = min(np.searchsorted(times_N, stop - ROUNDING, "right"), len(times_N) - 1) - 1
    count = min(frames, last - first + 1)
    if rate:
        count = min(count, max(1, round((stop - begin) * rate)))
    instants = begin + (np.arange(count) + 0.5) * (stop - begin) / count
    return np.clip(np.searchsorted(times_N, instants, "right") - 1, first, last).astype(np.int64)
