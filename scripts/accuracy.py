"""Measure heads on data sets: every set on its splits with several seeds, against the baselines on the same clips.

    python scripts/accuracy.py --config configs/ucf101.yaml
    python scripts/accuracy.py --config strokes7.yaml lips10.yaml --kinds bilstm transformer --seeds 0 1 2

The splits are the official ones, or three cuts by group where the data set has none (`data.split_seed` 1, 2, 3).
Features are extracted if they are missing. Further arguments are settings, such as `--head.hidden 64`. Runs are named
`<config>-<kind>-s<split>-r<seed>`; a run that exists is not trained again.
"""

import argparse
import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.base.settings import build
from pipeline.config import Config
from pipeline.data.splits import load_dataset
from pipeline.evaluate import evaluate
from pipeline.extract import extract
from pipeline.runs.metrics import group_interval
from pipeline.train import train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, nargs="+", required=True)
    parser.add_argument("--kinds", nargs="+", default=["bilstm"])
    parser.add_argument("--splits", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args, settings = parser.parse_known_args()
    overrides = {name.removeprefix("--"): value for name, value in zip(settings[::2], settings[1::2], strict=True)}
    lines, trust = [], []
    for file in args.config:
        config = build(Config, file, overrides)
        for kind in args.kinds:
            of_kind = replace(config, head=replace(config.head, kind=kind))
            runs = [run_once(of_kind, file, split, seed) for split in args.splits for seed in args.seeds]
            lines += rows_of(f"{file.stem}, {kind}", [rows for rows, _ in runs])
            trust.append(trust_row(f"{file.stem}, {kind}", [metrics for _, metrics in runs]))
    print(f"\nMean top-1 and standard deviation over {len(args.splits)} splits x {len(args.seeds)} seeds.")
    print("Gain: paired difference to the baseline, with the 95 % confidence interval over groups.\n")
    print("| set, head | top-1 | baseline | top-1 | gain |\n|---|--:|---|--:|--:|")
    print("\n".join(lines))
    print("\nECE: expected calibration error. Unknown: clips below the threshold of `predict --unknown`.\n")
    print("| set, head | ECE, equal weights | ECE | unknown | of these wrong | top-1 of the others |")
    print("|---|--:|--:|--:|--:|--:|", *trust, sep="\n")


def run_once(config: Config, file: Path, split: int, seed: int) -> tuple[list[dict[str, str]], dict[str, Any]]:
    """Train and evaluate one run, and return the rows of its predictions.csv and its metrics."""
    official = isinstance(load_dataset(config.data).split, int)
    data = replace(config.data, split=split) if official else replace(config.data, split_seed=split)
    config = replace(config, data=data, train=replace(config.train, seed=seed), tracking="off")
    run = f"{file.stem}-{config.head.kind}-s{split}-r{seed}"
    extract(config, [f"--config={file}"])
    train(config, run)
    evaluate(config.runs / run, False, {"tracking": "off"})
    with (config.runs / run / "predictions.csv").open(newline="", encoding="utf-8", errors="surrogateescape") as stream:
        return list(csv.DictReader(stream)), json.loads((config.runs / run / "metrics.json").read_text())


def rows_of(name: str, runs: list[list[dict[str, str]]]) -> list[str]:
    """Return a table row for each baseline of the runs."""
    groups = [row["group"] for run in runs for row in run]
    columns = [column for column in runs[0][0] if column.endswith("predicted")]
    right = {name: [np.array([row[name] == row["label"] for row in run], float) for run in runs] for name in columns}
    head, *baselines = columns
    rows = []
    for baseline in baselines:
        gain = np.concatenate(right[head]) - np.concatenate(right[baseline])
        edges = group_interval(gain, groups)  # None if the two are right on the same clips.
        interval = " ({:+.3f} to {:+.3f})".format(*edges) if edges else ""
        kind = baseline.removesuffix("_predicted")
        cells = name, mean(right[head]), kind, mean(right[baseline]), f"{gain.mean():+.3f}{interval}"
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def trust_row(name: str, runs: list[dict[str, Any]]) -> str:
    """Return a table row on how far the probabilities of the runs can be trusted."""
    errors = [mean([np.array(run[key]) for run in runs]) for key in ("ece_equal_weights", "ece")]
    unknown = sum(run["unknown"]["unknown"] for run in runs)
    right = sum(run["unknown"]["unknown_but_right"] for run in runs)
    wrong = f"{1 - right / unknown:.2f}" if unknown else ""
    known = mean([np.array(run["unknown"]["top1_of_known"]) for run in runs])
    share = f"{unknown / sum(run['n_clips'] for run in runs):.3f}"
    return f"| {' | '.join([name, *errors, share, wrong, known])} |"


def mean(runs: list[np.ndarray]) -> str:
    """Return "0.768 ± 0.021" of the runs."""
    values = np.array([run.mean() for run in runs])
    return f"{values.mean():.3f} ± {values.std(ddof=1):.3f}" if len(values) > 1 else f"{values.mean():.3f}"


if __name__ == "__main__":
    main()
