"""What logits are worth: accuracies, their uncertainty over groups, and where they go wrong."""

import math
from collections import Counter
from typing import Any

import numpy as np
from scipy.stats import bootstrap, norm, t
from sklearn.metrics import f1_score, precision_recall_fscore_support, recall_score


def measure(logits_NC: np.ndarray, labels_N: np.ndarray, groups: list[str]) -> dict[str, Any]:
    """Computes the accuracies of one classifier.

    Args:
        logits_NC: any scores, float.
        labels_N: true classes, int.
        groups: group of each clip.

    Returns:
        top1, top5, mean_class (mean recall of the classes tested), macro_f1 (of the same), and top1_ci95, the 95 %
        confidence interval of top1 by a bootstrap over groups, since clips of one group are not independent (None for
        one group).
    """
    predicted_N = logits_NC.argmax(1)
    tested = np.unique(labels_N)
    best_five_N5 = np.argsort(-logits_NC, axis=1, kind="stable")[:, :5]
    return {
        "top1": float((predicted_N == labels_N).mean()),
        "top5": float((best_five_N5 == labels_N[:, None]).any(1).mean()),
        "mean_class": float(recall_score(labels_N, predicted_N, labels=tested, average="macro")),
        "macro_f1": float(f1_score(labels_N, predicted_N, labels=tested, average="macro", zero_division=0)),
        "top1_ci95": group_interval(predicted_N == labels_N, groups),
    }


def group_interval(values_N: np.ndarray, groups: list[str]) -> list[float] | None:
    """Bootstraps the mean of per-clip values over whole groups (percentile method, 2,000 draws).

    The percentiles are moved outwards by as much as Student's t with the unbiased deviation is wider than the normal
    distribution, else intervals of few groups are too narrow (Hesterberg, The American Statistician 69, 2015).

    Returns:
        [low, high] of the 95 % interval, or None where there are fewer than two groups.
    """
    _, group_N = np.unique(groups, return_inverse=True)
    sums_G, counts_G = np.bincount(group_N, values_N), np.bincount(group_N)
    if len(counts_G) < 2:
        return None
    groups_less_one = len(counts_G) - 1
    quantile = math.sqrt(len(counts_G) / groups_less_one) * t.ppf(0.975, groups_less_one)
    interval = bootstrap(
        (sums_G, counts_G),
        lambda sums, counts, axis: sums.sum(axis) / counts.sum(axis),
        paired=True,
        vectorized=True,
        n_resamples=2000,
        batch=200,
        method="percentile",
        confidence_level=1 - 2 * norm.sf(quantile),
        rng=np.random.default_rng(0),
    ).confidence_interval
    return [float(interval.low), float(interval.high)]


def per_class(predicted_N: np.ndarray, labels_N: np.ndarray, classes: list[str]) -> list[dict[str, Any]]:
    """Returns precision, recall, F1 and number of clips of every class."""
    columns = precision_recall_fscore_support(labels_N, predicted_N, labels=np.arange(len(classes)), zero_division=0)
    return [
        {"class": name, "precision": float(p), "recall": float(r), "f1": float(f), "clips": int(n)}
        for name, p, r, f, n in zip(classes, *columns, strict=True)
    ]


def most_confused(predicted_N: np.ndarray, labels_N: np.ndarray, classes: list[str]) -> list[dict[str, Any]]:
    """Lists the ten pairs of true and predicted class with the most wrong clips."""
    wrong = Counter((true, got) for true, got in sorted(zip(labels_N, predicted_N, strict=True)) if true != got)
    return [{"class": classes[true], "taken_for": classes[got], "clips": n} for (true, got), n in wrong.most_common(10)]
