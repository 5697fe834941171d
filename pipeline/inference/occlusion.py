"""Which parts of a clip carried the decision, by occlusion, and whether that beats a random choice of parts."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.special import expit

Odds = Callable[[np.ndarray], np.ndarray]
"""Log-odds of the class, float [S], with the parts removed that are marked in bool [S,K]."""


class Evidence(NamedTuple):
    """Parts are removed one after the other; the area is the mean probability of the class meanwhile. The lower it is
    beside that of random orders, the more the first parts carried the decision."""

    order: list[int]  # The part whose absence hurts the most comes first, then the one that hurts the most without it.
    drops: list[float]  # How much the log-odds fall with each part, in this order.
    area: float
    random_areas: list[float]  # Of random orders, on the same clip.

    @property
    def verdict(self) -> str:
        chance = np.mean(self.random_areas)
        numbers = f"deletion area {self.area:.2f}, in random order {chance:.2f}"
        return numbers + ("" if self.area < min(self.random_areas) else ": no better than chance")


def remove_parts(log_odds: Odds, parts: int, random_orders: int) -> Evidence:
    """Remove the parts greedily, all but one, and in random orders."""
    gone_K, order = np.zeros(parts, bool), []
    odds = [float(log_odds(gone_K[None])[0])]
    while len(order) < parts - 1:
        left = np.flatnonzero(~gone_K)
        after = log_odds(gone_K | np.eye(parts, dtype=bool)[left])
        order.append(int(left[after.argmin()]))
        odds.append(float(after.min()))
        gone_K[order[-1]] = True
    rng = np.random.default_rng(0)
    ranks_OK = np.stack([rng.permutation(parts) for _ in range(random_orders)])
    gone_OSK = ranks_OK[:, None] < np.arange(1, parts)[:, None]  # 1 to K-1 parts.
    random_OS = expit(log_odds(gone_OSK.reshape(-1, parts))).reshape(gone_OSK.shape[:2])
    drops = (-np.diff(odds)).tolist()
    return Evidence(order, drops, float(expit(odds[1:]).mean()), random_OS.mean(1).tolist())


def fill_moments(features_TD: np.ndarray, gone_ST: np.ndarray) -> np.ndarray:
    """Replace moments by what lies between their nearest neighbours in time, float32 [S,T,D]."""
    steps = np.arange(len(features_TD))
    filled_STD = np.empty((*gone_ST.shape, features_TD.shape[1]), np.float32)
    for number, gone_T in enumerate(gone_ST):
        kept = np.flatnonzero(~gone_T)
        mixing_TK = np.stack([np.interp(steps, kept, unit) for unit in np.eye(len(kept))], 1)
        filled_STD[number] = mixing_TK.astype(np.float32) @ features_TD[kept]
    return filled_STD


def cover_cells(frames_T3HW: np.ndarray, gone_K: np.ndarray, cells: int) -> np.ndarray:
    """Cover cells of a grid, in all frames, with the mean colour of the clip."""
    height, width = frames_T3HW.shape[2:]
    rows, columns = np.arange(height) * cells // height, np.arange(width) * cells // width
    covered_HW = gone_K.reshape(cells, cells)[rows[:, None], columns]
    colour_3 = frames_T3HW.mean((0, 2, 3)).astype(np.uint8)
    return np.where(covered_HW, colour_3[:, None, None], frames_T3HW)
