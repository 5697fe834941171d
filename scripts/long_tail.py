"""Measure what `train.imbalance` is worth where classes are of uneven size, on a data set with three official splits.

    python scripts/long_tail.py --config configs/ucf101.yaml

The training clips of each split are cut so that the classes fall in size by equal factors, from the first to the last
ten to one; the test clips stay as they are. Each cut of a split begins with another class, so that with as many cuts as
classes each is at every rank once. Features must be there. Further arguments are settings.
"""

import argparse
import csv
import dataclasses
import random
from collections import Counter
from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np

from pipeline.base.settings import build
from pipeline.config import Config, DataConfig, TrainConfig
from pipeline.data.clip import Clip
from pipeline.data.splits import load_dataset
from pipeline.evaluate import evaluate
from pipeline.runs.metrics import group_interval
from pipeline.train import train

WAYS = get_args(get_type_hints(TrainConfig)["imbalance"])
RATIO = 10
"""Of the largest class to the smallest."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=Path("data/runs"))
    parser.add_argument("--splits", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--cuts", type=int, default=7, help="of each split")
    args, settings = parser.parse_known_args()
    overrides = {name.removeprefix("--"): value for name, value in zip(settings[::2], settings[1::2], strict=True)}
    config = build(Config, args.config, overrides)

    right: dict[tuple[str, str], list[np.ndarray]] = {}
    groups: list[str] = []
    for split in args.splits:
        dataset = load_dataset(dataclasses.replace(config.data, split=split))
        if not isinstance(dataset.split, int):
            raise SystemExit(f"the data set of {args.config} has no official splits")
        learned = [*dataset.of("train"), *dataset.of("val")]
        for first in range(0, len(dataset.classes), -(-len(dataset.classes) // args.cuts)):
            order = dataset.classes[first:] + dataset.classes[:first]
            name = f"{args.config.stem}-tail-s{split}-{first}"
            lists = args.runs / f"{name}.csv"
            lists.parent.mkdir(parents=True, exist_ok=True)
            write_lists(lists, [*cut(learned, order), *dataset.of("test")])
            data = DataConfig(root=config.data.root, lists=lists)
            for way in WAYS:
                of_way = dataclasses.replace(config.train, imbalance=way)
                run = f"{name}-{way}"
                train(dataclasses.replace(config, data=data, train=of_way, runs=args.runs), run)
                evaluate(args.runs / run, False, {})
                with (args.runs / run / "predictions.csv").open(newline="") as stream:
                    rows = list(csv.DictReader(stream))
                # So weighted, the mean over clips is that over classes.
                sizes = Counter(row["label"] for row in rows)
                weights = np.array([len(rows) / len(sizes) / sizes[row["label"]] for row in rows])
                for column in [column for column in rows[0] if column.endswith("predicted")]:
                    values = weights * [row[column] == row["label"] for row in rows]
                    right.setdefault((column, way), []).append(values)
            groups += [row["group"] for row in rows]

    cuts = len(next(iter(right.values())))
    print(f"{cuts} cuts: mean-class accuracy, mean and standard deviation over the cuts; then the difference to")
    print(f"{WAYS[0]} on the clips of all cuts, with the 95 % interval over groups")
    for (column, way), runs in right.items():
        means = np.array([values.mean() for values in runs])
        classifier = column.removesuffix("predicted").strip("_") or config.head.kind
        more = np.concatenate(runs) - np.concatenate(right[column, WAYS[0]])
        low, high = group_interval(more, groups) or (np.nan, np.nan)
        print(
            f"{classifier:9} {way:9} {means.mean():.3f} ± {means.std(ddof=1):.3f}   "
            f"{more.mean():+.3f} ({low:+.3f} to {high:+.3f})"
        )


def cut(clips: list[Clip], order: list[str]) -> list[Clip]:
    """Leaves the first class as many clips as the smallest has, the last `RATIO` times fewer, drawn at random."""
    shuffled = random.Random(0).sample(clips, len(clips))
    of_class = {label: [clip for clip in shuffled if clip.label == label] for label in order}
    most = min(map(len, of_class.values()))
    numbers = np.geomspace(most, most / RATIO, len(order)).round().astype(int)
    return [clip for label, number in zip(order, numbers, strict=True) for clip in of_class[label][:number]]


def write_lists(path: Path, clips: list[Clip]) -> None:
    with path.open("w", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(["path", "label", "group", "split"])
        rows.writerows([clip.id, clip.label, clip.group, clip.split.replace("val", "train")] for clip in clips)


if __name__ == "__main__":
    main()
