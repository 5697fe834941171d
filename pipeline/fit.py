"""The training loop: one head on features that lie in memory, from a checkpoint if there is one.

Epoch e of seed s draws all its random numbers from (s, e) and the learning rate follows from the step number, so a
run that was stopped and resumed ends with the same weights as one that was not.
"""

import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import safetensors
import safetensors.torch
import torch
from torch import nn

from pipeline.atomic import moved_into_place
from pipeline.config import HeadConfig, TrainConfig
from pipeline.head import HEADS, Reduction

# cuBLAS needs this before its first use to be deterministic in LSTMs (PyTorch notes on reproducibility).
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


class FeatureSet(NamedTuple):
    """A split in memory: `features_NTD` float16, or float32 once reduced, padded; `lengths_N` and `labels_N` int64."""

    features_NTD: torch.Tensor
    lengths_N: torch.Tensor
    labels_N: torch.Tensor

    def join(self, other: "FeatureSet") -> "FeatureSet":
        """Returns the clips of both."""
        frames = max(part.features_NTD.shape[1] for part in (self, other))
        padded = [
            nn.functional.pad(part.features_NTD, (0, 0, 0, frames - part.features_NTD.shape[1]))
            for part in (self, other)
        ]
        return FeatureSet(torch.cat(padded), *(torch.cat(parts) for parts in list(zip(self, other, strict=True))[1:]))

    def reduced(self, reduction: Reduction) -> "FeatureSet":
        """Returns what a head sees of the features."""
        parts = self.features_NTD.split(256)  # Not all at once, for in float32 they are twice as large.
        return self._replace(features_NTD=torch.cat([reduction(part) for part in parts]))

    def to(self, device: torch.device) -> "FeatureSet":
        """Moves the features to the device if they fit into half of its free memory, else leaves them here."""
        if device.type == "cuda" and self.features_NTD.nbytes > torch.cuda.mem_get_info(device)[0] / 2:
            return self
        return self._replace(features_NTD=self.features_NTD.to(device))


