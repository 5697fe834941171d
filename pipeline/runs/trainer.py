"""The training loop: heads side by side on clips that lie in memory, from a checkpoint if there is one.

Epoch e of seed s draws its random numbers from (s, e) and the learning rate follows from the step number, so a run that
was stopped and resumed ends with the same weights as one that was not.
"""

import copy
import gc
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
from torch.func import functional_call, stack_module_state, vmap

from pipeline.base.device import as_cuda_graph
from pipeline.base.errors import KinemaError
from pipeline.base.files import atomic_write
from pipeline.config import HeadConfig, TrainConfig
from pipeline.models.heads import HEADS, Heads
from pipeline.runs.dataset import ClipSet

# cuBLAS needs this before its first use to be deterministic (PyTorch notes on reproducibility).
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

Tensors = dict[str, torch.Tensor]


class Checkpoint(NamedTuple):
    """The file that is written after each epoch, and resumed from if it has the same `identity`: a digest of all that
    the result depends on."""

    path: Path
    identity: str


def fit(
    head_config: HeadConfig,
    config: TrainConfig,
    clips: ClipSet,
    learns_HN: torch.Tensor,
    device: torch.device,
    log: Callable[[dict[str, float]], None],
    validate: bool = False,
    checkpoint: Checkpoint | None = None,
) -> tuple[Heads, list[dict[str, float]]]:
    """Trains H heads of one kind in one pass, each from its own clips, with the seed of `config`, that + 1000, ...

    Each draws its weights and the order of its clips as if it were alone. What dropout leaves out it draws for all
    together.

    Args:
        head_config: which head.
        config: how they are trained.
        clips: all clips.
        learns_HN: bool, which clips each head learns from.
        device: where to train.
        log: called with the record of each epoch.
        validate: whether the other clips are looked at after each epoch.
        checkpoint: what a stopped run goes on from.

    Returns:
        The heads after the last epoch, and the records of all epochs, means over the heads.

    Raises:
        KinemaError: the learning rate is so high that the weights overflow.
    """
    torch.backends.cudnn.deterministic = True
    torch.set_float32_matmul_precision("high")
    seeds = [config.seed + 1000 * number for number in range(len(learns_HN))]
    heads = Heads(_new_head(head_config, clips, seed) for seed in seeds).to(device)
    weights, _ = stack_module_state(list(heads))  # Each of shape [H, ...].
    optimizer = torch.optim.AdamW(weights.values(), config.learning_rate, weight_decay=config.weight_decay, fused=True)
    history = _resume(checkpoint, weights, optimizer) if checkpoint else []

    parts_NPK, labels_N = _near(clips.parts_NPK, device), clips.labels_N.to(device)
    clips_an_epoch = int(learns_HN.sum(1).min())  # For each head as many.
    batch_size = config.batch_size or min(max(clips_an_epoch // 64, 32), max(clips_an_epoch // 8, 2), 512)
    steps_an_epoch = -(-clips_an_epoch // batch_size)
    counts_HC = torch.stack([torch.bincount(clips.labels_N[learns], minlength=clips.classes) for learns in learns_HN])
    class_weights_HC, prior_HC = (tensor.to(device) for tensor in _balance(config.imbalance, counts_HC.clamp(min=1)))
    skeleton = copy.deepcopy(heads[0]).to("meta")

    def loss(
        weights: Tensors,
        parts_BPK: torch.Tensor,
        labels_B: torch.Tensor,
        weights_C: torch.Tensor,
        prior_C: torch.Tensor,
    ) -> torch.Tensor:
        logits = functional_call(skeleton, weights, (parts_BPK,))  # [paths,B,C]
        is_label_BC = labels_B[:, None] == torch.arange(clips.classes, device=device)
        # PyTorch would smooth towards rare classes: it weighs each target by its own class, not by the clip's, and
        # knows no prior. It would also divide by the weights of the batch, and so undo them in small ones.
        smoothed_BC = torch.lerp(is_label_BC.float(), prior_C.softmax(-1), config.label_smoothing)
        losses = -(smoothed_BC * (logits + prior_C).log_softmax(-1)).sum(-1) * weights_C[labels_B]
        return losses.mean()

    def gradients(parts_HBPK: torch.Tensor, labels_HB: torch.Tensor) -> tuple[list[torch.Tensor], ...]:
        """Returns each head's gradients, bounded, in the order of the weights; the norms [H] that they had; the losses
        [H]."""
        losses_H = vmap(loss, randomness="different")(weights, parts_HBPK, labels_HB, class_weights_HC, prior_HC)
        found = torch.autograd.grad(losses_H.sum(), list(weights.values()))
        bounded = [gradient.contiguous() for gradient in found]  # AdamW, fused, takes them to be.
        return bounded, _clip(bounded, config.clip_grad), losses_H.detach()

    sizes = {min(batch_size, clips_an_epoch), clips_an_epoch % batch_size} - {0}  # The last batch may be smaller.
    gradients_of = dict.fromkeys(sizes, gradients)
    if device.type == "cuda":
        for size in sizes:
            some_HB = torch.zeros(len(heads), size, dtype=torch.long)
            gradients_of[size] = as_cuda_graph(gradients, parts_NPK[some_HB].to(device), labels_N[some_HB])
    for epoch in range(len(history), config.epochs):
        began = time.monotonic()
        torch.manual_seed(config.seed * 1_000_003 + epoch)
        orders = [
            _order(learns, clips.labels_N, config.imbalance, seed * 1_000_003 + epoch)[:clips_an_epoch]
            for seed, learns in zip(seeds, learns_HN, strict=True)
        ]
        skeleton.train()
        losses, norms = [], []
        batches = torch.stack(orders).to(parts_NPK.device).split(batch_size, 1)
        for step, batch_HB in enumerate(batches, epoch * steps_an_epoch):
            share = _share_of_peak(step / (config.epochs * steps_an_epoch), config.warmup)
            optimizer.param_groups[0]["lr"] = config.learning_rate * share
            batch = parts_NPK[batch_HB], labels_N[batch_HB.to(device)]
            found, norms_H, losses_H = gradients_of[batch_HB.shape[1]](*batch)
            for weight, gradient in zip(weights.values(), found, strict=True):
                weight.grad = gradient
            optimizer.step()
            # To read them would make a GPU wait, so they are kept; the next step writes over them.
            norms.append(norms_H.clone())
            losses.append(losses_H.clone())
        record = {
            "epoch": epoch + 1,
            "loss": torch.stack(losses).mean().item(),
            "learning_rate": optimizer.param_groups[0]["lr"],
            "grad_norm": torch.stack(norms).mean().item(),
        }
        if not torch.stack([weight.isfinite().all() for weight in weights.values()]).all():
            rate = config.learning_rate
            raise KinemaError(
                f"train.learning_rate {rate:g} is too high: the weights overflow; try {rate / 10:g}, by another name"
            )
        if validate:
            fusion_weights = heads[0].fusion_weights  # The default: what suits these clips is found later.
            record |= _validate(skeleton.eval(), weights, fusion_weights, parts_NPK, labels_N, learns_HN)
        history.append(record | {"seconds": time.monotonic() - began})
        if checkpoint:
            _save(checkpoint, weights, optimizer, history)
        log(history[-1])
    for number, head in enumerate(heads):
        head.load_state_dict(head.state_dict() | {name: value[number] for name, value in weights.items()})
    return heads.eval(), history


@torch.inference_mode()
def classify(heads: Heads, parts_NPK: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Returns the logits of each head, float32 [H,N,C], on the CPU."""
    return torch.cat([heads(parts.to(device)).cpu() for parts in parts_NPK.split(1024)], 1)


def _near(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Moves a tensor to the device if it fits into half of its free memory, else leaves it here."""
    if device.type != "cuda":
        return tensor.to(device)
    gc.collect()  # What was trained before is not needed any more.
    torch.cuda.empty_cache()
    return tensor if tensor.nbytes > torch.cuda.mem_get_info(device)[0] / 2 else tensor.to(device)


def _new_head(config: HeadConfig, clips: ClipSet, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return HEADS[config.kind](*clips.parts_NPK.shape[1:], clips.classes, config)


def _balance(imbalance: str, counts_HC: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the weight of each class in the loss, and what is added to its logit in training."""
    shares_HC = counts_HC / counts_HC.sum(1, keepdim=True)
    # Ren et al., Balanced meta-softmax, NeurIPS 2020 (arXiv:2007.10740).
    prior_HC = shares_HC.log() if imbalance == "softmax" else torch.zeros_like(shares_HC)
    weights_HC = 1 / (shares_HC * counts_HC.shape[1]) if imbalance == "weights" else torch.ones_like(shares_HC)
    return weights_HC, prior_HC


def _order(learns_N: torch.Tensor, labels_N: torch.Tensor, imbalance: str, seed: int) -> torch.Tensor:
    """Draws the clips of an epoch."""
    rng = torch.Generator().manual_seed(seed)
    clips = learns_N.nonzero()[:, 0]
    if imbalance == "sampling":
        rarity = 1 / torch.bincount(labels_N[clips])[labels_N[clips]]
        return clips[torch.multinomial(rarity, len(clips), True, generator=rng)]
    return clips[torch.randperm(len(clips), generator=rng)]


@torch.no_grad()
def _validate(
    skeleton: nn.Module,
    weights: Tensors,
    fusion_weights: torch.Tensor,
    parts_NPK: torch.Tensor,
    labels_N: torch.Tensor,
    learns_HN: torch.Tensor,
) -> dict[str, float]:
    """Tries each head on the clips that it does not learn from; means over all."""

    def logits(weights: Tensors, parts_BPK: torch.Tensor) -> torch.Tensor:
        logs = functional_call(skeleton, weights, (parts_BPK,)).log_softmax(-1)
        return (logs * fusion_weights[:, None, None]).sum(0)

    losses, hits = [], []
    for some in (~learns_HN).any(0).nonzero()[:, 0].split(1024):
        parts_BPK = parts_NPK[some.to(parts_NPK.device)].to(labels_N.device)
        logits_HBC = vmap(logits, in_dims=(0, None))(weights, parts_BPK)
        unseen_HB = ~learns_HN[:, some].to(labels_N.device)
        unseen, labels = logits_HBC[unseen_HB], labels_N[some.to(labels_N.device)].expand(len(learns_HN), -1)[unseen_HB]
        losses.append(nn.functional.cross_entropy(unseen, labels, reduction="none"))
        hits.append(unseen.argmax(1) == labels)
    return {"val_loss": torch.cat(losses).mean().item(), "val_top1": torch.cat(hits).float().mean().item()}


def _clip(gradients: list[torch.Tensor], most: float) -> torch.Tensor:
    """Bounds the norm of each head's gradients in place, and returns what it was, [H]."""
    norms_H = torch.stack([gradient.flatten(1).norm(dim=1) for gradient in gradients]).norm(dim=0)
    factors_H = (most / (norms_H + 1e-6)).clamp(max=1)
    for gradient in gradients:
        gradient.mul_(factors_H.view(-1, *[1] * (gradient.ndim - 1)))
    return norms_H


def _share_of_peak(progress: float, warmup: float) -> float:
    """Rises over the share `warmup` of all steps, then falls along a cosine."""
    if progress < warmup:
        return progress / warmup
    return (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup))) / 2


def _save(
    checkpoint: Checkpoint, weights: Tensors, optimizer: torch.optim.Optimizer, history: list[dict[str, float]]
) -> None:
    tensors = {f"weights.{name}": value for name, value in weights.items()}
    for number, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{name}": value for name, value in state.items()}
    about = {"identity": checkpoint.identity, "history": json.dumps(history)}
    with atomic_write(checkpoint.path) as temporary:
        temporary.write_bytes(safetensors.torch.save(tensors, about))


def _resume(checkpoint: Checkpoint, weights: Tensors, optimizer: torch.optim.Optimizer) -> list[dict[str, float]]:
    """Loads a checkpoint into weights and optimizer and returns its history; if there is none, or it is damaged, or of
    another config or other data, nothing."""
    try:
        file = safetensors.safe_open(checkpoint.path, framework="pt")
    except (FileNotFoundError, safetensors.SafetensorError):
        return []
    if file.metadata()["identity"] != checkpoint.identity:
        return []
    state: dict[int, Tensors] = {}
    for name in file.keys():  # noqa: SIM118  (no dict)
        part, rest = name.split(".", 1)
        if part == "weights":
            with torch.no_grad():
                weights[rest].copy_(file.get_tensor(name))
        else:
            number, key = rest.split(".")
            state.setdefault(int(number), {})[key] = file.get_tensor(name)
    optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
    return json.loads(file.metadata()["history"])
