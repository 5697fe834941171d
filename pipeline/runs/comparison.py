"""Runs on the same test clips: their accuracies, and the differences to the first, paired on the clips."""

from typing import Any, NamedTuple

import numpy as np

from pipeline.base.errors import ConfigError
from pipeline.runs.metrics import group_interval
from pipeline.runs.results import Results


class Comparison(NamedTuple):
    runs: list[dict[str, Any]]  # Name, head, seed, top1, its interval, difference to the first, its interval, verdict.
    clips: dict[str, list[dict[str, Any]]]  # Rows of predictions.csv, one of each run, by clip.
    groups: int
    left_out: int  # Clips that only some runs were tested on.


def compare_runs(results: list[Results]) -> Comparison:
    """Compare runs on the clips that all of them were tested on. The interval of a difference is over groups."""
    rows_of = [{(row["clip"], row["label"], row["group"]): row for row in result.rows} for result in results]
    common = [key for key in rows_of[0] if all(key in rows for rows in rows_of)]
    if not common:
        raise ConfigError(f"{results[0].name} and {results[1].name}: no test clips in common, so nothing to compare")
    groups = [group for _, _, group in common]
    hits = [np.array([rows[key]["predicted"] == rows[key]["label"] for key in common], float) for rows in rows_of]
    runs = []
    for result, hits_N in zip(results, hits, strict=True):
        row = {"run": result.name, "head": result.metrics["head"], "seed": result.metrics["seed"]}
        row |= {"top1": float(hits_N.mean()), "top1_ci95": group_interval(hits_N, groups, lowest=0)}
        gains_N = hits_N - hits[0]
        edges = group_interval(gains_N, groups)
        shown = edges and not edges[0] <= 0 <= edges[1]
        verdict = ("better" if edges[0] > 0 else "worse") if shown else "no difference shown"
        runs.append(row | {"difference": float(gains_N.mean()), "difference_ci95": edges, "verdict": verdict})
    clips = {key[0]: [rows[key] for rows in rows_of] for key in common}
    return Comparison(runs, clips, len({*groups}), len(set().union(*rows_of)) - len(common))
