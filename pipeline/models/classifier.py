"""Reduction and head as one module: features of frames -> logits."""

import dataclasses

import torch
from torch import nn

from pipeline.config import HeadConfig
from pipeline.models.heads import KINDS, Head
from pipeline.models.reduction import Reduction


class Classifier(nn.Module):
    """Everything between the cached features and the logits."""

    def __init__(self, width: int, components: int, classes: int, config: HeadConfig):
        super().__init__()
        self.reduction = Reduction(width, components)
        self.head = Head(components, classes, config)

    def forward(self, features_NTD: torch.Tensor, lengths_N: torch.Tensor) -> torch.Tensor:
        """Return the weighted sum of log-probabilities, [N,C]; frames from `lengths_N` on are padding."""
        return self.head(self.reduction(features_NTD, lengths_N), lengths_N)


def baselines(head: Head, components: int, classes: int, config: HeadConfig) -> dict[str, Head]:
    """Return the simpler heads that are part of a head, by kind; they share its paths."""
    found = {}
    for kind in ("pyramid", "mean"):
        if kind != config.kind and {*KINDS[kind]} < {*head.paths}:
            found[kind] = Head(components, classes, dataclasses.replace(config, kind=kind)).to(head.weights.device)
            for name in found[kind].paths:
                found[kind].paths[name] = head.paths[name]
    return found
