"""How far the probability of an answer can be trusted."""

from typing import Any

import numpy as np
from scipy.special import softmax

KEPT = 0.95
"""Fraction of the right answers on validation clips that `predict --unknown` keeps."""


def calibration_error(logits_NC: np.ndarray, labels_N: np.ndarray, bins: int = 15) -> float:
    """Return the expected calibration error: the mean distance between the probability of the answers and their
    accuracy, in bins of equal width (Guo et al., On calibration of modern neural networks, ICML 2017)."""
    probability_N, is_right_N = _answers(logits_NC, labels_N)
    bin_N = np.minimum((probability_N * bins).astype(int), bins - 1)
    return float(np.abs(np.bincount(bin_N, probability_N - is_right_N)).sum() / len(labels_N))


def unknown_threshold(logits_NC: np.ndarray, labels_N: np.ndarray) -> float:
    """Return the probability that the fraction `KEPT` of the right answers reaches; 1 if none is right."""
    probability_N, is_right_N = _answers(logits_NC, labels_N)
    return float(np.quantile(probability_N[is_right_N], 1 - KEPT)) if is_right_N.any() else 1.0


def rejections(logits_NC: np.ndarray, labels_N: np.ndarray, threshold: float) -> dict[str, Any]:
    """Count the answers below the threshold and how many of them are right; measure the accuracy of the others."""
    probability_N, is_right_N = _answers(logits_NC, labels_N)
    is_known_N = probability_N >= threshold
    return {
        "threshold": threshold,
        "unknown": int((~is_known_N).sum()),
        "unknown_but_right": int((~is_known_N & is_right_N).sum()),
        "top1_of_known": float(is_right_N[is_known_N].mean()) if is_known_N.any() else None,
    }


def _answers(logits_NC: np.ndarray, labels_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the probability of the most likely class of each clip, and whether it is the right one."""
    return softmax(logits_NC, axis=1).max(1), logits_NC.argmax(1) == labels_N
