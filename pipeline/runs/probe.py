"""Whether a classifier depends on the order of frames: its accuracy with other orders, and with fewer frames."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from pipeline.base.progress import progress
from pipeline.data.clip import Clip
from pipeline.features.store import FeatureStore
from pipeline.models.classifier import Classifier
from pipeline.runs.dataset import padded, read_batches
from pipeline.runs.metrics import group_interval


def _sample(features_TD: np.ndarray, number: int) -> np.ndarray:
    """Sample the centres of `number` equal segments of a clip's frames, or all of fewer frames."""
    segments = np.array_split(features_TD, number)
    return np.stack([segment[len(segment) // 2] for segment in segments if len(segment)])


def perturbations() -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """Return what is done to the features [T,D] of a clip; `frozen` shows the middle frame all the time."""
    return {
        "as_is": lambda features_TD: features_TD,
        "shuffled": np.random.default_rng(0).permutation,  # Another order for every clip.
        "reversed": lambda features_TD: features_TD[::-1].copy(),
        "frozen": lambda features_TD: features_TD[len(features_TD) // 2][None].repeat(len(features_TD), 0),
        **{f"frames_{number}": functools.partial(_sample, number=number) for number in (1, 2, 4, 8)},
    }


@torch.inference_mode()
def probe_frame_order(
    store: FeatureStore, clips: list[Clip], classes: list[str], classifier: Classifier, device: torch.device
) -> dict[str, dict[str, Any]]:
    """Return the top-1 accuracy for each change, its difference to `as_is`, and the 95 % interval of that (paired)."""
    perturbed = perturbations()
    predictions: dict[str, list[torch.Tensor]] = {name: [] for name in perturbed}
    with progress("probe", len(clips), "clips") as bar:
        for batch in read_batches(store, clips):
            for name, change in perturbed.items():
                features_NTD, lengths_N = padded([change(features_TD) for features_TD in batch])
                predictions[name].append(classifier(features_NTD.to(device), lengths_N).argmax(1).cpu())
            bar.update(len(batch))
    labels_N = np.array([classes.index(clip.label) for clip in clips])
    groups = [clip.group for clip in clips]
    hits_N = {name: (torch.cat(predicted).numpy() == labels_N).astype(float) for name, predicted in predictions.items()}
    found = {}
    for name, values_N in hits_N.items():
        changed_N = values_N - hits_N["as_is"]
        found[name] = {
            "top1": float(values_N.mean()),
            "difference": float(changed_N.mean()),
            "ci95": group_interval(changed_N, groups),
        }
    return found
