"""Measure other classifiers on the very same features and splits, beside the runs of `splits_and_seeds.py`.

    python scripts/splits_and_seeds.py --config configs/ucf101.yaml
    python scripts/baselines.py --config configs/ucf101.yaml

Logistic regressions on averages, their strength chosen by cross-validation over groups of training clips; and the heads
of the two best-known public repositories, written anew: an LSTM of 1024 units
(harvitronix/five-video-classification-methods) and a bidirectional one with attention over frames
(eriklindernoren/Action-Recognition). They train to the lowest validation loss, and then on all training clips for as
many epochs.
"""

import argparse
import csv
import dataclasses
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from pipeline.base.device import resolve_device
from pipeline.base.progress import progress
from pipeline.base.settings import build
from pipeline.config import Config
from pipeline.data.splits import Dataset, group_folds, load_dataset
from pipeline.features.grid import CELLS, SIZE
from pipeline.features.store import FeatureStore
from pipeline.models.reduction import segment_means
from pipeline.runs.dataset import find_clips, read_features
from pipeline.runs.metrics import group_interval

EPOCHS, PATIENCE = 60, 10


class Split(NamedTuple):
    """A split in memory: features float16 [N,T,D], padded, lengths and labels int64 [N], and the group of each clip."""

    features_NTD: torch.Tensor
    lengths_N: torch.Tensor
    labels_N: torch.Tensor
    groups: list[str]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=Path("data/runs"), help="where splits_and_seeds.py put its runs")
    parser.add_argument("--splits", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--public", nargs="*", choices=PUBLIC, default=list(PUBLIC), help="which of the public heads")
    args = parser.parse_args()

    config = build(Config, args.config, {})
    right: dict[str, list[np.ndarray]] = {}
    groups: list[str] = []
    for split in args.splits:
        dataset, parts = load_splits(config, split)
        test = parts["test"]
        fixed = {name: classify(parts).numpy() == test.labels_N.numpy() for name, classify in LOGISTIC.items()}
        for seed in args.seeds:
            found = dict(fixed)
            for name in args.public:
                logits_NC = train_head(
                    PUBLIC[name], parts, len(dataset.classes), seed, f"{name}, split {split}, seed {seed}"
                )
                found[name] = (logits_NC.argmax(1) == test.labels_N).numpy()
            run = args.runs / f"{args.config.stem}-s{split}-r{seed}"
            with (run / "predictions.csv").open(newline="") as stream:
                rows = list(csv.DictReader(stream))
            if [row["group"] for row in rows] != test.groups:
                raise SystemExit(f"{run} was evaluated on other clips; run splits_and_seeds.py anew")
            found["Kinema"] = np.array([row["predicted"] == row["label"] for row in rows])
            for name, values in found.items():
                right.setdefault(name, []).append(values)
            groups += test.groups

    print("mean top-1 and standard deviation over the runs; by how much Kinema's head is better on the same clips,")
    print("with the 95 % interval over groups")
    ours = np.concatenate(right["Kinema"]).astype(float)
    for name, runs in right.items():
        top1 = np.array([values.mean() for values in runs])
        better = ours - np.concatenate(runs)
        low, high = group_interval(better, groups)
        print(
            f"{name:42} {top1.mean():.3f} ± {top1.std(ddof=1):.3f}   {better.mean():+.3f} ({low:+.3f} to {high:+.3f})"
        )


def load_splits(config: Config, split: int) -> tuple[Dataset, dict[str, Split]]:
    if config.backbone.view != "grid":
        raise SystemExit("backbone.view: the baselines are of the view grid, which holds the pooled layer too")
    dataset = load_dataset(dataclasses.replace(config.data, split=split))
    store = FeatureStore.last(config.store, config.backbone, config.sampling, config.decode.min_readable)
    parts = {}
    for name in ("train", "val", "test"):
        clips = list(find_clips(store, dataset, name, config.max_missing))
        features_NTD, lengths_N = read_features(store, clips)
        features_NTD = nn.functional.pad(features_NTD, (0, 0, 0, config.sampling.frames - features_NTD.shape[1]))
        labels_N = torch.tensor([dataset.classes.index(clip.label) for clip in clips])
        parts[name] = Split(features_NTD, lengths_N, labels_N, [clip.group for clip in clips])
    return dataset, parts


def pooled(split: Split) -> torch.Tensor:
    """The part of the view `grid` that is the CNN's last layer, averaged over the picture."""
    size = split.features_NTD.shape[2]
    # The cells have room for three times as much, rounded down.
    width = next(w for w in range(size) if w + (SIZE - 1) * w // CELLS**2 * CELLS**2 == size)
    return split.features_NTD[..., :width].float()


def logistic(of: Callable[[Split], torch.Tensor], segments: int) -> Callable[[dict[str, Split]], torch.Tensor]:
    def classify(parts: dict[str, Split]) -> torch.Tensor:
        values = {name: segment_means(of(part), part.lengths_N, segments).flatten(1) for name, part in parts.items()}
        learned = torch.cat([values["train"], values["val"]]).numpy()
        labels = torch.cat([parts["train"].labels_N, parts["val"].labels_N]).numpy()
        groups = parts["train"].groups + parts["val"].groups
        folds = [(np.flatnonzero(~held), np.flatnonzero(held)) for held in group_folds(labels, groups, 4, seed=0)]
        # With fewer clips than values, all components lose nothing and save most of the time.
        regression = GridSearchCV(LogisticRegression(max_iter=1000), {"C": np.logspace(-6, 0, 7)}, cv=folds)
        model = make_pipeline(StandardScaler(), PCA(), regression).fit(learned, labels)
        return torch.from_numpy(model.predict(values["test"].numpy()))

    return classify


LOGISTIC = {
    "logistic, average, pooled layer": logistic(pooled, 1),
    "logistic, average, grid": logistic(lambda split: split.features_NTD.float(), 1),
    "logistic, four averages, grid": logistic(lambda split: split.features_NTD.float(), 4),
}


class LastState(nn.Module):
    """An LSTM of 1024 units, of which the last state counts, and a layer of 512."""

    def __init__(self, width: int, classes: int):
        super().__init__()
        self.lstm = nn.LSTM(width, 1024, batch_first=True)
        layers = nn.Dropout(0.5), nn.Linear(1024, 512), nn.ReLU(), nn.Dropout(0.5), nn.Linear(512, classes)
        self.classify = nn.Sequential(*layers)

    def forward(self, features_NTD: torch.Tensor, lengths_N: torch.Tensor) -> torch.Tensor:
        states_NTH, _ = self.lstm(features_NTD)
        return self.classify(states_NTH[torch.arange(len(states_NTH)), lengths_N - 1])


class Attention(nn.Module):
    """A bidirectional LSTM of 1024 units on a projection to 512, whose states are averaged by learned weights."""

    def __init__(self, width: int, classes: int):
        super().__init__()
        self.project = nn.Sequential(nn.Linear(width, 512), nn.BatchNorm1d(512, momentum=0.01))
        self.lstm = nn.LSTM(512, 1024, batch_first=True, bidirectional=True)
        self.attend = nn.Linear(2048, 1)
        layers = nn.Linear(2048, 1024), nn.BatchNorm1d(1024, momentum=0.01), nn.ReLU(), nn.Linear(1024, classes)
        self.classify = nn.Sequential(*layers)

    def forward(self, features_NTD: torch.Tensor, lengths_N: torch.Tensor) -> torch.Tensor:
        projected_NTH = self.project(features_NTD.flatten(0, 1)).unflatten(0, features_NTD.shape[:2])
        states_NTH, _ = self.lstm(projected_NTH)
        is_padding_NT = torch.arange(states_NTH.shape[1]) >= lengths_N[:, None]
        scores_NT1 = self.attend(states_NTH).masked_fill(is_padding_NT[..., None].to(states_NTH.device), -torch.inf)
        return self.classify((scores_NT1.softmax(1) * states_NTH).sum(1))


PUBLIC = {"LSTM-1024, pooled layer": LastState, "BiLSTM-1024 with attention, pooled layer": Attention}


def train_head(head: type[nn.Module], parts: dict[str, Split], classes: int, seed: int, name: str) -> torch.Tensor:
    """Returns the logits of the test clips."""
    device = resolve_device("auto")
    inputs = {part: pooled(split).to(device) for part, split in parts.items()}

    def logits(model: nn.Module, part: str) -> torch.Tensor:
        model.eval()
        with torch.no_grad():
            return model(inputs[part], parts[part].lengths_N).cpu()

    def epochs_of(learned: tuple[str, ...]) -> Iterator[nn.Module]:
        torch.manual_seed(seed)
        model = head(inputs["train"].shape[2], classes).to(device)
        optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
        features_NTD = torch.cat([inputs[part] for part in learned])
        lengths_N, labels_N = (torch.cat([parts[part][field] for part in learned]) for field in (1, 2))
        while True:
            model.train()
            for batch in torch.randperm(len(labels_N)).split(32):
                if len(batch) > 1:  # A batch norm needs two.
                    outputs = model(features_NTD[batch], lengths_N[batch])
                    loss = nn.functional.cross_entropy(outputs, labels_N[batch].to(device))
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
            yield model

    losses: list[float] = []
    with progress(name, EPOCHS, "epochs") as bar:
        for model in itertools.islice(epochs_of(("train",)), EPOCHS):
            losses.append(nn.functional.cross_entropy(logits(model, "val"), parts["val"].labels_N).item())
            bar.update()
            if len(losses) - np.argmin(losses) > PATIENCE:
                break
    return logits(next(itertools.islice(epochs_of(("train", "val")), int(np.argmin(losses)), None)), "test")


if __name__ == "__main__":
    main()
