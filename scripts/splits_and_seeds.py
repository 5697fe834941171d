"""Train and evaluate one config over the three official splits and several seeds, and print the means.

    python scripts/splits_and_seeds.py --config configs/ucf101.yaml --seeds 0 1 2

Further arguments go to `kinema train` as they are, such as `--head.hidden 64`. A bundle is named
`<config>-s<split>-r<seed>`.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from pipeline.report import NAMES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=Path("data/runs"))
    parser.add_argument("--splits", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args, settings = parser.parse_known_args()

    kinema = [sys.executable, "-m", "pipeline.cli"]
    measured = []
    for split in args.splits:
        extract = [*kinema, "extract", "--config", str(args.config), "--data.split", str(split)]
        subprocess.run(extract, check=True)  # HMDB51's splits leave out different clips.
        for seed in args.seeds:
            run = f"{args.config.stem}-s{split}-r{seed}"
            chosen = ["--data.split", str(split), "--train.seed", str(seed), "--runs", str(args.runs), *settings]
            subprocess.run([*kinema, "train", "--config", str(args.config), "--run", run, *chosen], check=True)
            subprocess.run([*kinema, "evaluate", str(args.runs / run)], check=True)
            metrics = json.loads((args.runs / run / "metrics.json").read_text())
            measured.append({metrics["head"]: metrics, **metrics["baselines"]})
    print(f"{len(args.splits)} splits, {len(args.seeds)} seeds: mean top-1 and standard deviation over the runs")
    for kind in measured[0]:
        top1 = np.array([run[kind]["top1"] for run in measured])
        print(f"{NAMES[kind]:16} {top1.mean():.3f} ± {top1.std(ddof=1):.3f}")


if __name__ == "__main__":
    main()
