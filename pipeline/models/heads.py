"""The classifier on top of the cached features."""

import math

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from pipeline.config import HeadConfig

torch.backends.mha.set_fastpath_enabled(False)  # It cannot run many Transformers side by side.


class Head(nn.Module):
    """One or more paths from a temporal pyramid to classes, which learn apart and answer together.

    Attributes:
        fusion_weights: how much each path has to say, [paths]; `default_fusion_weights` until `tune_fusion` has seen
            them.
    """

    default_fusion_weights: tuple[float, ...] = (1,)

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("fusion_weights", torch.tensor(self.default_fusion_weights, dtype=torch.float))

    def answer(self, parts_NPK: torch.Tensor) -> torch.Tensor:
        """Returns logits [N,C]: the sum of the paths' log-probabilities, each times its fusion weight."""
        return (self(parts_NPK).log_softmax(-1) * self.fusion_weights[:, None, None]).sum(0)

    def forward(self, parts_NPK: torch.Tensor) -> torch.Tensor:
        """Returns the logits of each path, [paths,N,C]."""
        raise NotImplementedError


class MeanHead(Head):
    """A linear layer on the average frame, without the changes: all that can be known without time."""

    def __init__(self, parts: int, width: int, classes: int, config: HeadConfig):
        super().__init__()
        self.linear = nn.Linear(width // 2, classes)

    def forward(self, parts_NPK: torch.Tensor) -> torch.Tensor:
        return self.linear(parts_NPK[:, 0].chunk(2, -1)[0])[None]


class PyramidHead(Head):
    """A linear layer on all parts of the pyramid, and beside it one on how the averages of its parts depart from that
    of the whole clip: what moves, without where it is and who does it.

    The first knows more and is better where clips are many; the second needs few, if movement tells the classes.
    """

    default_fusion_weights = 1, 1

    def __init__(self, parts: int, width: int, classes: int, config: HeadConfig):
        super().__init__()
        self.of_parts, self.of_departures = (nn.Linear(parts * size, classes) for size in (width, width // 2))
        for linear in (self.of_parts, self.of_departures):
            nn.init.zeros_(linear.weight)

    def forward(self, parts_NPK: torch.Tensor) -> torch.Tensor:
        # Without the root, more parts would mean larger steps of the logits at the same learning rate.
        evened_NPK = parts_NPK / parts_NPK.shape[1] ** 0.5
        departures_NPK = departures(evened_NPK.chunk(2, -1)[0])
        return torch.stack([self.of_parts(evened_NPK.flatten(1)), self.of_departures(departures_NPK.flatten(1))])


class SequenceHead(Head):
    """A model of sequences over the finest parts of the pyramid, and beside it linear layers on all of them.

    On frozen features and few clips a model that reads every frame and component loses to linear layers, both alone and
    in a sum of logits that is trained as one. So it reads averages of the leading components, and each learns apart.
    It also gets surer of itself than it is right, so its default weight is less.
    """

    default_fusion_weights = *PyramidHead.default_fusion_weights, 0.5

    def __init__(self, parts: int, width: int, classes: int, config: HeadConfig):
        super().__init__()
        self.pyramid = PyramidHead(parts, width, classes, config)  # Its weights in this head are this head's.
        self.steps = (parts + 1) // 2
        self.components = min(config.sequence_components, width // 2)
        dropout = nn.Dropout(config.dropout)
        self.project = nn.Sequential(dropout, nn.Linear(3 * self.components, config.hidden), nn.GELU(), dropout)
        self.sequence, size = self.make_sequence(config)
        self.classify = nn.Sequential(dropout, nn.Linear(size, classes))

    def make_sequence(self, config: HeadConfig) -> tuple[nn.Module, int]:
        """Returns a module [N,S,hidden] -> [N,S,size], and this size."""
        raise NotImplementedError

    def forward(self, parts_NPK: torch.Tensor) -> torch.Tensor:
        averages, changes = (half_NPK[..., : self.components] for half_NPK in parts_NPK.chunk(2, -1))
        # Twice the departures vary about as much as the averages.
        seen = torch.cat([averages, changes, 2 * departures(averages)], -1)[:, -self.steps :]
        states_NSH = self.sequence(self.project(seen))
        return torch.cat([self.pyramid(parts_NPK), self.classify(states_NSH.mean(1))[None]])


class BiLSTMHead(SequenceHead):
    """A bidirectional LSTM (Graves and Schmidhuber, Neural Networks 18, 2005)."""

    def make_sequence(self, config: HeadConfig) -> tuple[nn.Module, int]:
        inputs = [config.hidden] + [2 * config.hidden] * (config.layers - 1)
        return nn.Sequential(*(BiLSTM(size, config.hidden) for size in inputs)), 2 * config.hidden


class TransformerHead(SequenceHead):
    """A Transformer encoder with learned positions (Vaswani et al., NeurIPS 2017; pre-norm)."""

    def make_sequence(self, config: HeadConfig) -> tuple[nn.Module, int]:
        layers = [
            nn.TransformerEncoderLayer(
                config.hidden,
                nhead=math.gcd(config.hidden, 4),
                dim_feedforward=2 * config.hidden,
                dropout=config.dropout,
                activation="gelu",
                batch_first=True,
                norm_first=True,
            )
            for _ in range(config.layers)
        ]
        return nn.Sequential(Positions(self.steps, config.hidden), *layers), config.hidden

    def forward(self, parts_NPK: torch.Tensor) -> torch.Tensor:
        with sdpa_kernel(SDPBackend.MATH):  # The others cannot run side by side.
            return super().forward(parts_NPK)


class ConvolutionHead(SequenceHead):
    """Residual convolutions over time, each reaching twice as far as the one before (Bai et al., arXiv:1803.01271, but
    looking both ways)."""

    def make_sequence(self, config: HeadConfig) -> tuple[nn.Module, int]:
        return nn.Sequential(*(Convolution(config.hidden, 2**layer) for layer in range(config.layers))), config.hidden


class Positions(nn.Module):
    """Adds to each step what tells which it is."""

    def __init__(self, steps: int, hidden: int):
        super().__init__()
        self.of_steps = nn.Parameter(torch.randn(steps, hidden) * 0.1)

    def forward(self, values_NSH: torch.Tensor) -> torch.Tensor:
        return values_NSH + self.of_steps


class Convolution(nn.Module):
    """A convolution over time, added to what it reads."""

    def __init__(self, hidden: int, reach: int):
        super().__init__()
        self.convolve = nn.Conv1d(hidden, hidden, 3, padding="same", dilation=reach)

    def forward(self, values_NSH: torch.Tensor) -> torch.Tensor:
        return values_NSH + nn.functional.gelu(self.convolve(values_NSH.transpose(1, 2)).transpose(1, 2))


class BiLSTM(nn.Module):
    """A layer of a bidirectional LSTM, [N,S,I] -> [N,S,2H].

    In plain products of matrices, for `torch.func.vmap` cannot run many of `nn.LSTM` side by side. With eight steps it
    is as fast.
    """

    def __init__(self, inputs: int, hidden: int):
        super().__init__()

        def weights(*shape: int) -> nn.Parameter:  # As nn.LSTM draws them.
            return nn.Parameter(torch.empty(2, *shape).uniform_(-(hidden**-0.5), hidden**-0.5))

        self.of_input, self.of_state = weights(inputs, 4 * hidden), weights(hidden, 4 * hidden)
        self.bias = weights(1, 4 * hidden)

    def forward(self, values_NSI: torch.Tensor) -> torch.Tensor:
        both_ways = torch.stack([values_NSI, values_NSI.flip(1)])
        gates_2NSG = (both_ways.flatten(1, 2) @ self.of_input + self.bias).unflatten(1, values_NSI.shape[:2])
        state_2NH = cell_2NH = torch.zeros_like(gates_2NSG[:, :, 0].chunk(4, -1)[0])
        states = []
        for step_2NG in gates_2NSG.unbind(2):
            enter, forget, cell, leave = (step_2NG + state_2NH @ self.of_state).chunk(4, -1)
            cell_2NH = forget.sigmoid() * cell_2NH + enter.sigmoid() * cell.tanh()
            state_2NH = leave.sigmoid() * cell_2NH.tanh()
            states.append(state_2NH)
        forwards_NSH, backwards_NSH = torch.stack(states, 2)
        return torch.cat([forwards_NSH, backwards_NSH.flip(1)], -1)


HEADS = {
    "bilstm": BiLSTMHead,
    "transformer": TransformerHead,
    "convolution": ConvolutionHead,
    "pyramid": PyramidHead,
    "mean": MeanHead,
}


class Heads(nn.ModuleList):
    """Heads of one kind that differ in their seed."""

    def forward(self, parts_NPK: torch.Tensor) -> torch.Tensor:
        """Returns the logits of each head, [heads,N,C]."""
        return torch.stack([head.answer(parts_NPK) for head in self])


def departures(averages_NPK: torch.Tensor) -> torch.Tensor:
    """Returns how the parts of each clip depart from the whole, which is the first of them."""
    return averages_NPK - averages_NPK[:, :1]
