"""The geometry of SVG charts: numbers -> places and texts, for the templates in `pipeline/pages/`."""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from sklearn.metrics import confusion_matrix

WIDTH, HEIGHT = 360, 220
LEFT, RIGHT, TOP, BOTTOM = 44, 350, 10, 190  # Edges of the plot.
BINS = 15


def line_chart(title: str, lines: dict[str, list[tuple[float, float]]]) -> dict[str, Any]:
    """Draw lines, given by their points, over the epochs."""
    lines = {name: points for name, points in lines.items() if points}
    xs, ys = zip(*(point for points in lines.values() for point in points), strict=True)
    x_of, x_ticks = _axis(min(xs), max(xs), LEFT, RIGHT, whole=True)
    y_of, y_ticks = _axis(min(ys), max(ys), BOTTOM, TOP)
    drawn = []
    for name, points in lines.items():
        places = [(round(x_of(x), 1), round(y_of(y), 1)) for x, y in points]
        texts = [f"{y:.3f}" for _, y in points]
        drawn.append({"name": name, "places": places, "texts": texts, "epochs": [x for x, _ in points]})
    return {"title": title, "lines": drawn, "x_ticks": x_ticks, "y_ticks": y_ticks}


def _axis(low: float, high: float, first: float, last: float, whole: bool = False) -> tuple[Any, list]:
    """Return a function from values to places, and the ticks, (place, text), at round numbers."""
    if high == low:
        low, high = low - 0.5, high + 0.5
    rough = (high - low) / 4
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    step = max(step, 1) if whole else step

    def place(value: float) -> float:
        return first + (value - low) / (high - low) * (last - first)

    ticks = [number * step for number in range(math.ceil(low / step), math.floor(high / step + 1e-9) + 1)]
    return place, [(round(place(tick), 1), f"{tick:g}") for tick in ticks]


def confusions(labels: list[str], predicted: list[str], classes: list[str]) -> dict[str, Any]:
    """Draw a confusion matrix: its cells that are not empty, and sizes in pixels."""
    counts_CC = confusion_matrix(labels, predicted, labels=classes)
    totals_C = counts_CC.sum(1)
    cell = min(max(760 // len(classes), 9), 44)
    font = min(max(cell - 2, 7), 12)
    margin = round(min(max(map(len, classes)), 24) * font * 0.56) + 12
    cells = [
        {"true": true, "got": got, "count": int(count), "total": int(totals_C[true]), "share": count / totals_C[true]}
        for (true, got), count in np.ndenumerate(counts_CC)
        if count
    ]
    return {"cells": cells, "cell": cell, "font": font, "margin": margin, "side": cell * len(classes)}


def reliability(confidences: Iterable[float], hits: Iterable[bool]) -> dict[str, Any]:
    """Draw accuracy over confidence in bins of equal width."""
    confidence_N, hit_N = np.array([*confidences]), np.array([*hits], float)
    bin_N = np.minimum((confidence_N * BINS).astype(int), BINS - 1)
    bins = []
    for number in np.unique(bin_N):
        inside = bin_N == number
        accuracy, confidence = hit_N[inside].mean(), confidence_N[inside].mean()
        bins.append({"number": int(number), "clips": int(inside.sum()), "accuracy": accuracy, "confidence": confidence})
    return {"bins": bins, "accuracy": hit_N.mean(), "confidence": confidence_N.mean()}
