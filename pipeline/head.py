"""The classifier on top of the cached features."""

import torch
from torch import nn

from pipeline.config import HeadConfig


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
    """A bidirectional LSTM beside a linear layer on a temporal pyramid; their logits add up.

    On frozen features an LSTM alone loses to frame averaging wherever both were measured on honest splits
    (bknyaz/videos). The pyramid (as in Pirsiavash and Ramanan, CVPR 2012) begins with that average and adds those of
    halves, quarters and eighths; the LSTM starts at zero and adds what it learns of order. Its logits are scaled down
    (as LayerScale does, arXiv:2103.17239), so that it corrects the linear path and does not overfit in its place.
    """

    LSTM_SCALE = 0.1

    def __init__(self, width: int, classes: int, config: HeadConfig):
        super().__init__()
        self.parts = [2**level for level in range(config.levels)]
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.linear = nn.Linear(sum(self.parts) * width, classes)
        dropout = nn.Dropout(config.dropout)
        self.project = nn.Sequential(dropout, nn.Linear(width, config.hidden), nn.GELU(), dropout)
        between = config.dropout if config.layers > 1 else 0.0
        self.lstm = nn.LSTM(
            config.hidden, config.hidden, config.layers, batch_first=True, bidirectional=True, dropout=between
        )
        self.classify = nn.Sequential(dropout, nn.Linear(2 * config.hidden, classes))
        nn.init.zeros_(self.classify[1].weight)
        nn.init.zeros_(self.linear.weight)

    def forward(self, features_NTD: torch.Tensor, lengths_N: torch.Tensor) -> torch.Tensor:
        """Returns logits [N,C]; frames from `lengths_N` on are padding."""
        normed_NTD = self.norm(features_NTD)
        packed = nn.utils.rnn.pack_padded_sequence(
            self.project(normed_NTD), lengths_N.cpu(), batch_first=True, enforce_sorted=False
        )
        states_NTH, _ = nn.utils.rnn.pad_packed_sequence(self.lstm(packed)[0], batch_first=True)
        pooled_NH = segment_means(states_NTH, lengths_N, 1).flatten(1)
        pyramid_NSD = torch.cat([segment_means(normed_NTD, lengths_N, parts) for parts in self.parts], 1)
        # Without the root, more levels would mean larger steps of the logits at the same learning rate.
        linear_NC = self.linear(pyramid_NSD.flatten(1) / sum(self.parts) ** 0.5)
        return linear_NC + self.LSTM_SCALE * self.classify(pooled_NH)


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
