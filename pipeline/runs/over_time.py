"""How the answer changes while a clip is seen."""

from typing import Any

import torch

from pipeline.data.clip import Clip
from pipeline.features.store import FeatureStore
from pipeline.models.classifier import Classifier
from pipeline.runs.dataset import padded


@torch.inference_mode()
def probability_over_time(
    store: FeatureStore, clips: list[Clip], classes: list[str], classifier: Classifier, device: torch.device
) -> list[dict[str, Any]]:
    """Return for each clip the `seconds` of its frames, and the `probability` of its class after each of them."""
    found = []
    for clip in clips:
        if entry := store.read(clip):
            parts = [entry.features[: end + 1] for end in range(len(entry.features))]
            features_NTD, lengths_N = padded(parts)
            probabilities_N = classifier(features_NTD.to(device), lengths_N).softmax(1)[:, classes.index(clip.label)]
            found.append({"clip": clip.id, "seconds": entry.pts.tolist(), "probability": probabilities_N.tolist()})
    return found
