"""Stacking: the fusion weight of each branch of a head, fitted on validation clips."""

import torch
from torch.nn.functional import cross_entropy

from pipeline.models.heads import Head
from pipeline.runs.dataset import ClipSet

PRIOR = 1.0
"""Strength of the Gaussian prior around the initial weights, in clips."""


@torch.no_grad()
def branch_log_probs(head: Head, clips: ClipSet) -> torch.Tensor:
    """Return the log-probabilities of each branch, float32 [P,N,C]."""
    batches = zip(clips.frames_NTF.split(1024), clips.lengths_N.split(1024), strict=True)
    return torch.cat([head.logits(frames, lengths).log_softmax(-1) for frames, lengths in batches], 1)


def fit_weights(logs_PNC: torch.Tensor, labels_N: torch.Tensor, start_P: torch.Tensor) -> torch.Tensor:
    """Find the non-negative weights, float32 [P], with the highest likelihood of clips not used for training.

    The sum of weighted log-probabilities is a product of experts (Hinton, 2002): an uninformative branch gets the
    weight 0, and an overconfident one less than 1. The problem is convex. A Gaussian prior around `start_P` dominates
    when clips are few. A branch that starts at 0 stays there."""
    roots = start_P.sqrt().requires_grad_()
    optimizer = torch.optim.LBFGS([roots], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        weights = roots.square()
        loss = cross_entropy((logs_PNC * weights[:, None, None]).sum(0), labels_N, reduction="sum")
        loss = (loss + PRIOR * (weights - start_P).square().sum()) / len(labels_N)
        loss.backward()
        return loss

    optimizer.step(loss)
    return roots.detach().square()
