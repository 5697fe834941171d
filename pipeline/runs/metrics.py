"""Accuracies of a classifier, their confidence intervals over groups, and its confusions."""

from collections import Counter
from typing import Any

import numpy as np
from scipy.special import expit, logit
from scipy.stats import t
from sklearn.metrics import f1_score, precision_recall_fscore_support, recall_score


def measure(logits: dict[str, np.ndarray], labels_N: np.ndarray, groups: list[str], classes: list[str]) -> dict:
    """Measure classifiers, given by their logits or other scores [N,C], and compare the first to each of the others."""
    (head, logits_NC), *others = logits.items()
    predicted_N = logits_NC.argmax(1)
    hits_N = (predicted_N == labels_N).astype(float)
    baselines = {}
    for name, other_NC in others:
        gains_N = hits_N - (other_NC.argmax(1) == labels_N)
        baselines[name] = accuracies(other_NC, labels_N, groups)
        baselines[name] |= {"gain": float(gains_N.mean()), "gain_ci95": group_interval(gains_N, groups)}
    columns = precision_recall_fscore_support(labels_N, predicted_N, labels=range(len(classes)), zero_division=0)
    pairs = Counter((true, got) for true, got in sorted(zip(labels_N, predicted_N, strict=True)) if true != got)
    return {
        "head": head,
        **accuracies(logits_NC, labels_N, groups),
        "baselines": baselines,
        "per_class": [
            {"class": name, "precision": float(p), "recall": float(r), "f1": float(f), "clips": int(n)}
            for name, p, r, f, n in zip(classes, *columns, strict=True)
        ],
        "most_confused": [
            {"class": classes[true], "taken_for": classes[got], "clips": n} for (true, got), n in pairs.most_common(10)
        ],
    }


def accuracies(logits_NC: np.ndarray, labels_N: np.ndarray, groups: list[str]) -> dict[str, Any]:
    """Return top-1 with its confidence interval, top-5, mean recall and macro F1 of the tested classes."""
    predicted_N, tested = logits_NC.argmax(1), np.unique(labels_N)
    best_five_N5 = np.argsort(-logits_NC, axis=1, kind="stable")[:, :5]
    return {
        "top1": float((predicted_N == labels_N).mean()),
        "top5": float((best_five_N5 == labels_N[:, None]).any(1).mean()),
        "mean_class": float(recall_score(labels_N, predicted_N, labels=tested, average="macro")),
        "macro_f1": float(f1_score(labels_N, predicted_N, labels=tested, average="macro", zero_division=0)),
        "top1_ci95": group_interval(predicted_N == labels_N, groups, lowest=0),
    }


def group_interval(values_N: np.ndarray, groups: list[str], lowest: float = -1) -> list[float] | None:
    """Compute the 95 % confidence interval [low, high] of a mean over clips, with groups as the independent units.

    The values lie between `lowest` and 1. The variance is cluster-robust (CR2), but at least that of independent clips,
    since few groups can agree by chance. Student's t has the degrees of freedom of Bell and McCaffrey (Survey
    Methodology 28, 2002). Symmetry in the logit of the mean keeps the interval within the range. If all values are at
    one end, it is the binomial interval (Clopper and Pearson, 1934) of the groups. None for one group, or if all values
    are the same and inside the range."""
    _, group_N = np.unique(groups, return_inverse=True)
    scaled_N = (np.asarray(values_N, float) - lowest) / (1 - lowest)
    sizes_G, clips, mean = np.bincount(group_N), len(scaled_N), scaled_N.mean()
    if len(sizes_G) == 1:
        return None
    if mean in (0, 1):
        limit = 0.025 ** (1 / len(sizes_G))
        edges = [limit, 1.0] if mean else [0.0, 1 - limit]
    else:
        shares_G = sizes_G / clips
        robust = (np.bincount(group_N, scaled_N - mean) ** 2 / (1 - shares_G)).sum() / clips**2
        variance = max(robust, scaled_N.var(ddof=1) / clips)
        if variance == 0:
            return None
        weights_G = shares_G**2 / (1 - shares_G)
        degrees = 1 / ((shares_G**2).sum() + weights_G.sum() ** 2 - (weights_G**2).sum())
        half_width = t.ppf(0.975, degrees) * variance**0.5 / (mean * (1 - mean))
        edges = expit(logit(mean) + np.array([-half_width, half_width]))
    return [float(lowest + (1 - lowest) * edge) for edge in edges]
