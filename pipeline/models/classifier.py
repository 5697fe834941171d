"""Reduction and head as one module: features of frames -> logits."""

import torch
from torch import nn

from pipeline.models.heads import Head
from pipeline.models.reduction import Reduction


class Classifier(nn.Module):
    """Everything between the cached features and the logits."""

    def __init__(self, reduction: Reduction, head: Head):
        super().__init__()
        self.reduction, self.head = reduction, head

    def forward(self, features_NTD: torch.Tensor, lengths_N: torch.Tensor) -> torch.Tensor:
        """Return the weighted sum of log-probabilities, [N,C]; frames from `lengths_N` on are padding."""
        return self.head(self.reduction(features_NTD, lengths_N), lengths_N)
