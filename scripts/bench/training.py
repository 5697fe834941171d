"""Measure the training of a head on random features, which take the same time as real ones.

python scripts/bench/training.py --clips 9537 --frames 16 --classes 101
"""

import argparse
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch
from rounds import alternate, publish, ratio

from pipeline.base.device import resolve_device
from pipeline.config import HeadConfig, TrainConfig
from pipeline.models.heads import KINDS
from pipeline.runs.dataset import ClipSet
from pipeline.runs.trainer import fit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=2000)
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--classes", type=int, default=101)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="write OUT.md and OUT.json too")
    args = parser.parse_args()

    device = resolve_device("auto")
    torch.manual_seed(0)
    widths = HeadConfig().pca_components, HeadConfig().motion_components
    frames_NTF = torch.randn(args.clips, args.frames, 2 * widths[0] + widths[1])
    lengths_N, labels_N = torch.full((args.clips,), args.frames), torch.randint(0, args.classes, (args.clips,))
    clips, every = (
        ClipSet(frames_NTF, lengths_N, labels_N, args.classes, widths),
        torch.ones(args.clips, dtype=torch.bool),
    )

    def epoch(kind: str) -> int:
        fit(replace(HeadConfig(), kind=kind), TrainConfig(epochs=1), clips, every, device, lambda record: None)
        return args.clips

    rates = alternate({kind: lambda kind=kind: epoch(kind) for kind in args.kinds}, args.rounds)
    rows = [("", "clips/s", "seconds per epoch", f"against {args.kinds[0]}")]
    for kind, values in rates.items():
        seconds = args.clips / median(values)
        rows.append((kind, f"{median(values):.0f}", f"{seconds:.2f}", f"{ratio(rates[args.kinds[0]], values):.1f}"))
    about = f"{args.clips} clips of {args.frames} frames, {args.classes} classes; medians of {args.rounds} rounds"
    publish(rows, about, {"clips_per_second": rates}, args.out)


if __name__ == "__main__":
    main()
