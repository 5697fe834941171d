"""Heads: reduced frames of a clip -> logits.

A head has paths, each a classifier of its own that is trained with its own loss. Their weighted log-probabilities are
added. So a head contains its baselines: `mean` and `pyramid` are paths of every sequence head.
"""

import math

import torch
from torch import nn

from pipeline.config import HeadConfig
from pipeline.models.reduction import frame_mask, segment_means


class Mean(nn.Module):
    """Linear layer on the average frame, without changes: what can be known without time."""

    def __init__(self, components: int, classes: int, config: HeadConfig):
        super().__init__()
        self.linear = nn.Linear(components, classes)

    def forward(self, frames_NTK: torch.Tensor, lengths_N: torch.Tensor) -> torch.Tensor:
        return self.linear(segment_means(frames_NTK.chunk(2, -1)[0], lengths_N, 1)[:, 0])


class Pyramid(nn.Module):
    """Linear layer on the averages of the whole clip, its halves, quarters, ... (Pirsiavash and Ramanan, CVPR 2012)."""

    def __init__(self, components: int, classes: int, config: HeadConfig):
        super().__init__()
        self.levels = config.pyramid_levels
        self.linear = nn.Linear((2**self.levels - 1) * self.width(components), classes)
        nn.init.zeros_(self.linear.weight)

    def width(self, components: int) -> int:
        return 2 * components

    def forward(self, frames_NTK: torch.Tensor, lengths_N: torch.Tensor) -> torch.Tensor:
        levels = [segment_means(frames_NTK, lengths_N, 2**level) for level in range(self.levels)]
        averages_NPK = torch.cat(levels, 1)
        # Scale by sqrt(n_segments) so that the effective learning rate does not depend on it.
        return self.linear(averages_NPK.flatten(1) / averages_NPK.shape[1] ** 0.5)


class Deviations(Pyramid):
    """The same on deviations from the clip's mean: what moves, without the scene. Better where clips are few."""

    def width(self, components: int) -> int:
        return components

    def forward(self, frames_NTK: torch.Tensor, lengths_N: torch.Tensor) -> torch.Tensor:
        return super().forward(deviations(frames_NTK.chunk(2, -1)[0], lengths_N), lengths_N)


class Sequence(nn.Module):
    """A sequence model over every sampled frame, averaged over time.

    It reads the leading components, their changes and their deviations from the clip's mean.
    """

    def __init__(self, components: int, classes: int, config: HeadConfig):
        super().__init__()
        self.components = min(config.sequence_components, components)
        dropout = nn.Dropout(config.dropout)
        self.project = nn.Sequential(dropout, nn.Linear(3 * self.components, config.hidden), nn.GELU(), dropout)
        size = self.build(config)
        self.classify = nn.Sequential(dropout, nn.Linear(size, classes))

    def build(self, config: HeadConfig) -> int:
        """Create the sequence model and return the width of its output."""
        raise NotImplementedError

    def states(self, inputs_NTH: torch.Tensor, lengths_N: torch.Tensor) -> torch.Tensor:
        """Return the output of the sequence model, [N,T,size]."""
        raise NotImplementedError

    def forward(self, frames_NTK: torch.Tensor, lengths_N: torch.Tensor) -> torch.Tensor:
        values, changes = (half_NTK[..., : self.components] for half_NTK in frames_NTK.chunk(2, -1))
        inputs = torch.cat([values, changes, 2 * deviations(values, lengths_N)], -1)
        states_NTH = self.states(self.project(inputs), lengths_N)
        return self.classify(segment_means(states_NTH, lengths_N, 1)[:, 0])


