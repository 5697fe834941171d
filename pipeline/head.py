"""The classifier on top of the cached features."""

import torch
from torch import nn

from pipeline.config import HeadConfig

FRAMES_TO_REDUCE = 20_000
"""Frames, of clips drawn at random, that a reduction is computed from: more do not change it visibly."""


class Reduction(nn.Module):
    """Features -> their principal components, half whitened, and beside them how much each has changed in a frame.

    All of it is computed from the training clips. Few clips cannot train weights for thousands of values a frame. Half
    whitening divides each component by the root of its standard deviation: between the raw scale, in which a few drown
    the rest, and full whitening, which blows up noise. The size of a change is what no weighted sum of frames can tell.
    """

    def __init__(self, width: int, components: int):
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.register_buffer("centre", torch.zeros(width))
        self.register_buffer("basis", torch.zeros(width, components))
        self.register_buffer("usual_change", torch.zeros(components))
        self.register_buffer("change_scale", torch.ones(()))

    @property
    def size(self) -> int:
        """Values a frame that a head sees."""
        return 2 * self.basis.shape[1]

    @classmethod
    def of(cls, features_NTD: torch.Tensor, lengths_N: torch.Tensor, components: int) -> "Reduction":
        """Computes it for at most so many components; frames from `lengths_N` on are padding."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            clips = torch.randperm(len(lengths_N))[: max(1, FRAMES_TO_REDUCE // features_NTD.shape[1])]
            features_NTD, lengths_N = features_NTD[clips], lengths_N[clips]
            is_frame_NT = torch.arange(features_NTD.shape[1]) < lengths_N[:, None]
            frames_FD = features_NTD[is_frame_NT].float()
            reduction = cls(frames_FD.shape[1], min(components, *frames_FD.shape))
            normed_FD = reduction.norm(frames_FD)
            reduction.centre = normed_FD.mean(0)
            _, scales_K, basis_DK = torch.pca_lowrank(normed_FD - reduction.centre, reduction.size // 2)
        # Directions in which the training frames do not vary are nothing but noise in others.
        deviations_K = (scales_K / len(frames_FD) ** 0.5).clamp(min=1e-6)
        basis_DK = basis_DK * (deviations_K > 1e-3 * deviations_K[0])
        # The variance is one on average, so that learning rates mean the same for all backbones.
        reduction.basis = basis_DK / (deviations_K * deviations_K.mean()).sqrt()
        changes_FK = reduction(features_NTD)[is_frame_NT].chunk(2, -1)[1]
        reduction.usual_change = changes_FK.mean(0)
        reduction.change_scale = (changes_FK - reduction.usual_change).std(correction=0).clamp(min=1e-6)
        return reduction

    def forward(self, features_NTD: torch.Tensor) -> torch.Tensor:
        """Returns float32 [N,T,2K]: the components, and the sizes of their changes since the frame before."""
        components_NTK = (self.norm(features_NTD.float()) - self.centre) @ self.basis
        changes_NTK = components_NTK.diff(dim=1, prepend=components_NTK[:, :1]).abs()
        return torch.cat([components_NTK, (changes_NTK - self.usual_change) / self.change_scale], 2)


class Head(nn.Module):
    """One or more paths from reduced features to classes, which learn apart and answer together."""

    def paths(self, reduced_NTK: torch.Tensor, lengths_N: torch.Tensor) -> torch.Tensor:
        """Returns the logits of each path, [P,N,C]; frames from `lengths_N` on are padding."""
        raise NotImplementedError

    def forward(self, reduced_NTK: torch.Tensor, lengths_N: torch.Tensor) -> torch.Tensor:
        """Returns the average of their log-probabilities, [N,C]."""
        return self.paths(reduced_NTK, lengths_N).log_softmax(-1).mean(0)


class MeanHead(Head):
    """A linear layer on the average frame, without the changes: all that can be known without time."""

    def __init__(self, width: int, classes: int, config: HeadConfig):
        super().__init__()
        self.linear = nn.Linear(width // 2, classes)

    def paths(self, reduced_NTK: torch.Tensor, lengths_N: torch.Tensor) -> torch.Tensor:
        return self.linear(segment_means(reduced_NTK.chunk(2, -1)[0], lengths_N, 1).flatten(1))[None]


class PyramidHead(Head):
    """A linear layer on a temporal pyramid: the averages of the whole clip, its halves, quarters and eighths (as in
    Pirsiavash and Ramanan, CVPR 2012)."""

    def __init__(self, width: int, classes: int, config: HeadConfig):
        super().__init__()
        self.parts = [2**level for level in range(config.levels)]
        self.linear = nn.Linear(sum(self.parts) * width, classes)
        nn.init.zeros_(self.linear.weight)

    def paths(self, reduced_NTK: torch.Tensor, lengths_N: torch.Tensor) -> torch.Tensor:
        pyramid_NSK = torch.cat([segment_means(reduced_NTK, lengths_N, parts) for parts in self.parts], 1)
        # Without the root, more levels would mean larger steps of the logits at the same learning rate.
        return self.linear(pyramid_NSK.flatten(1) / sum(self.parts) ** 0.5)[None]


class BiLSTMHead(Head):
    """A bidirectional LSTM over the finest level of a temporal pyramid, and beside it a linear layer on all of it.

    On frozen features and few clips an LSTM that reads every frame and component loses to linear layers, both alone and
    in a sum of logits that is trained as one. So it reads averages of the leading components, and each learns apart.
    """

    def __init__(self, width: int, classes: int, config: HeadConfig):
        super().__init__()
        self.pyramid = PyramidHead(width, classes, config)
        self.components = min(config.lstm_components, width // 2)
        dropout = nn.Dropout(config.dropout)
        self.project = nn.Sequential(dropout, nn.Linear(2 * self.components, config.hidden), nn.GELU(), dropout)
        between = config.dropout if config.layers > 1 else 0.0
        self.lstm = nn.LSTM(
            config.hidden, config.hidden, config.layers, batch_first=True, bidirectional=True, dropout=between
        )
        self.classify = nn.Sequential(dropout, nn.Linear(2 * config.hidden, classes))

    def paths(self, reduced_NTK: torch.Tensor, lengths_N: torch.Tensor) -> torch.Tensor:
        leading = [half_NTK[..., : self.components] for half_NTK in reduced_NTK.chunk(2, -1)]
        steps_NSK = segment_means(torch.cat(leading, -1), lengths_N, self.pyramid.parts[-1])
        states_NSH, _ = self.lstm(self.project(steps_NSK))
        recurrent_NC = self.classify(states_NSH.mean(1))
        return torch.cat([self.pyramid.paths(reduced_NTK, lengths_N), recurrent_NC[None]])


HEADS = {"bilstm": BiLSTMHead, "pyramid": PyramidHead, "mean": MeanHead}


class Classifier(nn.Module):
    """A head with the reduction that it was trained behind: features [N,T,D] -> logits [N,C]."""

    def __init__(self, reduction: Reduction, head: nn.Module):
        super().__init__()
        self.reduction, self.head = reduction, head

    def forward(self, features_NTD: torch.Tensor, lengths_N: torch.Tensor) -> torch.Tensor:
        return self.head(self.reduction(features_NTD), lengths_N)


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
