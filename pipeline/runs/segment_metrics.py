"""How well the segments found in recordings agree with the true ones.

A recording is a list of segments `(start, end, label, ...)`, in seconds or any other unit, in order of time."""

import numpy as np

OVERLAPS = 0.1, 0.25, 0.5
ACTIVITYNET_OVERLAPS = 0.3, 0.5, 0.7


def f1(found: list[list], true: list[list], overlap: float) -> float:
    """Return the F1 score over all recordings (Lea et al., Temporal convolutional networks, CVPR 2017).

    A found segment is right if the true segment of its label that it overlaps most has at least this overlap
    (intersection over union) and is not found already."""
    hits = 0
    for mine, theirs in zip(found, true, strict=True):
        taken: set[int] = set()
        for segment in mine:
            overlaps = [iou(segment, other) if segment[2] == other[2] else 0.0 for other in theirs]
            best = int(np.argmax(overlaps)) if overlaps else -1
            if overlaps and overlaps[best] >= overlap and best not in taken:
                taken.add(best)
        hits += len(taken)
    total = sum(map(len, found)) + sum(map(len, true))
    return 2 * hits / total if total else 1.0


def edit_score(found: list[list], true: list[list]) -> float:
    """Return 1 minus the edit distance between the orders of labels, as a fraction of the longer one; the average over
    recordings (Lea et al., Segmental spatiotemporal CNNs, ECCV 2016)."""
    scores = []
    for mine, theirs in zip(found, true, strict=True):
        longer = max(len(mine), len(theirs))
        scores.append(1 - _distance([s[2] for s in mine], [s[2] for s in theirs]) / longer if longer else 1.0)
    return float(np.mean(scores))


def _distance(a: list[str], b: list[str]) -> int:
    """Return the Levenshtein distance."""
    row = list(range(len(b) + 1))
    for number, x in enumerate(a, 1):
        before, row[0] = row[0], number
        for place, y in enumerate(b, 1):
            before, row[place] = row[place], min(row[place] + 1, row[place - 1] + 1, before + (x != y))
    return row[-1]


def mean_average_precision(found: list[list], true: list[list], overlap: float) -> float:
    """Return the mAP over the true labels, as ActivityNet defines it: found segments are ranked by their fourth value,
    and each takes the free true segment of its recording that it overlaps most."""
    labels = sorted({segment[2] for segments in true for segment in segments})
    return float(np.mean([_average_precision(found, true, overlap, label) for label in labels])) if labels else 1.0


def _average_precision(found: list[list], true: list[list], overlap: float, label: str) -> float:
    ranked = [(s[3], n, s) for n, segments in enumerate(found) for s in segments if s[2] == label]
    free = [[s for s in segments if s[2] == label] for segments in true]
    total, is_hit = sum(map(len, free)), []
    for _, number, segment in sorted(ranked, key=lambda item: -item[0]):
        best = max(free[number], key=lambda other: iou(segment, other), default=None)
        is_hit.append(best is not None and iou(segment, best) >= overlap)
        if is_hit[-1]:
            free[number].remove(best)
    hits_K = np.array(is_hit, float)
    precision_K = np.cumsum(hits_K) / np.arange(1, len(hits_K) + 1)
    highest_K = np.maximum.accumulate(precision_K[::-1])[::-1]  # At this or a higher recall.
    return float((highest_K * hits_K).sum() / total)


def iou(a: tuple, b: tuple) -> float:
    """Return the intersection over union of two segments."""
    shared = min(a[1], b[1]) - max(a[0], b[0])
    return max(shared, 0.0) / (max(a[1], b[1]) - min(a[0], b[0]))
