"""The classifier on top of the cached features."""

from typing import Annotated, Literal

import torch
from pydantic import Field, PositiveInt
from torch import nn

from pipeline.settings import settings


@settings
class HeadConfig:
    """The classifier."""

    kind: Literal["bilstm", "mean"] = "bilstm"
    """bilstm: LSTM and time-segment path; mean: a linear layer on the average frame, the baseline to beat."""
    hidden: PositiveInt = 128
    """Units of the LSTM in each direction, and of the projection before it."""
    layers: PositiveInt = 1
    """Layers of the LSTM."""
    segments: PositiveInt = 8
    """Consecutive time averages that the linear path beside the LSTM sees."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Share of values dropped before and after the projection and after the LSTM."""


class MeanHead(nn.Module):
    """A linear layer on the average of the normalised frames: all that can be known without time."""

    def __init__(self, width: int, classes: int, config: HeadConfig):
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.linear = nn.Linear(width, classes)

    def forward(self, features_NTD: torch.Tensor, lengths_N: torch.Tensor) -> torch.Tensor:
        """Returns logits [N,C]; frames from `lengths_N` on are padding."""
        return self.linear(segment_means(self.norm(features_NTD), lengths_N, 1).flatten(1))


class BiLSTMHead(nn.Module):
    """A bidirectional LSTM beside a linear path on a few consecutive time averages; their logits add up.

    On frozen features an LSTM alone loses to frame averaging wherever both were measured on honest splits
    (bknyaz/videos). The linear path holds that average, and the LSTM starts at zero and adds what it learns of order.
    """

    def __init__(self, width: int, classes: int, config: HeadConfig):
        super().__init__()
        self.segments = config.segments
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.linear = nn.Linear(config.segments * width, classes)
        dropout = nn.Dropout(config.dropout)
        self.project = nn.Sequential(dropout, nn.Linear(width, config.hidden), nn.GELU(), dropout)
        between = config.dropout if config.layers > 1 else 0.0
        self.lstm = nn.LSTM(
            config.hidden, config.hidden, config.layers, batch_first=True, bidirectional=True, dropout=between
        )
        self.classify = nn.Sequential(dropout, nn.Linear(2 * config.hidden, classes))
        nn.init.zeros_(self.classify[1].weight)

    def forward(self, features_NTD: torch.Tensor, lengths_N: torch.Tensor) -> torch.Tensor:
        """Returns logits [N,C]; frames from `lengths_N` on are padding."""
        normed_NTD = self.norm(features_NTD)
        packed = nn.utils.rnn.pack_padded_sequence(
            self.project(normed_NTD), lengths_N.cpu(), batch_first=True, enforce_sorted=False
        )
        states_NTH, _ = nn.utils.rnn.pad_packed_sequence(self.lstm(packed)[0], batch_first=True)
        pooled_NH = segment_means(states_NTH, lengths_N, 1).flatten(1)
        averages_NSD = segment_means(normed_NTD, lengths_N, self.segments)
        return self.linear(averages_NSD.flatten(1)) + self.classify(pooled_NH)


HEADS = {"bilstm": BiLSTMHead, "mean": MeanHead}


def segment_means(features_NTD: torch.Tensor, lengths_N: torch.Tensor, segments: int) -> torch.Tensor:
    """Averages consecutive parts of each clip, as adaptive average pooling does, but within its own length.

    Args:
        features_NTD: padded features.
        lengths_N: true number of frames of each clip, at least 1.
        segments: number S of parts; they overlap where a clip has fewer frames.

    Returns:
        [N,S,D].
    """
    frames = torch.arange(features_NTD.shape[1], device=features_NTD.device)
    edges_S = torch.arange(segments + 1, device=features_NTD.device)
    lengths_N1 = lengths_N.to(features_NTD.device)[:, None]
    first_NS = edges_S[:-1] * lengths_N1 // segments
    stop_NS = (edges_S[1:] * lengths_N1 + segments - 1) // segments
    inside_NST = (frames >= first_NS[..., None]) & (frames < stop_NS[..., None])
    weights_NST = inside_NST / inside_NST.sum(-1, keepdim=True)
    return weights_NST.to(features_NTD.dtype) @ features_NTD
