"""Features of frames -> principal components, and how much each changes from frame to frame."""

import torch
from torch import nn


class Reduction(nn.Module):
    """PCA of the frames of the training clips, followed by the size of each component's change.

    A few hundred clips cannot train weights for thousands of features per frame. The absolute change since the frame
    before is what no weighted sum of frames can express.
    """

    def __init__(self, width: int, components: int):
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("basis", torch.zeros(width, components))
        self.register_buffer("delta_mean", torch.zeros(components))
        self.register_buffer("delta_scale", torch.ones(()))

    @classmethod
    def fit(cls, features_NTD: torch.Tensor, lengths_N: torch.Tensor, components: int) -> "Reduction":
        """Compute at most `components` components, never more than clips; frames from `lengths_N` on are padding.

        The frames of a clip are alike: with more components than clips, the last ones only tell those clips apart.
        """
        is_frame_NT = frame_mask(features_NTD, lengths_N)
        frames_FD = features_NTD[is_frame_NT].float()
        reduction = cls(frames_FD.shape[1], min(components, len(features_NTD), *frames_FD.shape))
        normed_FD = reduction.norm(frames_FD)
        reduction.mean = normed_FD.mean(0)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            # Oversampling makes the leading components nearly independent of the seed (Halko et al., 2011).
            _, scales, basis = torch.pca_lowrank(normed_FD - reduction.mean, min(components + 100, *frames_FD.shape))
        scales_K, basis_DK = (values[..., : reduction.basis.shape[1]] for values in (scales, basis))
        deviations_K = (scales_K / len(frames_FD) ** 0.5).clamp(min=1e-6)
        basis_DK = basis_DK * (deviations_K > 1e-3 * deviations_K[0])  # Without directions of no variance.
        # A variance of one on average, so that a learning rate suits all backbones.
        reduction.basis = basis_DK / deviations_K.square().mean().sqrt()
        deltas_FK = reduction(features_NTD, lengths_N)[is_frame_NT].chunk(2, -1)[1]
        reduction.delta_mean = deltas_FK.mean(0)
        reduction.delta_scale = 2 * (deltas_FK - reduction.delta_mean).std(correction=0).clamp(min=1e-6)
        return reduction

    def forward(self, features_NTD: torch.Tensor, lengths_N: torch.Tensor) -> torch.Tensor:
        """Return components and changes, float32 [N,T,2K]; padding is zero."""
        components_NTK = (self.norm(features_NTD.float()) - self.mean) @ self.basis
        deltas_NTK = components_NTK.diff(dim=1, prepend=components_NTK[:, :1]).abs()
        frames_NTK = torch.cat([components_NTK, (deltas_NTK - self.delta_mean) / self.delta_scale], 2)
        return frames_NTK * frame_mask(frames_NTK, lengths_N)[..., None]


def frame_mask(frames_NTK: torch.Tensor, lengths_N: torch.Tensor) -> torch.Tensor:
    """Return which frames are not padding, bool [N,T]."""
    steps = torch.arange(frames_NTK.shape[1], device=frames_NTK.device)
    return steps < lengths_N.to(frames_NTK.device)[:, None]


def segment_means(frames_NTK: torch.Tensor, lengths_N: torch.Tensor, segments: int) -> torch.Tensor:
    """Average S consecutive segments of each clip, [N,S,K]: adaptive average pooling within the clip's own length.

    Segments overlap where a clip has fewer frames than segments.
    """
    steps = torch.arange(frames_NTK.shape[1], device=frames_NTK.device)
    edges_S = torch.arange(segments + 1, device=frames_NTK.device)
    lengths_N1 = lengths_N.to(frames_NTK.device)[:, None]
    first_NS = edges_S[:-1] * lengths_N1 // segments
    stop_NS = (edges_S[1:] * lengths_N1 + segments - 1) // segments
    inside_NST = (steps >= first_NS[..., None]) & (steps < stop_NS[..., None])
    return (inside_NST / inside_NST.sum(-1, keepdim=True)).to(frames_NTK.dtype) @ frames_NTK
