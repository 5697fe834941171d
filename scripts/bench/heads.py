"""Measure the training of heads on this machine: against a plain loop, and many at once against one after the other.

    python scripts/bench/heads.py --out docs/performance/heads

The plain loop is what most public code does: a file of pooled features a clip, read in every epoch by a DataLoader, an
LSTM over all frames, a loss that is looked at after every step. Numbers are random, which take the same time.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

import numpy as np
import torch
from rounds import alternate, publish, ratio
from torch import nn
from torch.utils.data import DataLoader, Dataset

from pipeline.base.device import resolve_device
from pipeline.config import HeadConfig, SamplingConfig, TrainConfig
from pipeline.runs.dataset import ClipSet
from pipeline.runs.trainer import fit

CLASSES, POOLED = 101, 1280
WORKERS = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=512, help="clips an epoch")
    parser.add_argument("--epochs", type=int, default=1, help="of the heads; the plain loop runs one")
    parser.add_argument("--heads", type=int, nargs="+", default=[8, 32], help="how many at once")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="write OUT.md and OUT.json too")
    args = parser.parse_args()

    device = resolve_device("auto")
    torch.manual_seed(0)
    head = HeadConfig()
    labels_N = torch.randint(0, CLASSES, (args.clips,))
    clips = ClipSet(torch.randn(args.clips, 2**head.pyramid_levels - 1, 2 * head.pca_components), labels_N, CLASSES)

    def side_by_side(heads: int) -> int:
        learns_HN = torch.ones(heads, args.clips, dtype=torch.bool)
        fit(head, TrainConfig(epochs=args.epochs), clips, learns_HN, device, lambda _: None)
        return heads * args.clips * args.epochs

    with tempfile.TemporaryDirectory(prefix="kinema-bench-") as folder:
        for number in range(args.clips):
            values = np.random.default_rng(number).normal(size=(SamplingConfig().frames, POOLED)).astype(np.float32)
            np.save(f"{folder}/{number}.npy", values)
        plain = PlainLoop(Path(folder), labels_N, head.hidden, device)
        ways = {"plain loop": plain.epoch, "one head": lambda: side_by_side(1)}
        ways |= {f"{count} heads at once": lambda count=count: side_by_side(count) for count in args.heads}
        rates = alternate(ways, args.rounds)
    rows = [("", "clips/s, times heads", "against the plain loop", "time against one head's")]
    for name, values in rates.items():
        count = int(name.split()[0]) if name.endswith("at once") else 1
        cost = "" if name == "plain loop" else f"{count * ratio(rates['one head'], values):.1f}"
        rows.append((name, f"{statistics.median(values):.0f}", f"{ratio(values, rates['plain loop']):.1f}", cost))
    about = f"{args.epochs} epochs of {args.clips} clips, medians of {args.rounds} rounds"
    publish(rows, about, {"clips_times_heads_per_second": rates}, args.out)


class PlainLoop:
    """A loop of the usual kind, one LSTM in each direction as large as ours."""

    def __init__(self, folder: Path, labels_N: torch.Tensor, hidden: int, device: torch.device):
        self.device = device
        self.loader = DataLoader(_Files(folder, labels_N), batch_size=32, shuffle=True, num_workers=WORKERS)
        self.lstm = nn.LSTM(POOLED, hidden, batch_first=True, bidirectional=True).to(device)
        self.classify = nn.Linear(2 * hidden, CLASSES).to(device)
        self.optimizer = torch.optim.AdamW([*self.lstm.parameters(), *self.classify.parameters()], 1e-3)

    def epoch(self) -> int:
        total = 0.0
        for features_NTD, labels_N in self.loader:
            states_NTH, _ = self.lstm(features_NTD.to(self.device))
            loss = nn.functional.cross_entropy(self.classify(states_NTH[:, -1]), labels_N.to(self.device))
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            total += loss.item()
        return len(self.loader.dataset)


class _Files(Dataset):
    def __init__(self, folder: Path, labels_N: torch.Tensor):
        self.folder, self.labels_N = folder, labels_N

    def __len__(self) -> int:
        return len(self.labels_N)

    def __getitem__(self, number: int) -> tuple[np.ndarray, torch.Tensor]:
        return np.load(self.folder / f"{number}.npy"), self.labels_N[number]


if __name__ == "__main__":
    main()
