"""Pretrain the BiLSTM on unlabelled clips, then train it on a few labelled ones: does that help?

    python scripts/pretraining.py --config configs/demo.yaml lips10.yaml --labels 1 3 10

Pretraining sees all training clips without their labels. Its task is `order`, whether the frames of a clip were
shuffled, or `next`, the motion of the next frame (of the previous one for the backward direction). Features must be
there. Prints the top-1 accuracy on the test split of the BiLSTM branch alone and of the head, its sum with the pyramid
(with equal weights, since so few clips leave none for validation): mean and standard deviation over seeds.
"""

import argparse
import random
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from pipeline.base.settings import build
from pipeline.config import Config
from pipeline.data.splits import load_dataset
from pipeline.features.store import FeatureStore
from pipeline.models.heads import BiLSTM, Pyramid
from pipeline.models.reduction import frame_mask, segment_means
from pipeline.runs.dataset import ClipSet, fit_reduction, load_clips
from pipeline.runs.trainer import schedule

TASKS = ("none", "order", "next")
STEPS, BATCH = 600, 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, nargs="+", required=True)
    parser.add_argument("--labels", type=int, nargs="+", default=[1, 3, 10], help="labelled clips per class")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    print("| set | part | labels per class | " + " | ".join(TASKS) + " |\n|---|---|--:|" + "--:|" * len(TASKS))
    for file in args.config:
        config = build(Config, file, {})
        train, test = load(config)
        found = defaultdict(list)
        for seed in tqdm(args.seeds, file.stem, disable=None):
            labelled = {labels: few(train, labels, seed) for labels in args.labels}
            pyramids = {}
            for labels, clips in labelled.items():
                torch.manual_seed(seed)
                pyramids[labels] = train_and_test(Pyramid(train.widths, train.classes, config.head), clips, test)
            for task in TASKS:
                torch.manual_seed(seed)
                start = BiLSTM(train.widths, train.classes, config.head)
                pretrain(start, train, task)
                for labels, clips in labelled.items():
                    branch = BiLSTM(train.widths, train.classes, config.head)
                    branch.load_state_dict(start.state_dict())
                    logs_NC = train_and_test(branch, clips, test)
                    for part, sum_NC in (("LSTM", logs_NC), ("head", logs_NC + pyramids[labels])):
                        found[part, labels, task].append((sum_NC.argmax(1) == test.labels_N).float().mean().item())
        for part in ("LSTM", "head"):
            for labels in args.labels:
                values = [torch.tensor(found[part, labels, task]) for task in TASKS]
                cells = [f"{value.mean():.3f} ± {value.std(correction=0):.3f}" for value in values]
                print(f"| {file.stem} | {part} | {labels} | {' | '.join(cells)} |", flush=True)


def load(config: Config) -> tuple[ClipSet, ClipSet]:
    """Load the training clips, those for validation among them, and the test clips."""
    dataset, store = load_dataset(config.data), FeatureStore.last(config)
    train, test = ([clip for clip in dataset.clips if (clip.split == "test") == is_test] for is_test in (False, True))
    train, test = ([clip for clip in clips if store.find(clip)] for clips in (train, test))
    reduction = fit_reduction(config, store, train)
    return tuple(load_clips(store, clips, dataset.classes, reduction) for clips in (train, test))


def few(clips: ClipSet, number: int, seed: int) -> ClipSet:
    """Return `number` random clips of each class."""
    rng, mask_N = random.Random(seed), torch.zeros(len(clips.labels_N), dtype=torch.bool)
    for label in range(clips.classes):
        of_class = (clips.labels_N == label).nonzero().flatten().tolist()
        mask_N[rng.sample(of_class, min(number, len(of_class)))] = True
    return clips.where(mask_N)


def optimize(modules: nn.Module, clips: ClipSet, loss_of: Callable[..., torch.Tensor]) -> None:
    """Minimise `loss_of` batches: frames [N,T,F], lengths, labels."""
    optimizer = torch.optim.AdamW(modules.parameters(), 1e-3, weight_decay=0.05)
    modules.train()
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = 1e-3 * schedule((step + 1) / (STEPS + 1), 0.1)
        batch = torch.randint(len(clips.labels_N), (BATCH,))
        optimizer.zero_grad()
        loss_of(clips.frames_NTF[batch], clips.lengths_N[batch], clips.labels_N[batch]).backward()
        optimizer.step()
    modules.eval()


def pretrain(branch: BiLSTM, clips: ClipSet, task: str) -> None:
    """Train everything but the classifier of the branch on a task without labels."""
    if task == "none":
        return
    hidden, motion = branch.classify[-1].in_features // 2, clips.widths[1]
    layers = {
        "order": nn.Linear(2 * hidden, 2),
        "next": nn.Linear(hidden, motion),
        "previous": nn.Linear(hidden, motion),
    }
    tops = nn.ModuleDict(layers)
    loss = {"order": order_loss, "next": next_loss}[task]
    optimize(
        nn.ModuleList([branch, tops]),
        clips,
        lambda frames, lengths, _: loss(branch, tops, frames[..., -motion:], lengths),
    )


def order_loss(branch: BiLSTM, tops: nn.ModuleDict, motion_NTM: torch.Tensor, lengths_N: torch.Tensor) -> torch.Tensor:
    """Is the clip shuffled? Half of them are."""
    shuffled_N = torch.rand(len(motion_NTM)) < 0.5
    keys_NT = torch.rand(motion_NTM.shape[:2]).masked_fill(~frame_mask(motion_NTM, lengths_N), 2)
    order_NT = torch.where(shuffled_N[:, None], keys_NT.argsort(1), torch.arange(motion_NTM.shape[1]))
    frames_NTM = motion_NTM.gather(1, order_NT[..., None].expand_as(motion_NTM))
    states_NTH = branch.states(branch.inputs(frames_NTM), lengths_N)
    return cross_entropy(tops["order"](segment_means(states_NTH, lengths_N, 1)[:, 0]), shuffled_N.long())


def next_loss(branch: BiLSTM, tops: nn.ModuleDict, motion_NTM: torch.Tensor, lengths_N: torch.Tensor) -> torch.Tensor:
    """Squared error of the next frame from the forward states, and of the previous one from the backward states."""
    forward_NTH, backward_NTH = branch.states(branch.inputs(motion_NTM), lengths_N).chunk(2, 2)
    valid_NT = frame_mask(motion_NTM, lengths_N)[:, 1:]
    after = (tops["next"](forward_NTH[:, :-1]) - motion_NTM[:, 1:])[valid_NT]
    before = (tops["previous"](backward_NTH[:, 1:]) - motion_NTM[:, :-1])[valid_NT]
    return after.square().mean() + before.square().mean()


def train_and_test(branch: nn.Module, clips: ClipSet, test: ClipSet) -> torch.Tensor:
    """Train on labelled clips and return the log-probabilities of the test clips, [N,C]."""
    optimize(branch, clips, lambda frames, lengths, labels: cross_entropy(branch(frames, lengths), labels))
    with torch.no_grad():
        return branch(test.frames_NTF, test.lengths_N).log_softmax(-1)


if __name__ == "__main__":
    main()
