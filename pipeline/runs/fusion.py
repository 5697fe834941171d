"""Late fusion: how much each path of a head has to say."""

import torch
from torch import nn

from pipeline.models.heads import Head, Heads
from pipeline.runs.dataset import ClipSet


def tune_fusion(heads: Heads, clips: ClipSet) -> dict[str, torch.Tensor]:
    """Finds the fusion weight of each path of the heads, from clips that they have not learned from.

    A path that is sure of itself need not be right: what fits the clips that it has learned from may be bold on others,
    or timid. So each is scaled, as temperature scaling does (Guo et al., ICML 2017), for the greatest likelihood; a
    normal prior on the logarithm of the scale, with a deviation of a half, keeps it near the default where clips are
    few. The scale is the same for all heads, and a clip counts once.

    Args:
        heads: of one kind, on the CPU.
        clips: which they have not learned from.

    Returns:
        [paths], by its name in the state of a head; that of a head within a head, which can answer alone, too.
    """
    within = [name for name, module in heads[0].named_modules() if isinstance(module, Head)]
    return {
        f"{name}.fusion_weights".lstrip("."): _fusion_weights([head.get_submodule(name) for head in heads], clips)
        for name in within
    }


def _fusion_weights(heads: list[Head], clips: ClipSet) -> torch.Tensor:
    with torch.no_grad():
        blocks = [head(some).log_softmax(-1) for head in heads for some in clips.parts_NPK.split(1024)]
        logs = torch.cat(blocks, 1)  # [paths,heads*N,C]
    labels = clips.labels_N.repeat(len(heads))
    change = torch.zeros(len(logs), requires_grad=True)
    optimizer = torch.optim.LBFGS([change], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        logits = (logs * (heads[0].fusion_weights * change.exp())[:, None, None]).sum(0)
        prior = (change / 0.5).square().sum() / 2
        loss = nn.functional.cross_entropy(logits, labels) + prior / len(clips.labels_N)
        loss.backward()
        return loss

    optimizer.step(loss)
    return heads[0].fusion_weights * change.detach().exp()
