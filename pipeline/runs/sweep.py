"""Settings to try, from a file of W&B's sweeps, and their accuracy by cross-validation in the training split."""

import itertools
import math
import random
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import joblib
import numpy as np
import torch
import yaml
from torch.nn.functional import cross_entropy

from pipeline.base.errors import ConfigError, KinemaError
from pipeline.config import Config
from pipeline.data.clip import Clip
from pipeline.features.store import FeatureStore
from pipeline.runs.dataset import ClipSet, fit_reduction, load_clips
from pipeline.runs.recordings import neighbours
from pipeline.runs.stacking import branch_log_probs, fit_weights
from pipeline.runs.trainer import fit
from pipeline.video.workers import Failure, run_isolated

SWEPT = ("head", "train")
"""Sections whose settings need no other features."""
TIMEOUT = 1e6
"""Seconds for a fold: no limit in practice."""


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


class Job(NamedTuple):
    """A fold of a configuration; arrays, since tensors do not go through pipes."""

    number: int  # Of the configuration.
    fold: int
    config: Config
    held_N: np.ndarray
    clips: ClipSet  # Of arrays.
    device: torch.device


class CrossValidation:
    """Clips with features, divided into folds by whole groups. Each fold is held out once."""

    def __init__(self, store: FeatureStore, clips: list[Clip], classes: list[str], folds: int, device: torch.device):
        from sklearn.model_selection import StratifiedGroupKFold  # Takes half a second to import.

        self.store, self.clips, self.classes, self.device = store, clips, classes, device
        labels, groups = [clip.label for clip in clips], [clip.group for clip in clips]
        self.labels_N = torch.tensor([classes.index(label) for label in labels])
        splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=0)
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # For classes smaller than `folds`.
            held_out = [held for _, held in splitter.split(labels, labels, groups)]
        self.folds = [np.isin(np.arange(len(clips)), held) for held in held_out]

    def results(self, configs: dict[int, Config]) -> Iterator[tuple[int, np.ndarray, float]]:
        """Yield for each configuration its number, which clips are classified correctly while they are held out, float
        [N], and their mean loss, in order of completion. If it cannot be trained, no clip is, and the loss is infinite.

        On a CPU, there is a process per core."""
        jobs, logs = self._jobs(configs), {number: {} for number in configs}
        if self.device.type == "cpu":
            outcomes = run_isolated(classify_held_out, jobs, joblib.cpu_count(), TIMEOUT)
        else:
            outcomes = ((job, _attempt(job)) for job in jobs)
        for job, outcome in outcomes:
            of_fold = logs[job.number]
            of_fold[job.fold] = outcome
            if isinstance(outcome, Failure):
                print(outcome.reason)
            if len(of_fold) < len(self.folds):
                continue
            if any(isinstance(outcome, Failure) for outcome in of_fold.values()):
                yield job.number, np.zeros(len(self.clips)), math.inf
            else:
                logits_NC = self._fuse([of_fold[fold] for fold in range(len(self.folds))])
                hits_N = (logits_NC.argmax(1) == self.labels_N).double().numpy()
                yield job.number, hits_N, float(cross_entropy(logits_NC, self.labels_N))

    def _fuse(self, parts: list[tuple[np.ndarray, np.ndarray]]) -> torch.Tensor:
        """Return the logits [N,C] of the held-out clips, with fusion weights fitted on those of the other folds."""
        logs_PNC = torch.empty(len(parts[0][0]), len(self.clips), len(self.classes))
        for held_N, (logs, _) in zip(self.folds, parts, strict=True):
            logs_PNC[:, held_N] = torch.from_numpy(logs)
        fused_NC = torch.empty(logs_PNC.shape[1:])
        for held_N, (_, start) in zip(self.folds, parts, strict=True):
            weights_P = fit_weights(logs_PNC[:, ~held_N], self.labels_N[~held_N], torch.from_numpy(start))
            fused_NC[held_N] = (logs_PNC[:, held_N] * weights_P[:, None, None]).sum(0)
        return fused_NC

    def _jobs(self, configs: dict[int, Config]) -> Iterator[Job]:
        """Yield the jobs, those with the same reduction together, since the clips are loaded once for each."""

        def size(config: Config) -> tuple[int, int]:
            return config.head.pca_components, config.head.motion_components

        by_size = sorted(configs.items(), key=lambda item: size(item[1]))
        for _, same in itertools.groupby(by_size, key=lambda item: size(item[1])):
            members = [*same]
            loaded = [self._load(members[0][1], held_N) for held_N in self.folds]
            for number, config in members:
                for fold, clips in enumerate(loaded):
                    yield Job(number, fold, config, self.folds[fold], clips, self.device)

    def _load(self, config: Config, held_N: np.ndarray) -> ClipSet:
        """Load the clips, reduced by what is fitted on the training clips of a fold."""
        trained_on = [clip for clip, held in zip(self.clips, held_N, strict=True) if not held]
        reduction = fit_reduction(config, self.store, trained_on)
        clips = load_clips(self.store, self.clips, self.classes, reduction, neighbours(trained_on, self.classes))
        return ClipSet(*(value.numpy() if isinstance(value, torch.Tensor) else value for value in clips))


def _attempt(job: Job) -> tuple[np.ndarray, np.ndarray] | Failure:
    try:
        return classify_held_out(job)
    except KinemaError as error:
        return Failure(str(error))


def classify_held_out(job: Job) -> tuple[np.ndarray, np.ndarray]:
    """Train without the held-out clips; return the branches' log-probabilities of these, [P,N,C], and weights [P]."""
    held_N = torch.from_numpy(job.held_N)
    clips = ClipSet(*(torch.from_numpy(value) if isinstance(value, np.ndarray) else value for value in job.clips))
    head = fit(job.config.head, job.config.train, clips, ~held_N, job.device, lambda record: None)
    return branch_log_probs(head, clips.where(held_N)).numpy(), head.weights.numpy()
