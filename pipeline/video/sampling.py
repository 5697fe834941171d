"""Which frames of a clip are looked at."""

import numpy as np


def plan_frames(times_N: np.ndarray, frames: int, start: float | None = None, end: float | None = None) -> np.ndarray:
    """Chooses the middle frame of each of `frames` equal segments (TSN, arXiv:1608.00859, at test time).

    The last frame is never asked for: containers often announce one frame more than can be decoded.

    Args:
        times_N: presentation time of every frame, seconds from the first, ascending.
        frames: how many frames are wanted.
        start: beginning of the labelled segment, seconds; None is the beginning of the file.
        end: end of the labelled segment, seconds, exclusive; None is the end of the file.

    Returns:
        Strictly ascending frame indices, int64 [T], T <= frames; empty if no frame lies in the segment.
    """
    usable = times_N[:-1]
    first = 0 if start is None else int(np.searchsorted(usable, start))
    stop = len(usable) if end is None else int(np.searchsorted(usable, end))
    centres = (np.arange(frames) + 0.5) * max(stop - first, 0) / frames
    return first + np.unique(centres.astype(np.int64)) if stop > first else np.empty(0, np.int64)
