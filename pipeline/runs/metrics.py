"""Accuracies of a classifier, their confidence intervals over groups, and its confusions."""

from collections import Counter
from typing import Any

import numpy as np
from scipy.special import expit, logit
from scipy.stats import t
from sklearn.metrics import f1_score, precision_recall_fscore_support, recall_score


def measure(logits_NC: np.ndarray, labels_N: np.ndarray, groups: list[str]) -> dict[str, Any]:
    """Compute the accuracies of one classifier.

    Args:
        logits_NC: any scores, float.
        labels_N: true classes, int.
        groups: group of each clip.

    Returns:
        top1, top5, mean_class (mean recall of the tested classes), macro_f1 (of the tested classes), and top1_ci95, the
        95 % confidence interval of top1 over groups (see `group_interval`).
    """
    predicted_N = logits_NC.argmax(1)
    tested = np.unique(labels_N)
    best_five_N5 = np.argsort(-logits_NC, axis=1, kind="stable")[:, :5]
    return {
        "top1": float((predicted_N == labels_N).mean()),
        "top5": float((best_five_N5 == labels_N[:, None]).any(1).mean()),
        "mean_class": float(recall_score(labels_N, predicted_N, labels=tested, average="macro")),
        "macro_f1": float(f1_score(labels_N, predicted_N, labels=tested, average="macro", zero_division=0)),
        "top1_ci95": group_interval(predicted_N == labels_N, groups, lowest=0),
    }


def group_interval(values_N: np.ndarray, groups: list[str], lowest: float = -1) -> list[float] | None:
    """Compute the 95 % confidence interval of a mean over clips, with groups as the independent units.

    Clips of a group are alike, so the variance is that of group totals (cluster-robust, CR2), but at least that of
    independent clips, since few groups can agree by chance. Student's t has the degrees of freedom of Bell and
    McCaffrey (Survey Methodology 28, 2002): one less than the number of groups if these are equally large, fewer
    otherwise. The interval is symmetric in the logit of the mean, so that it stays within its range.

    If all values are at one end of the range, the other limit is the one at which so many groups without exception
    have a probability of 2.5 %.

    Args:
        values_N: a value for each clip, from `lowest` to 1.
        groups: group of each clip.
        lowest: 0 for hits, -1 for differences of hits.

    Returns:
        [low, high], or None if there is one group, or if all values are the same and inside the range.
    """
    _, group_N = np.unique(groups, return_inverse=True)
    scaled_N = (np.asarray(values_N, float) - lowest) / (1 - lowest)
    sums_G, sizes_G, clips = np.bincount(group_N, scaled_N), np.bincount(group_N), len(scaled_N)
    if len(sizes_G) == 1:
        return None
    mean, shares_G = scaled_N.mean(), sizes_G / clips
    if mean in (0, 1):
        limit = 0.025 ** (1 / len(sizes_G))
        edges = [limit, 1.0] if mean else [0.0, 1 - limit]
    else:
        robust = ((sums_G - mean * sizes_G) ** 2 / (1 - shares_G)).sum() / clips**2
        variance = max(robust, scaled_N.var(ddof=1) / clips)
        if variance == 0:
            return None
        weights_G = shares_G**2 / (1 - shares_G)
        degrees = 1 / ((shares_G**2).sum() + weights_G.sum() ** 2 - (weights_G**2).sum())
        half_width = t.ppf(0.975, degrees) * variance**0.5 / (mean * (1 - mean))
        edges = expit(logit(mean) + np.array([-half_width, half_width]))
    return [float(lowest + (1 - lowest) * edge) for edge in edges]


def per_class(predicted_N: np.ndarray, labels_N: np.ndarray, classes: list[str]) -> list[dict[str, Any]]:
    """Return precision, recall, F1 and number of clips of every class."""
    columns = precision_recall_fscore_support(labels_N, predicted_N, labels=np.arange(len(classes)), zero_division=0)
    return [
        {"class": name, "precision": float(p), "recall": float(r), "f1": float(f), "clips": int(n)}
        for name, p, r, f, n in zip(classes, *columns, strict=True)
    ]


def most_confused(predicted_N: np.ndarray, labels_N: np.ndarray, classes: list[str]) -> list[dict[str, Any]]:
    """List the ten pairs of true and predicted class with the most clips."""
    wrong = Counter((true, got) for true, got in sorted(zip(labels_N, predicted_N, strict=True)) if true != got)
    return [{"class": classes[true], "taken_for": classes[got], "clips": n} for (true, got), n in wrong.most_common(10)]
