"""Settings to try, from a file of W&B's sweeps, and their accuracy by cross-validation in the training split."""

import itertools
import math
import random
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from pipeline.base.errors import ConfigError
from pipeline.config import Config
from pipeline.data.clip import Clip
from pipeline.features.store import FeatureStore
from pipeline.runs.dataset import ClipSet, classify, fit_reduction, load_clips
from pipeline.runs.recordings import neighbours
from pipeline.runs.trainer import fit

SWEPT = ("head", "train")
"""Sections whose settings need no other features."""


def read_sweep(file: Path) -> list[dict[str, Any]]:
    """Return the settings to try by dotted name: all combinations for `method: grid`, `run_cap` draws for `random`."""
    try:
        sweep = yaml.safe_load(file.read_text(encoding="utf-8"))
        method, parameters = sweep["method"], sweep["parameters"]
        if method == "grid":
            values = [spec["values"] if "values" in spec else [spec["value"]] for spec in parameters.values()]
            return [dict(zip(parameters, combination, strict=True)) for combination in itertools.product(*values)]
        if method == "random":
            source, number = random.Random(0), int(sweep["run_cap"])
            return [{name: _draw(spec, source) for name, spec in parameters.items()} for _ in range(number)]
    except FileNotFoundError:
        raise ConfigError(f"{file}: no such sweep file") from None
    except (yaml.YAMLError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"{file}: not a sweep that can run here: {type(error).__name__} {error}") from None
    raise ConfigError(f"{file}: method {method} needs W&B's server (wandb sweep); grid and random run here")


def _draw(spec: dict[str, Any], source: random.Random) -> Any:
    """Draw a value as W&B does: of `values`, or between `min` and `max` by `distribution`."""
    if "value" in spec:
        return spec["value"]
    if "values" in spec:
        return source.choice(spec["values"])
    low, high = spec["min"], spec["max"]
    match spec.get("distribution", "int_uniform" if isinstance(low, int) and isinstance(high, int) else "uniform"):
        case "int_uniform":
            return source.randint(low, high)
        case "uniform":
            return source.uniform(low, high)
        case "log_uniform_values":
            return math.exp(source.uniform(math.log(low), math.log(high)))
    raise ValueError(f"has distribution {spec['distribution']}; use int_uniform, uniform or log_uniform_values")


class CrossValidation:
    """Clips with features, divided into folds by whole groups. Each fold is held out once."""

    def __init__(self, store: FeatureStore, clips: list[Clip], classes: list[str], folds: int, device: torch.device):
        from sklearn.model_selection import StratifiedGroupKFold  # Takes half a second to import.

        self.store, self.clips, self.classes, self.device = store, clips, classes, device
        labels, groups = [clip.label for clip in clips], [clip.group for clip in clips]
        splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=0)
        with warnings.catch_warnings(
            action="ignore", category=UserWarning
        ):  # Classes smaller than the number of folds.
            held_out = [held for _, held in splitter.split(labels, labels, groups)]
        self.folds = [torch.from_numpy(np.isin(np.arange(len(clips)), held)) for held in held_out]
        self.loaded: dict[tuple[int, int], list[ClipSet]] = {}  # Of the latest reduction.

    def hits(self, config: Config) -> tuple[np.ndarray, float]:
        """Return which clips are classified correctly while they are held out, float [N], and their mean loss."""
        hits_N, losses_N = np.zeros(len(self.clips)), np.zeros(len(self.clips))
        for held_N, clips in zip(self.folds, self._load(config), strict=True):
            head = fit(config.head, config.train, clips, ~held_N, self.device, lambda record: None)
            held = clips.where(held_N)
            logits_NC = classify(head.to(self.device), held, self.device)
            hits_N[held_N] = (logits_NC.argmax(1) == held.labels_N).numpy()
            losses_N[held_N] = torch.nn.functional.cross_entropy(logits_NC, held.labels_N, reduction="none").numpy()
        return hits_N, float(losses_N.mean())

    def _load(self, config: Config) -> list[ClipSet]:
        """Load the clips for each fold, reduced by what is fitted on its training clips alone."""
        size = config.head.pca_components, config.head.motion_components
        if size not in self.loaded:
            self.loaded.clear()
            for held_N in self.folds:
                trained_on = [self.clips[n] for n in (~held_N).nonzero().flatten().tolist()]
                reduction = fit_reduction(config, self.store, trained_on)
                others = neighbours(trained_on, self.classes)
                loaded = load_clips(self.store, self.clips, self.classes, reduction, others)
                self.loaded.setdefault(size, []).append(loaded)
        return self.loaded[size]
