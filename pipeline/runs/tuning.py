"""Settings chosen by cross-validation inside the training split; validation and test clips are not looked at.

Whole groups are held out in turn, the components are those of the clips that are learned from, and a head's paths have
their default fusion weights. A value is taken if it lowers the loss on the clips held out by more than chance would.
The difference is measured clip by clip and its error over groups; where no value makes one, the chance that any is
taken is 2.5 % (Student's t, Bonferroni).
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from pipeline.base.progress import progress
from pipeline.config import Config
from pipeline.data.splits import group_folds
from pipeline.models.heads import HEADS, SequenceHead
from pipeline.runs.dataset import ClipSet
from pipeline.runs.trainer import classify, fit

CANDIDATES = {
    "head.kind": ("pyramid",),
    "train.learning_rate": (3e-4, 3e-3),
    "train.weight_decay": (0.005, 0.5),
    "head.sequence_components": (32, 128),
    "head.dropout": (0.3, 0.7),
}
"""Values that are tried beside the one that is set, one setting after the other."""
FOLDS = 3


class Tuning(NamedTuple):
    """What is better than set, by dotted name; and what was tried and how it did, in words."""

    chosen: dict[str, Any]
    tried: list[str]


class _Score(NamedTuple):
    """Loss and correctness of each clip, by the head that did not learn from its group."""

    losses_N: np.ndarray
    right_N: np.ndarray


def tune(
    config: Config, load: Callable[[torch.Tensor], ClipSet], labels: list[str], groups: list[str], device: torch.device
) -> Tuning:
    """Tries `CANDIDATES`.

    Args:
        config: where to start from.
        load: given which clips of the training split are learned from, bool [N], returns all, in components of those.
        labels: the class of each clip.
        groups: the group of each.
        device: where to train.

    Raises:
        KinemaError: there are too few groups.
    """
    from scipy.stats import t  # Late, for prediction, which imports this file too, needs none.

    learns_FN = ~torch.from_numpy(group_folds(labels, groups, FOLDS, seed=0))
    folds = [(load(learns_N), learns_N) for learns_N in learns_FN]
    values = [(name, value) for name, values in CANDIDATES.items() for value in values]
    least = t.ppf(1 - 0.025 / len(values), len(set(groups)) - 1)  # Errors by which a value must be better.
    chosen: dict[str, Any] = {}
    with progress("try settings", (1 + len(values)) * len(folds) * config.train.epochs, "epochs") as bar:

        def score(config: Config) -> _Score:
            losses_N, right_N = np.empty(len(groups), np.float32), np.empty(len(groups), bool)
            for clips, learns_N in folds:
                heads, _ = fit(config.head, config.train, clips, learns_N[None], device, lambda _: bar.update())
                held_out = clips.where(~learns_N)
                logits_NC = classify(heads, held_out.parts_NPK, device)[0]
                losses_N[~learns_N] = cross_entropy(logits_NC, held_out.labels_N, reduction="none")
                right_N[~learns_N] = logits_NC.argmax(1) == held_out.labels_N
            return _Score(losses_N, right_N)

        best = score(config)
        tried = [f"as set: loss {best.losses_N.mean():.3f}, top-1 {best.right_N.mean():.3f}"]
        for name, value in values:
            candidate = with_settings(config, {name: value})
            has_sequence = issubclass(HEADS[config.head.kind], SequenceHead)
            if candidate == config or not has_sequence and name in ("head.sequence_components", "head.dropout"):
                bar.total -= len(folds) * config.train.epochs
                continue
            scored = score(candidate)
            lower, error = _difference(best.losses_N - scored.losses_N, groups)
            line = f"{name} {value}: loss {scored.losses_N.mean():.3f} ({-lower:+.3f} ± {error:.3f})"
            better = lower > least * error
            tried.append(f"{line}, top-1 {scored.right_N.mean():.3f}{', taken' if better else ''}")
            if better:
                chosen[name] = value
                config, best = candidate, scored
    if not chosen:
        tried.append(f"kept as set: no value is better by {least:.1f} standard errors")
    return Tuning(chosen, tried)


def with_settings(config: Config, settings: dict[str, Any]) -> Config:
    """Changes settings by dotted name."""
    for name, value in settings.items():
        section, field = name.split(".")
        changed = dataclasses.replace(getattr(config, section), **{field: value})
        config = dataclasses.replace(config, **{section: changed})
    return config


def _difference(values_N: np.ndarray, groups: list[str]) -> tuple[float, float]:
    """Returns the mean of per-clip values, and its standard error with the groups as independent."""
    _, group_N = np.unique(groups, return_inverse=True)
    sums_G = np.bincount(group_N, values_N - values_N.mean())
    unbiased = len(sums_G) / (len(sums_G) - 1)
    return float(values_N.mean()), math.sqrt(unbiased * (sums_G**2).sum()) / len(values_N)
