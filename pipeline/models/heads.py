"""Heads: reduced frames of a clip -> logits.

A head has branches, each a classifier that is trained with its own loss. Their weighted log-probabilities are added. So
a head contains its baselines: a sequence head is a pyramid and a sequence model, and `mean` is trained beside them."""

import math

import torch
from torch import nn

from pipeline.config import HeadConfig
from pipeline.models.reduction import frame_mask, segment_means


class Mean(nn.Module):
    """Linear layer on the components of the average frame: no temporal information."""

    def __init__(self, widths: tuple[int, int], classes: int, config: HeadConfig):
        super().__init__()
        self.components = widths[0]
        self.linear = nn.Linear(self.components, classes)

    def forward(self, frames_NTF: torch.Tensor, lengths_N: torch.Tensor) -> torch.Tensor:
        return self.linear(segment_means(frames_NTF[..., : self.components], lengths_N, 1)[:, 0])


class Pyramid(nn.Module):
    """Linear layer on averages over the clip, its halves, quarters, ... (Pirsiavash and Ramanan, CVPR 2012)."""

    def __init__(self, widths: tuple[int, int], classes: int, config: HeadConfig):
        super().__init__()
        self.levels, self.inputs = config.pyramid_levels, 2 * widths[0]  # Components and their changes.
        self.linear = nn.Linear((2**self.levels - 1) * self.inputs, classes)
        nn.init.zeros_(self.linear.weight)

    def forward(self, frames_NTF: torch.Tensor, lengths_N: torch.Tensor) -> torch.Tensor:
        levels = [segment_means(frames_NTF[..., : self.inputs], lengths_N, 2**level) for level in range(self.levels)]
        averages_NSF = torch.cat(levels, 1)
        # Scale by sqrt(n_segments) so that the effective learning rate does not depend on it.
        return self.linear(averages_NSF.flatten(1) / averages_NSF.shape[1] ** 0.5)


class Sequence(nn.Module):
    """A sequence model that reads every frame; its states are averaged over time.

    Subclasses implement `build`, which returns the width of the states, and `states`, from inputs [N,T,hidden]."""

    def __init__(self, widths: tuple[int, int], classes: int, config: HeadConfig):
        super().__init__()
        self.motion, hidden = widths[1], config.hidden
        dropout = nn.Dropout(config.dropout)
        self.project = nn.Sequential(nn.Linear(2 * self.motion, hidden), nn.GELU(), dropout)
        self.classify = nn.Sequential(dropout, nn.Linear(self.build(config), classes))

    def forward(self, frames_NTF: torch.Tensor, lengths_N: torch.Tensor) -> torch.Tensor:
        states_NTH = self.states(self.inputs(frames_NTF), lengths_N)
        return self.classify(segment_means(states_NTH, lengths_N, 1)[:, 0])

    def inputs(self, frames_NTF: torch.Tensor) -> torch.Tensor:
        """Return the motion of each frame and its change since the previous frame, projected to [N,T,hidden]."""
        motion_NTM = frames_NTF[..., -self.motion :]
        velocity_NTM = motion_NTM.diff(dim=1, prepend=motion_NTM[:, :1])
        return self.project(torch.cat([motion_NTM, velocity_NTM], 2))


class LSTM(Sequence):
    """LSTM from the first to the last frame (Hochreiter and Schmidhuber, Neural Computation 9, 1997)."""

    bidirectional = False

    def build(self, config: HeadConfig) -> int:
        between = config.dropout if config.layers > 1 else 0
        self.lstm = nn.LSTM(config.hidden, config.hidden, config.layers, True, True, between, self.bidirectional)
        return config.hidden * (1 + self.bidirectional)

    def states(self, inputs_NTH: torch.Tensor, lengths_N: torch.Tensor) -> torch.Tensor:
        if torch.compiler.is_exporting() or int(lengths_N.min()) == inputs_NTH.shape[1]:  # Exports have no padding.
            return self.lstm(inputs_NTH)[0]
        packed = nn.utils.rnn.pack_padded_sequence(inputs_NTH, lengths_N.cpu(), True, enforce_sorted=False)
        states, _ = nn.utils.rnn.pad_packed_sequence(self.lstm(packed)[0], True, total_length=inputs_NTH.shape[1])
        return states


