"""Try settings without a server: `kinema sweep configs/sweep.yaml --config configs/demo.yaml`."""

import csv
import math
from dataclasses import replace
from pathlib import Path

from pipeline.base.device import resolve_device
from pipeline.base.errors import ConfigError
from pipeline.base.progress import progress
from pipeline.base.settings import build, flat_values, is_among
from pipeline.config import Config
from pipeline.data.splits import load_dataset
from pipeline.features.store import FeatureStore
from pipeline.runs.dataset import find_clips
from pipeline.runs.metrics import group_interval
from pipeline.runs.sweep import SWEPT, CrossValidation, read_sweep
from pipeline.train import train

ROUNDS = 9, 3, 1
"""Each round keeps a third of the settings and trains them three times as long; the last trains all epochs."""
FEW = 4
"""Settings that are all trained with all epochs."""


def sweep(config: Config, sweep_file: Path, folds: int, run: str) -> None:
    """Cross-validate the settings of a sweep in the training split, and train the run `run` with the best ones.

    Successive halving (Jamieson and Talwalkar, AISTATS 2016). The settings as configured take part in every round."""
    tried = [{}, *read_sweep(sweep_file)]  # First, the settings as configured.
    if other := sorted({name for settings in tried for name in settings if not is_among(name, SWEPT)}):
        raise ConfigError(f"{sweep_file}: {other[0]} needs other features; only settings of head and train run here")
    if folds < 2:
        raise ConfigError(f"--folds must be at least 2, got {folds}")
    configs = [build(Config, None, flat_values(config) | settings) for settings in tried]
    store, dataset = FeatureStore.last(config), load_dataset(config.data)
    clips = [clip for split in ("train", "val") for clip in find_clips(store, dataset, split, config.max_missing)]
    validation = CrossValidation(store, clips, dataset.classes, folds, resolve_device(config.device))
    print(f"{len(clips)} clips of train and val, {folds} folds, {len(tried) - 1} settings")

    hits, rows = {}, {}
    left = ranking = [*range(len(tried))]  # Number 0 is as configured.
    for divisor in ROUNDS if len(tried) - 1 > FEW else ROUNDS[-1:]:
        epochs = {n: math.ceil(configs[n].train.epochs / divisor) for n in left}
        short = {n: replace(configs[n], train=replace(configs[n].train, epochs=epochs[n])) for n in left}
        results = validation.results(short)
        for n, hits[n], loss in progress(f"sweep, 1/{divisor} of the epochs", len(left), "configurations", results):
            settings = " ".join(f"--{name}={value}" for name, value in tried[n].items()) or "as configured"
            top1 = round(hits[n].mean(), 4)
            rows[n] = {"epochs": epochs[n], "top1": top1, "loss": round(loss, 4), "settings": settings}
        finalists = sorted(left, key=lambda n: (-rows[n]["top1"], rows[n]["loss"]))
        ranking = finalists + [n for n in ranking if n not in left]
        left = [n for place, n in enumerate(finalists) if place < max(len(left) // 3, 1) or n == 0]
    for n in finalists:
        print("top-1 {top1:.3f}, loss {loss:.3f}: {settings}".format(**rows[n]))
    gains_N = hits[ranking[0]] - hits[0]
    edges = group_interval(gains_N, [clip.group for clip in clips])
    interval = f"95 % CI {edges[0]:+.3f} to {edges[1]:+.3f}, paired" if edges else "no CI"
    print(f"Best vs. as configured: {gains_N.mean():+.3f} ({interval}). The best of many looks better than it is.")
    train(configs[ranking[0]], run)
    with (config.runs / run / "sweep.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, rows[0])
        writer.writeheader()
        writer.writerows(rows[n] for n in ranking)
