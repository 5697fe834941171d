"""Settings chosen by cross-validation inside the training clips; the test split is not looked at.

Whole groups are held out in turn, and all folds train side by side. A value is taken if it lowers the loss on the clips
held out by more than the standard error of the difference, clip by clip, over groups: few clips do not tell more.
"""

import dataclasses
import math
import warnings
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.model_selection import StratifiedGroupKFold
from torch.nn.functional import cross_entropy

from pipeline.config import Config
from pipeline.fit import ClipSet, answer, fit
from pipeline.progress import progress

CANDIDATES = {
    "head.kind": ("pyramid",),
    "train.learning_rate": (3e-4, 3e-3),
    "train.weight_decay": (0.005, 0.5),
    "head.sequence_components": (32, 128),
    "head.dropout": (0.3, 0.7),
}
"""Values that are tried beside the one that is set, one setting after the other. What is set first wins a draw."""
FOLDS = 4


class _Score(NamedTuple):
    """Loss and correctness of each training clip, by the head that did not learn from its group."""

    losses_N: np.ndarray
    right_N: np.ndarray


def choose(config: Config, clips: ClipSet, groups: list[str], classes: int, device: torch.device) -> Config:
    """Tries `CANDIDATES` on the training clips and prints how they did.

    Args:
        config: where to start from.
        clips: all clips that may be learned from.
        groups: the group of each.
        classes: number of classes.
        device: where to train.

    Returns:
        The config with the values that were best.
    """
    learns_FN = _folds(clips.labels_N.numpy(), groups)
    values = [(name, value) for name, values in CANDIDATES.items() for value in values]
    with progress("try settings", (1 + len(values)) * config.train.epochs, "epochs") as bar:

        def score(config: Config) -> _Score:
            heads, _ = fit(
                config.head, config.train, clips, learns_FN, classes, device, None, "", lambda _: bar.update()
            )
            held_out_by_N = learns_FN.int().argmin(0)
            answers_NC = answer(heads, clips.parts_NPK, device)[held_out_by_N, torch.arange(len(groups))]
            losses_N = cross_entropy(answers_NC, clips.labels_N, reduction="none")
            return _Score(losses_N.numpy(), (answers_NC.argmax(1) == clips.labels_N).numpy())

        best = score(config)
        lines = [f"as set: loss {best.losses_N.mean():.3f}, top-1 {best.right_N.mean():.3f}"]
        for name, value in values:
            candidate = _with(config, name, value)
            without_use = name in ("head.sequence_components", "head.dropout") and config.head.kind in (
                "pyramid",
                "mean",
            )
            if candidate == config or without_use:
                bar.total -= config.train.epochs
                continue
            scored = score(candidate)
            lower, error = _difference(best.losses_N - scored.losses_N, groups)
            line = f"{name} {value}: loss {scored.losses_N.mean():.3f}, top-1 {scored.right_N.mean():.3f}"
            lines.append(f"{line}; lower by {lower:+.3f} ± {error:.3f}{', taken' if lower > error else ''}")
            if lower > error:
                config, best = candidate, scored
    print(f"settings tried on {len(groups)} training clips, {len(learns_FN)} folds of {len(set(groups))} groups:")
    print("\n".join(f"  {line}" for line in lines))
    return config


def _folds(labels_N: np.ndarray, groups: list[str]) -> torch.Tensor:
    """Returns bool [folds,N], the clips that each fold learns from."""
    splitter = StratifiedGroupKFold(min(FOLDS, len(set(groups))), shuffle=True, random_state=0)
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # Classes smaller than the number of folds.
        held_out = [held for _, held in splitter.split(labels_N, labels_N, groups)]
    learns_FN = torch.ones(len(held_out), len(groups), dtype=torch.bool)
    for learns_N, held in zip(learns_FN, held_out, strict=True):
        learns_N[held] = False
    return learns_FN


def _difference(values_N: np.ndarray, groups: list[str]) -> tuple[float, float]:
    """Returns the mean of per-clip values, and its standard error with the groups as independent."""
    _, group_N = np.unique(groups, return_inverse=True)
    sums_G = np.bincount(group_N, values_N - values_N.mean())
    return float(values_N.mean()), math.sqrt((sums_G**2).sum()) / len(values_N)


def _with(config: Config, name: str, value: Any) -> Config:
    section, field = name.split(".")
    changed = dataclasses.replace(getattr(config, section), **{field: value})
    return dataclasses.replace(config, **{section: changed})
