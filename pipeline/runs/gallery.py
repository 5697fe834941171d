"""The clips that a report shows, with previews that play."""

import random
from collections import defaultdict
from contextlib import closing
from typing import Any

import numpy as np
from scipy.special import softmax

from pipeline.base.progress import progress
from pipeline.config import DecodeConfig
from pipeline.data.clip import Clip
from pipeline.runs.comparison import Comparison
from pipeline.runs.results import Results
from pipeline.video.preview import Preview, make_previews
from pipeline.video.workers import Failure

PREVIEWS = 240
"""Clips shown by default: 7 MB for clips like those of UCF101."""
RIGHT_ANSWERS = 24


def cards(results: Results, clips: list[Clip], decode: DecodeConfig, limit: int = PREVIEWS) -> list[dict[str, Any]]:
    """Return the chosen rows of predictions.csv, with previews from the videos of `clips`, or the reason for none."""
    rows = choose(results, limit)
    previews = _previews([row["clip"] for row in rows], clips, decode)
    others = [name for name in results.metrics["baselines"] if name != "majority"]
    return [
        row
        | {
            "right": row["predicted"] == row["label"],
            "best": _best(row, results.classes),
            "others": {name: row[f"{name}_predicted"] for name in others},
            "preview": previews[row["clip"]],
        }
        for row in rows
    ]


def disagreements(compared: Comparison, clips: list[Clip], decode: DecodeConfig, limit: int) -> list[dict[str, Any]]:
    """Return clips that some runs classify correctly and others do not, the most confident first."""
    mixed = [rows for rows in compared.clips.values() if len({row["predicted"] == row["label"] for row in rows}) == 2]
    chosen = sorted(mixed, key=lambda rows: -max(row["probability"] for row in rows))[:limit]
    previews = _previews([rows[0]["clip"] for rows in chosen], clips, decode)
    return [
        {"clip": rows[0]["clip"], "label": rows[0]["label"], "answers": rows, "preview": previews[rows[0]["clip"]]}
        for rows in chosen
    ]


def choose(results: Results, limit: int) -> list[dict[str, Any]]:
    """Choose the most confident mistakes of each pair of classes in turn, then some right answers."""
    by_pair, right, ranked = defaultdict(list), [], []
    for row in sorted(results.rows, key=lambda row: -row["probability"]):
        if row["predicted"] == row["label"]:
            right.append(row)
        else:
            pair = by_pair[row["label"], row["predicted"]]
            pair.append(row)
            ranked.append((len(pair), row))
    mistakes = [row for _, row in sorted(ranked, key=lambda item: item[0])][:limit]
    return mistakes + random.Random(0).sample(right, min(RIGHT_ANSWERS, limit - len(mistakes), len(right)))


def _best(row: dict[str, Any], classes: list[str], top: int = 3) -> list[tuple[str, float]]:
    """Return the most likely classes of a row of predictions.csv with their probabilities."""
    probabilities_C = softmax(row["logits"])
    return [(classes[place], float(probabilities_C[place])) for place in np.argsort(-probabilities_C)[:top]]


def _previews(ids: list[str], clips: list[Clip], decode: DecodeConfig) -> dict[str, Preview | Failure]:
    """Return a preview, or the reason for none, by the id of the clip."""
    of_id = {clip.id: clip for clip in clips}
    wanted = [of_id[name] for name in ids if name in of_id]
    made = dict.fromkeys(ids, Failure("not among the clips of this run"))
    with closing(make_previews(wanted, decode)) as previews:
        for clip, preview in progress("previews", len(wanted), "clips", previews):
            made[clip.id] = preview
    return made
