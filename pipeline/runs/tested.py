"""A trained run with its test clips, for evaluation and probes."""

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from pipeline.base.errors import KinemaError, summarize
from pipeline.config import Config
from pipeline.data.clip import Clip
from pipeline.data.formats import read_clips
from pipeline.data.splits import Dataset
from pipeline.features.entry import Header
from pipeline.features.store import FeatureStore
from pipeline.models.classifier import Classifier
from pipeline.runs.bundle import Bundle
from pipeline.runs.dataset import find_clips


class Tested(NamedTuple):
    """What a test needs: `classifiers` by kind, the run's own first; `found` are the test clips that have features;
    `is_own` tells whether they are those of the data set that the run was trained on."""

    bundle: Bundle
    config: Config
    device: torch.device
    classifiers: dict[str, Classifier]
    dataset: Dataset
    is_own: bool
    store: FeatureStore
    found: dict[Clip, Header]


def open_tested(run: Path, overrides: dict[str, str]) -> Tested:
    """Load a run and find its test clips, or those of the data that overrides of `data` name."""
    bundle, config, device, classifiers = Bundle.load(run, overrides, "evaluate")
    changed = {name for name in overrides if name.startswith("data.")}
    is_own = not changed or (changed == {"data.root"} and bundle.is_in(config.data.root))
    if is_own:
        dataset = bundle.dataset(config.data.root)
    else:
        clips, _, split = read_clips(config.data)
        clips = [replace(clip, split="test") for clip in clips if clip.split in ("test", "")]  # Without splits, all.
        if unknown := sorted({clip.label for clip in clips} - {*bundle.classes}):
            raise KinemaError(f"{run}: the run has no class {summarize(unknown)}; train a new one")
        dataset = Dataset(clips, bundle.classes, split)
    store = FeatureStore.of(config, bundle.metadata()["fingerprint"])
    found = find_clips(store, dataset, "test", config.max_missing)
    return Tested(bundle, config, device, classifiers, dataset, is_own, store, found)