class BiLSTM(LSTM):
    """LSTM in both directions (Graves and Schmidhuber, Neural Networks 18, 2005)."""

    bidirectional = True


class Transformer(Sequence):
    """Pre-norm Transformer encoder with sinusoidal positions (Vaswani et al., NeurIPS 2017)."""

    def build(self, config: HeadConfig) -> int:
        self.encoder = encoder(config.hidden, config)
        return config.hidden

    def states(self, inputs_NTH: torch.Tensor, lengths_N: torch.Tensor) -> torch.Tensor:
        steps, size = inputs_NTH.shape[1:]
        rates = torch.exp(torch.arange(0, size, 2, device=inputs_NTH.device) * (-math.log(10_000) / size))
        angles = torch.arange(steps, device=inputs_NTH.device)[:, None] * rates
        positions = torch.stack([angles.sin(), angles.cos()], -1).flatten(1)[:, :size]
        return self.encoder(inputs_NTH + positions, src_key_padding_mask=~frame_mask(inputs_NTH, lengths_N))


class LSTMTransformer(BiLSTM):
    """Transformer encoder over the states of a BiLSTM, which know their position."""

    def build(self, config: HeadConfig) -> int:
        size = super().build(config)
        self.encoder = encoder(size, config)
        return size

    def states(self, inputs_NTH: torch.Tensor, lengths_N: torch.Tensor) -> torch.Tensor:
        states_NTH = super().states(inputs_NTH, lengths_N)
        return self.encoder(states_NTH, src_key_padding_mask=~frame_mask(states_NTH, lengths_N))


def encoder(size: int, config: HeadConfig) -> nn.TransformerEncoder:
    """Return a Transformer encoder of `config.layers` layers."""
    heads = math.gcd(size, 4)
    layer = nn.TransformerEncoderLayer(
        size, heads, 2 * size, config.dropout, activation="gelu", batch_first=True, norm_first=True
    )
    return nn.TransformerEncoder(layer, config.layers, enable_nested_tensor=False)


SEQUENCE = {"bilstm": BiLSTM, "lstm": LSTM, "transformer": Transformer, "lstm_transformer": LSTMTransformer}
KINDS = {"mean": {"mean": Mean}, "pyramid": {"mean": Mean, "pyramid": Pyramid}}
KINDS |= {kind: {**KINDS["pyramid"], kind: model} for kind, model in SEQUENCE.items()}
"""Branches of each kind of head by name."""


class Head(nn.Module):
    """Branches, and their weights in the sum of log-probabilities; `mean` has weight 0 unless it is alone."""

    def __init__(self, branches: dict[str, nn.Module]):
        super().__init__()
        self.branches = nn.ModuleDict(branches)
        is_fused = torch.tensor([name != "mean" or len(branches) == 1 for name in branches])
        self.register_buffer("weights", is_fused / is_fused.sum())

    @classmethod
    def build(cls, widths: tuple[int, int], classes: int, config: HeadConfig) -> "Head":
        """Create the head of the configured kind for frames of `Reduction.widths`."""
        return cls({name: branch(widths, classes, config) for name, branch in KINDS[config.kind].items()})

    def baselines(self) -> dict[str, "Head"]:
        """Return the simpler heads that this one contains, by kind; they share its branches."""
        kinds = [kind for kind in ("pyramid", "mean") if {*KINDS[kind]} < {*self.branches}]
        return {kind: Head({name: self.branches[name] for name in KINDS[kind]}) for kind in kinds}

    def logits(
        self, frames_NTF: torch.Tensor, lengths_N: torch.Tensor, of_sequence_NTF: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the logits of each branch, [P,N,C]; a sequence model reads `of_sequence_NTF` instead, if given."""
        of_sequence_NTF = frames_NTF if of_sequence_NTF is None else of_sequence_NTF

        def read_by(branch: nn.Module) -> torch.Tensor:
            return of_sequence_NTF if isinstance(branch, Sequence) else frames_NTF

        return torch.stack([branch(read_by(branch), lengths_N) for branch in self.branches.values()])

    def forward(self, frames_NTF: torch.Tensor, lengths_N: torch.Tensor) -> torch.Tensor:
        """Return the weighted sum of the branches' log-probabilities, [N,C]."""
        return (self.logits(frames_NTF, lengths_N).log_softmax(-1) * self.weights[:, None, None]).sum(0)