def fit(
    head_config: HeadConfig,
    config: TrainConfig,
    train: FeatureSet,
    val: FeatureSet | None,
    epochs: int,
    classes: int,
    device: torch.device,
    checkpoint: Path,
    identity: str,
    log: Callable[[dict[str, float]], None],
) -> tuple[nn.Module, list[dict[str, float]]]:
    """Trains one head.

    Args:
        head_config: which head.
        config: how it is trained.
        train: clips to learn from, reduced.
        val: clips of other groups, which decide when to stop; None to train to the end.
        epochs: passes over the training clips at most; the learning rate falls to nought over them.
        classes: number of classes.
        device: where to train.
        checkpoint: file written after each epoch and resumed from if its identity is the same.
        identity: digest of all that the result depends on.
        log: called with the record of each epoch.

    Returns:
        The head with the weights of lowest validation loss (without `val`: of the last epoch), and the records of all
        epochs.
    """
    torch.backends.cudnn.deterministic = True
    # TF32 and not bf16 autocast: that would run cuDNN's LSTM in fp16, whose small gradients vanish.
    torch.set_float32_matmul_precision("high")
    torch.manual_seed(config.seed)
    head = HEADS[head_config.kind](train.features_NTD.shape[2], classes, head_config).to(device)
    optimizer = torch.optim.AdamW(head.parameters(), config.learning_rate, weight_decay=config.weight_decay)
    train, val = train.to(device), val and val.to(device)
    steps_an_epoch = -(-len(train.labels_N) // config.batch_size)
    total = epochs * steps_an_epoch
    counts_C = torch.bincount(train.labels_N, minlength=classes).clamp(min=1)
    weights_C = (len(train.labels_N) / (classes * counts_C)).to(device) if config.imbalance == "weights" else None
    # Ren et al., Balanced meta-softmax, NeurIPS 2020 (arXiv:2007.10740).
    prior_C = (counts_C / counts_C.sum()).log().to(device) if config.imbalance == "softmax" else 0.0

    history: list[dict[str, float]] = []
    best = {name: value.clone() for name, value in head.state_dict().items()}
    if checkpoint.exists():
        history, best = _resume(checkpoint, identity, head, optimizer) or (history, best)

    for epoch in range(len(history), epochs):
        if _epochs_since_best(history) >= config.patience:
            break
        began = time.monotonic()
        torch.manual_seed(config.seed * 1_000_003 + epoch)
        if config.imbalance == "sampling":
            order = torch.multinomial(1.0 / counts_C[train.labels_N], len(train.labels_N), True)
        else:
            order = torch.randperm(len(train.labels_N))
        head.train()
        losses, norms = [], []
        for step, batch in enumerate(order.split(config.batch_size), epoch * steps_an_epoch):
            optimizer.param_groups[0]["lr"] = config.learning_rate * _share_of_peak(step / total, config.warmup)
            features_NTD = train.features_NTD[batch.to(train.features_NTD.device)].to(device).float()
            labels_N = train.labels_N[batch].to(device)
            logits_PNC = head.paths(features_NTD, train.lengths_N[batch])
            loss = nn.functional.cross_entropy(
                logits_PNC.flatten(0, 1) + prior_C,
                labels_N.repeat(len(logits_PNC)),
                weights_C,
                label_smoothing=config.label_smoothing,
            )
            optimizer.zero_grad()
            loss.backward()
            norms.append(nn.utils.clip_grad_norm_(head.parameters(), config.clip_grad))
            optimizer.step()
            losses.append(loss.detach())
        record = {
            "epoch": epoch + 1,
            "loss": torch.stack(losses).mean().item(),
            "learning_rate": optimizer.param_groups[0]["lr"],
            "grad_norm": torch.stack(norms).mean().item(),
        }
        if val:
            logits_NC, labels_N = predict_logits(head, val, device), val.labels_N
            record["val_loss"] = nn.functional.cross_entropy(logits_NC, labels_N).item()
            record["val_top1"] = (logits_NC.argmax(1) == labels_N).float().mean().item()
        history.append(record | {"seconds": time.monotonic() - began})
        if _epochs_since_best(history) == 0:
            best = {name: value.clone() for name, value in head.state_dict().items()}
        _save(checkpoint, identity, head, best, optimizer, history)
        log(history[-1])
    head.load_state_dict(best)
    return head.eval(), history


@torch.inference_mode()
def predict_logits(head: nn.Module, clips: FeatureSet, device: torch.device) -> torch.Tensor:
    """Returns logits float32 [N,C] on the CPU."""
    head.eval()
    logits = []
    for batch in torch.arange(len(clips.lengths_N)).split(256):
        features_NTD = clips.features_NTD[batch.to(clips.features_NTD.device)].to(device).float()
        logits.append(head(features_NTD, clips.lengths_N[batch]).float().cpu())
    return torch.cat(logits)


def _share_of_peak(progress: float, warmup: float) -> float:
    """Rises over the share `warmup` of all steps, then falls along a cosine."""
    if progress < warmup:
        return progress / warmup
    return (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup))) / 2


def _epochs_since_best(history: list[dict[str, float]]) -> int:
    losses = [record["val_loss"] for record in history if "val_loss" in record]
    return len(losses) - 1 - losses.index(min(losses)) if losses else 0


def _save(
    path: Path,
    identity: str,
    head: nn.Module,
    best: dict[str, torch.Tensor],
    optimizer: torch.optim.Optimizer,
    history: list[dict[str, float]],
) -> None:
    tensors = {f"head.{name}": value for name, value in head.state_dict().items()}
    tensors |= {f"best.{name}": value for name, value in best.items()}
    for number, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{name}": value for name, value in state.items()}
    with moved_into_place(path) as temporary:
        safetensors.torch.save_file(tensors, temporary, {"identity": identity, "history": json.dumps(history)})


def _resume(
    path: Path, identity: str, head: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[list[dict[str, float]], dict[str, torch.Tensor]] | None:
    """Loads a checkpoint into head and optimizer; None if it is of another config or other data."""
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no dict)
    if metadata["identity"] != identity:
        return None
    state: dict[int, dict[str, torch.Tensor]] = {}
    parts: dict[str, dict[str, torch.Tensor]] = {"head": {}, "best": {}}
    for name, value in tensors.items():
        part, rest = name.split(".", 1)
        if part == "optimizer":
            number, key = rest.split(".")
            state.setdefault(int(number), {})[key] = value
        else:
            parts[part][rest] = value
    head.load_state_dict(parts["head"])
    optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
    device = next(head.parameters()).device
    return json.loads(metadata["history"]), {name: value.to(device) for name, value in parts["best"].items()}
