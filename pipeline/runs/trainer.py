"""The training loop."""

import math
import time
from collections.abc import Callable

import torch
from threadpoolctl import threadpool_limits

from pipeline.base.errors import KinemaError
from pipeline.config import HeadConfig, TrainConfig
from pipeline.models.heads import Head
from pipeline.runs.dataset import ClipSet, classify

WINDOWS = 0.5
"""Share of the clips that a sequence model sees as windows, if there are any."""
FRAMES_PER_THREAD = 400
"""Frames of a batch per thread. With fewer, synchronisation costs more than threads gain if the machine is busy."""


def fit(
    head_config: HeadConfig,
    config: TrainConfig,
    clips: ClipSet,
    is_train_N: torch.Tensor,
    device: torch.device,
    on_epoch: Callable[[dict[str, float]], None],
) -> Head:
    """Train a head and return it on the CPU. The same seed gives the same head on the same machine.

    `is_train_N`, bool, selects the training clips; the others are for validation. The sequence model sees half of the
    clips as windows, if they have any, so that it learns to answer recordings, in which a window rarely begins where an
    action does. The linear models do not, since they are baselines for whole clips. `on_epoch` gets a record per epoch.
    Raises a KinemaError if the loss overflows."""
    devices = [device] if device.type == "cuda" else []
    number = int(is_train_N.sum())
    batch_size = config.batch_size or min(max(number // 64, 32), max(number // 8, 2), 512)
    useful = max(min(batch_size, number) * clips.frames_NTF.shape[1] // FRAMES_PER_THREAD, 1)
    threads = threadpool_limits(min(torch.get_num_threads(), useful), "openmp")
    with torch.random.fork_rng(devices), torch.backends.cudnn.flags(deterministic=True), threads:
        torch.manual_seed(config.seed)
        head = Head.build(clips.widths, clips.classes, head_config).to(device)
        rate = config.learning_rate
        optimizer = torch.optim.AdamW(head.parameters(), rate, weight_decay=config.weight_decay, fused=True)
        train, val = clips.where(is_train_N), clips.where(~is_train_N)
        prior_C = log_prior(train.labels_N, clips.classes, config.imbalance).to(device)
        steps = config.epochs * math.ceil(number / batch_size)
        step = 0
        for epoch in range(1, config.epochs + 1):
            began = time.monotonic()
            head.train()
            losses, norms = [], []
            for batch in torch.randperm(number).split(batch_size):
                step += 1
                optimizer.param_groups[0]["lr"] = rate * schedule(step / (steps + 1), config.warmup)
                frames_NTF, mixed_NTF = train.frames_NTF[batch], None
                if train.windows_NTF is not None:
                    is_window_N11 = torch.rand(len(batch), 1, 1) < WINDOWS
                    mixed_NTF = torch.where(is_window_N11, train.windows_NTF[batch], frames_NTF).to(device)
                logits_PNC = head.logits(frames_NTF.to(device), train.lengths_N[batch], mixed_NTF)
                labels_N = train.labels_N[batch].to(device)
                loss = branch_losses(logits_PNC, labels_N, prior_C, config.label_smoothing).sum()
                optimizer.zero_grad()
                loss.backward()
                norms.append(torch.nn.utils.clip_grad_norm_(head.parameters(), config.clip_grad))
                optimizer.step()
                losses.append(loss.detach() / len(logits_PNC))
            record = {"epoch": epoch, "learning_rate": optimizer.param_groups[0]["lr"]}
            record |= {"loss": torch.stack(losses).mean().item(), "grad_norm": torch.stack(norms).mean().item()}
            if not math.isfinite(record["loss"]):
                raise KinemaError(f"train.learning_rate {rate:g} is too high: the loss overflows; try {rate / 10:g}")
            if len(val.labels_N):
                scores_NC = classify(head.eval(), val, device)
                record["val_loss"] = torch.nn.functional.cross_entropy(scores_NC, val.labels_N).item()
                record["val_top1"] = (scores_NC.argmax(1) == val.labels_N).float().mean().item()
            on_epoch(record | {"seconds": time.monotonic() - began})
    return head.cpu().eval()


def branch_losses(
    logits_PNC: torch.Tensor, labels_N: torch.Tensor, prior_C: torch.Tensor, smoothing: float
) -> torch.Tensor:
    """Return the cross-entropy of each branch, [P].

    `prior_C` is added to the logits (balanced softmax). Smoothing follows the prior too: with uniform smoothing, every
    clip would push towards the rare classes."""
    targets_NC = torch.nn.functional.one_hot(labels_N, len(prior_C)).float()
    targets_NC = torch.lerp(targets_NC, prior_C.softmax(0).expand_as(targets_NC), smoothing)
    return -(targets_NC * (logits_PNC + prior_C).log_softmax(-1)).sum(-1).mean(-1)


def log_prior(labels_N: torch.Tensor, classes: int, imbalance: str) -> torch.Tensor:
    """Return what is added to the logits in training, [C]: log class frequencies for `balanced_softmax`, else zeros.

    Ren et al., Balanced meta-softmax, NeurIPS 2020."""
    counts_C = torch.bincount(labels_N, minlength=classes).clamp(min=1)
    return (counts_C / counts_C.sum()).log() if imbalance == "balanced_softmax" else torch.zeros(classes)


def schedule(progress: float, warmup: float) -> float:
    """Return the fraction of the peak learning rate: a linear warm-up from the first step, then a cosine."""
    if progress <= warmup:
        return progress / warmup
    return (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup))) / 2
