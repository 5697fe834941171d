"""Which frames of a clip are sampled."""

import numpy as np

ROUNDING = 5e-4  # Seconds of rounding in written times; shorter than any frame.


def sample_indices(
    times_N: np.ndarray, frames: int, start: float | None = None, end: float | None = None, rate: float | None = None
) -> np.ndarray:
    """Return the frames shown at the centres of equal segments of time (TSN, arXiv:1608.00859, at test time).

    There are `frames` segments; with `rate`, as many as last 1/rate seconds each, from one to `frames`.

    `times_N` is in seconds from the first frame, ascending. `start` and `end` (exclusive) default to those of the file.
    Returns ascending indices, int64 [T], at most as many as the clip has frames; one that lasts long may be repeated.
    The last frame of a file is never sampled: containers often announce one frame more than can be decoded."""
    begin, stop = max(start or 0.0, 0.0), times_N[-1] if end is None else min(end, times_N[-1])
    if stop - begin <= ROUNDING:
        return np.empty(0, np.int64)
    first = np.searchsorted(times_N, begin + ROUNDING, "right") - 1
    last = min(np.searchsorted(times_N, stop - ROUNDING, "right"), len(times_N) - 1) - 1
    wanted = min(frames, max(1, round((stop - begin) * rate))) if rate else frames
    count = min(wanted, last - first + 1)
    instants = begin + (np.arange(count) + 0.5) * (stop - begin) / count
    return np.clip(np.searchsorted(times_N, instants, "right") - 1, first, last).astype(np.int64)
