"""Read MNIST digits row by row with the heads of Kinema: the LSTM's classic first example.

    python scripts/mnist_rows.py mnist/
    python scripts/mnist_rows.py mnist/ --kinds lstm bilstm lstm_transformer --layers 1 2 3 4 --clip 5 1e9

An image is a clip of 28 frames, and a frame is a row of 28 pixels. The defaults are those of the usual tutorials: two
LSTM layers of 128 units in one direction, Adam, cross-entropy, batches of 128, ten epochs. MNIST is read from a folder
with its four IDX files, gzipped or not; torchvision downloads what is missing.
"""

import argparse
import gzip
import itertools
import time
from pathlib import Path

import torch
from torchvision.datasets import MNIST
from tqdm import tqdm

from pipeline.base.device import resolve_device
from pipeline.config import HeadConfig, TrainConfig
from pipeline.models.heads import SEQUENCE
from pipeline.runs.dataset import ClipSet
from pipeline.runs.stacking import branch_log_probs
from pipeline.runs.trainer import fit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="folder with the IDX files")
    parser.add_argument("--kinds", nargs="+", choices=SEQUENCE, default=["lstm"])
    parser.add_argument("--layers", type=int, nargs="+", default=[2])
    parser.add_argument("--clip", type=float, nargs="+", default=[5.0], help="maximum gradient norm; 1e9 is off")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--images", type=int, default=60_000, help="training images")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    device = resolve_device("auto")
    train, test = (clips_of(args.folder, is_train) for is_train in (True, False))
    train = train.where(torch.arange(len(train.labels_N)) < args.images)
    print("| kind | layers | gradient norm | test accuracy | pyramid, linear | seconds |\n|---|--:|--:|--:|--:|--:|")
    for kind, layers, clip in itertools.product(args.kinds, args.layers, args.clip):
        head_config = HeadConfig(kind=kind, layers=layers, hidden=128, dropout=0)
        config = TrainConfig(seed=args.seed, epochs=args.epochs, batch_size=128, clip_grad=clip, weight_decay=0)
        every = torch.ones(len(train.labels_N), dtype=torch.bool)
        began, norms = time.monotonic(), []
        with tqdm(total=args.epochs, desc=f"{kind}, {layers} layers", unit="epoch", disable=None) as bar:

            def on_epoch(record: dict[str, float], bar: tqdm = bar, norms: list[float] = norms) -> None:
                norms.append(record["grad_norm"])
                bar.update()

            head = fit(head_config, config, train, every, device, on_epoch)
        seconds = time.monotonic() - began
        right = (branch_log_probs(head, test).argmax(2) == test.labels_N).float().mean(1)
        accuracy = dict(zip(head.branches, right.tolist(), strict=True))
        shown = "off" if clip > max(norms) * 1e3 else f"{clip:g}"
        print(
            f"| {kind} | {layers} | {shown} | {accuracy[kind]:.4f} | {accuracy['pyramid']:.4f} | {seconds:.0f} |",
            flush=True,
        )


def clips_of(folder: Path, is_train: bool) -> ClipSet:
    """Return the images as clips of 28 frames."""
    raw = folder / "MNIST" / "raw"
    if not raw.exists():  # Where torchvision looks for the files.
        raw.mkdir(parents=True)
        for file in folder.glob("*-ubyte*"):
            content = file.read_bytes()
            (raw / file.name.removesuffix(".gz")).write_bytes(
                gzip.decompress(content) if file.suffix == ".gz" else content
            )
    images = MNIST(folder, train=is_train, download=True)
    rows = images.data.float() / 255
    changes = rows.diff(dim=1, prepend=rows[:, :1]).abs()
    lengths = torch.full((len(rows),), rows.shape[1])
    return ClipSet(torch.cat([rows, changes, rows], 2), lengths, images.targets, 10, (28, 28))


if __name__ == "__main__":
    main()
