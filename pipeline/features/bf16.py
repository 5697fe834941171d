"""Mixed precision where autocast would spoil the features: a network cut in two, of which only the deeper part runs in
bf16."""

import copy
import warnings

import torch
from torch import nn

from pipeline.base.errors import ConfigError

SENSITIVE_UP_TO = 16
"""bf16 begins where the picture has shrunk by this factor. Its 8 bits spoil the layers before: on real frames the whole
of EfficientNet-lite0 in bf16 agrees with fp32 to a cosine of 0.994, without those layers to 0.9993."""


def split(network: nn.Module, blank: torch.Tensor) -> list[nn.Module]:
    """Cuts a network in two where a tensor shrunk by `SENSITIVE_UP_TO` feeds a convolution.

    The parts give and take tuples, since other tensors may be needed later too: of a branch, or of stages for a view.

    Raises:
        ConfigError: there is no such place.
    """
    with torch.no_grad(), warnings.catch_warnings(action="ignore"):
        graph = torch.export.export(network, (blank,)).module()
    shallow: list[torch.fx.Node] = []
    of_frames: set[torch.fx.Node] = set()  # What is computed from the frames; the rest are weights.
    uses_left: dict[torch.fx.Node, int] = {}  # Of tensors of frames that are still needed.
    for node in graph.graph.nodes:
        shallow.append(node)
        sources = of_frames.intersection(node.all_input_nodes)
        if node.op != "placeholder" and not sources:
            continue
        of_frames.add(node)
        uses_left = {source: uses - (source in sources) for source, uses in uses_left.items()}
        uses_left = {source: uses for source, uses in (uses_left | {node: len(node.users)}).items() if uses}
        value = node.meta.get("val")
        has_shrunk = getattr(value, "ndim", 0) == 4 and value.shape[-1] * SENSITIVE_UP_TO <= blank.shape[-1]
        if has_shrunk and any("conv" in str(user.target) for user in node.users):
            deep = [other for other in graph.graph.nodes if other not in of_frames.intersection(shallow)]
            needed = list(uses_left)
            return [_part(graph, shallow, [], needed), _part(graph, deep[:-1], needed, deep[-1].all_input_nodes)]
    raise ConfigError("backbone.precision: this model cannot be cut into a part in fp32 and one in bf16; use fp32")


class Halved(nn.Module):
    """A network whose deeper part runs in bf16."""

    def __init__(self, shallow: nn.Module, deep: nn.Module):
        super().__init__()
        self.shallow, self.deep = shallow, deep.to(torch.bfloat16)

    def forward(self, frames_N3HW: torch.Tensor) -> torch.Tensor:
        return self.deep(*(values.to(torch.bfloat16) for values in self.shallow(frames_N3HW)))[0].float()


def _part(
    module: torch.fx.GraphModule, nodes: list[torch.fx.Node], begin: list[torch.fx.Node], end: list[torch.fx.Node]
) -> nn.Module:
    """Copies some nodes of a module into one of their own, which takes values of `begin` and gives those of `end`."""
    part = torch.fx.Graph()
    copies = {node: part.placeholder(f"values{number}") for number, node in enumerate(begin)}
    for node in nodes:
        copies[node] = part.node_copy(node, copies.__getitem__)
    part.output(tuple(copies[node] for node in end))
    return torch.fx.GraphModule(copy.deepcopy(module), part)
