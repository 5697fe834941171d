"""Try settings without a server: `kinema sweep configs/sweep.yaml --config configs/demo.yaml`."""

import csv
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


def sweep(config: Config, sweep_file: Path, folds: int, run: str) -> None:
    """Cross-validate the settings of a sweep in the training split, and train the run `run` with the best ones."""
    tried = [{}, *read_sweep(sweep_file)]  # First, the settings as they are.
    if other := sorted({name for settings in tried for name in settings if not is_among(name, SWEPT)}):
        raise ConfigError(f"{sweep_file}: {other[0]} needs other features; only settings of head and train run here")
    if folds < 2:
        raise ConfigError(f"--folds must be at least 2, got {folds}")
    configs = [build(Config, None, flat_values(config) | settings) for settings in tried]
    store, dataset = FeatureStore.last(config), load_dataset(config.data)
    clips = [clip for split in ("train", "val") for clip in find_clips(store, dataset, split, config.max_missing)]
    validation = CrossValidation(store, clips, dataset.classes, folds, resolve_device(config.device))
    print(f"{len(clips)} clips of train and val, {folds} folds, {len(tried) - 1} settings")

    hits, rows = {}, []
    reductions = [(config.head.pca_components, config.head.motion_components) for config in configs]
    for number in progress("sweep", len(tried), "settings", sorted(range(len(tried)), key=reductions.__getitem__)):
        hits[number], loss = validation.hits(configs[number])
        text = " ".join(f"--{name}={value}" for name, value in tried[number].items()) or "as configured"
        rows.append({"top1": round(hits[number].mean(), 4), "loss": round(loss, 4), "settings": text, "number": number})
    rows.sort(key=lambda row: (-row["top1"], row["loss"]))
    for row in [*rows[:5], *(row for row in rows[5:] if not row["number"])]:
        print(f"top-1 {row['top1']:.3f}, loss {row['loss']:.3f}: {row['settings']}")
    best = rows[0]["number"]
    gains_N = hits[best] - hits[0]
    edges = group_interval(gains_N, [clip.group for clip in clips])
    interval = f"95 % CI {edges[0]:+.3f} to {edges[1]:+.3f}, paired" if edges else "no CI"
    print(f"Best vs. as configured: {gains_N.mean():+.3f} ({interval}). The best of many looks better than it is.")
    train(configs[best], run)
    with (config.runs / run / "sweep.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, ("top1", "loss", "settings"), extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
