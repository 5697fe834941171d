"""Settings chosen by cross-validation inside the training split; validation and test clips are not looked at.

Whole groups are held out in turn, and all folds train side by side, on components of the whole split (which know no
labels), with the default fusion weights of a head's paths. A value is taken if it lowers the loss on the clips held out
by more than twice the standard error of the difference, clip by clip, over groups: of so many tries, one would pass by
chance otherwise.
"""

import dataclasses
import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from pipeline.config import Config
from pipeline.data import group_folds
from pipeline.fit import classify, fit
from pipeline.head import HEADS, SequenceHead
from pipeline.loading import ClipSet
from pipeline.progress import progress

CANDIDATES = {
    "head.kind": ("pyramid",),
    "train.learning_rate": (3e-4, 3e-3),
    "train.weight_decay": (0.005, 0.5),
    "head.sequence_components": (32, 128),
    "head.dropout": (0.3, 0.7),
}
"""Values that are tried beside the one that is set, one setting after the other."""
FOLDS = 3


class Choice(NamedTuple):
    """What is better than set, by dotted name; and what was tried and how it did, in words."""

    chosen: dict[str, Any]
    tried: list[str]


class _Score(NamedTuple):
    """Loss and correctness of each clip, by the head that did not learn from its group."""

    losses_N: np.ndarray
    right_N: np.ndarray


def choose(config: Config, clips: ClipSet, groups: list[str], device: torch.device) -> Choice:
    """Tries `CANDIDATES`.

    Args:
        config: where to start from.
        clips: those of the training split.
        groups: the group of each.
        device: where to train.

    Raises:
        KinemaError: there are too few groups.
    """
    learns_FN = ~torch.from_numpy(group_folds(clips.labels_N.tolist(), groups, FOLDS, seed=0))
    values = [(name, value) for name, values in CANDIDATES.items() for value in values]
    chosen: dict[str, Any] = {}
    with progress("try settings", (1 + len(values)) * config.train.epochs, "epochs") as bar:

        def score(config: Config) -> _Score:
            heads, _ = fit(config.head, config.train, clips, learns_FN, device, lambda _: bar.update())
            held_out_by_N = learns_FN.int().argmin(0)
            logits_NC = classify(heads, clips.parts_NPK, device)[held_out_by_N, torch.arange(len(groups))]
            losses_N = cross_entropy(logits_NC, clips.labels_N, reduction="none")
            return _Score(losses_N.numpy(), (logits_NC.argmax(1) == clips.labels_N).numpy())

        best = score(config)
        tried = [f"as set: loss {best.losses_N.mean():.3f}, top-1 {best.right_N.mean():.3f}"]
        for name, value in values:
            candidate = with_settings(config, {name: value})
            has_sequence = issubclass(HEADS[config.head.kind], SequenceHead)
            if candidate == config or not has_sequence and name in ("head.sequence_components", "head.dropout"):
                bar.total -= config.train.epochs
                continue
            scored = score(candidate)
            lower, error = _difference(best.losses_N - scored.losses_N, groups)
            line = f"{name} {value}: loss {scored.losses_N.mean():.3f} ({-lower:+.3f} ± {error:.3f})"
            better = lower > 2 * error
            tried.append(f"{line}, top-1 {scored.right_N.mean():.3f}{', taken' if better else ''}")
            if better:
                chosen[name] = value
                config, best = candidate, scored
    if not chosen:
        tried.append("kept as set: no value is better by two standard errors")
    return Choice(chosen, tried)


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
    return float(values_N.mean()), math.sqrt((sums_G**2).sum()) / len(values_N)
