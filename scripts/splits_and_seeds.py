"""Train and evaluate one config over three splits and several seeds, and compare the classifiers.

    python scripts/splits_and_seeds.py --config configs/ucf101.yaml --seeds 0 1 2

The splits are the official ones, or, where the data set has none, three cuts by group (`data.split_seed` 1, 2, 3).
Settings can be given as with `kinema train`, such as `--head.hidden 64`. A bundle is named `<config>-s<split>-r<seed>`.
"""

import argparse
import csv
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np

from pipeline.base.errors import KinemaError
from pipeline.base.settings import build, flatten
from pipeline.config import Config
from pipeline.data.splits import load_dataset
from pipeline.runs.metrics import group_interval


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--splits", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    known = flatten(Config)
    for name in known:
        parser.add_argument(f"--{name}", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    overrides = {name: value for name, value in vars(args).items() if name in known}
    settings = [part for name, value in overrides.items() for part in (f"--{name}", value)]

    signal.signal(signal.SIGINT, signal.SIG_DFL)  # The command that runs tells of a Ctrl-C.
    try:
        config = build(Config, args.config, overrides)
        split_of_set = load_dataset(config.data).split
    except KinemaError as error:
        raise SystemExit(str(error)) from None
    if split_of_set == "given" and len(args.splits) > 1:
        raise SystemExit(f"the data set of {args.config} names its one split: add --splits 1")
    varied = "--data.split" if isinstance(split_of_set, int) else "--data.split_seed"

    def kinema(verb: str, *arguments: object) -> None:
        command = [sys.executable, "-m", "pipeline.cli", verb, *map(str, arguments)]
        if subprocess.run(command).returncode:
            raise SystemExit(f"failed: kinema {shlex.join(command[3:])}")

    runs = []
    for split in args.splits:
        of_split = ["--config", args.config, *settings, varied, split]
        kinema("extract", *of_split)  # HMDB51's splits are of different clips.
        for seed in args.seeds:
            run = config.runs / f"{args.config.stem}-s{split}-r{seed}"
            kinema("train", *of_split, "--train.seed", seed, "--run", run.name)
            kinema("evaluate", run)
            with (run / "predictions.csv").open(newline="") as stream:
                runs.append(list(csv.DictReader(stream)))

    predicted = [name for name in runs[0][0] if name.endswith("predicted")]
    right = {name: [np.array([row[name] == row["label"] for row in run]) for run in runs] for name in predicted}
    groups = [row["group"] for run in runs for row in run]
    print(f"{len(args.splits)} splits, {len(args.seeds)} seeds: mean top-1 and standard deviation over the runs;")
    print("then by how much the head is better on the clips of all runs, with the 95 % interval over groups")
    head = np.concatenate(right["predicted"]).astype(float)
    for name in predicted:
        top1 = np.array([values.mean() for values in right[name]])
        line = f"{name.removesuffix('predicted').strip('_') or 'head':9} {top1.mean():.3f} ± {top1.std(ddof=1):.3f}"
        if name != "predicted":
            better = head - np.concatenate(right[name])
            low, high = group_interval(better, groups)
            line += f"   {better.mean():+.3f} ({low:+.3f} to {high:+.3f})"
        print(line)


if __name__ == "__main__":
    main()