class BiLSTM(Sequence):
    """Bidirectional LSTM (Graves and Schmidhuber, Neural Networks 18, 2005)."""

    def build(self, config: HeadConfig) -> int:
        between = config.dropout if config.layers > 1 else 0
        self.lstm = nn.LSTM(config.hidden, config.hidden, config.layers, True, True, between, bidirectional=True)
        return 2 * config.hidden

    def states(self, inputs_NTH: torch.Tensor, lengths_N: torch.Tensor) -> torch.Tensor:
        if int(lengths_N.min()) == inputs_NTH.shape[1]:
            return self.lstm(inputs_NTH)[0]
        packed = nn.utils.rnn.pack_padded_sequence(inputs_NTH, lengths_N.cpu(), True, enforce_sorted=False)
        states, _ = nn.utils.rnn.pad_packed_sequence(self.lstm(packed)[0], True, total_length=inputs_NTH.shape[1])
        return states


class Transformer(Sequence):
    """Pre-norm Transformer encoder with sinusoidal positions (Vaswani et al., NeurIPS 2017)."""

    def build(self, config: HeadConfig) -> int:
        layer = nn.TransformerEncoderLayer(
            config.hidden,
            math.gcd(config.hidden, 4),
            2 * config.hidden,
            config.dropout,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )
        self.encoder = nn.TransformerEncoder(layer, config.layers, enable_nested_tensor=False)
        return config.hidden

    def states(self, inputs_NTH: torch.Tensor, lengths_N: torch.Tensor) -> torch.Tensor:
        steps, size = inputs_NTH.shape[1:]
        rates = torch.exp(torch.arange(0, size, 2, device=inputs_NTH.device) * (-math.log(10_000) / size))
        angles = torch.arange(steps, device=inputs_NTH.device)[:, None] * rates
        positions = torch.stack([angles.sin(), angles.cos()], -1).flatten(1)[:, :size]
        return self.encoder(inputs_NTH + positions, src_key_padding_mask=~frame_mask(inputs_NTH, lengths_N))


PATHS = {"mean": Mean, "pyramid": Pyramid, "deviations": Deviations, "bilstm": BiLSTM, "transformer": Transformer}

LINEAR = ("mean", "pyramid", "deviations")
KINDS = {
    "mean": ("mean",),
    "pyramid": LINEAR,
    "bilstm": (*LINEAR, "bilstm"),
    "transformer": (*LINEAR, "transformer"),
}
"""Paths of each kind of head."""


class Head(nn.Module):
    """Paths, and the weight of each in the sum of their log-probabilities."""

    def __init__(self, paths: dict[str, nn.Module]):
        super().__init__()
        self.paths = nn.ModuleDict(paths)
        self.register_buffer("weights", torch.full((len(paths),), 1 / len(paths)))

    @classmethod
    def build(cls, components: int, classes: int, config: HeadConfig) -> "Head":
        """Create the head of the configured kind."""
        return cls({name: PATHS[name](components, classes, config) for name in KINDS[config.kind]})

    def baselines(self) -> dict[str, "Head"]:
        """Return the simpler heads that this one contains, by kind; they share its paths."""
        kinds = [kind for kind in ("pyramid", "mean") if {*KINDS[kind]} < {*self.paths}]
        return {kind: Head({name: self.paths[name] for name in KINDS[kind]}) for kind in kinds}

    def logits(self, frames_NTK: torch.Tensor, lengths_N: torch.Tensor) -> torch.Tensor:
        """Return the logits of each path, [P,N,C]."""
        return torch.stack([path(frames_NTK, lengths_N) for path in self.paths.values()])

    def forward(self, frames_NTK: torch.Tensor, lengths_N: torch.Tensor) -> torch.Tensor:
        """Return the weighted sum of the paths' log-probabilities, [N,C]."""
        return (self.logits(frames_NTK, lengths_N).log_softmax(-1) * self.weights[:, None, None]).sum(0)


def deviations(values_NTK: torch.Tensor, lengths_N: torch.Tensor) -> torch.Tensor:
    """Subtract the mean of each clip; padding becomes zero."""
    mask_NT1 = frame_mask(values_NTK, lengths_N)[..., None]
    return (values_NTK - segment_means(values_NTK, lengths_N, 1)) * mask_NT1
