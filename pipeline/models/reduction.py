"""Features of frames -> a few components: what is seen, how much it changes, and how it moves."""

import torch
from torch import nn


class Reduction(nn.Module):
    """Three views of each frame, side by side: `widths` values each.

    Components: PCA of the frames. Changes: the absolute change of each component since the previous frame, which no
    weighted sum of frames can express. Motion: PCA of the frames' deviations from the mean of their clip. Scenes differ
    more from each other than the frames of one clip do, so the leading components show the scene and hide the motion.
    """

    def __init__(self, width: int, components: int, motion: int):
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("basis", torch.zeros(width, components))
        self.register_buffer("motion_basis", torch.zeros(width, motion))
        self.register_buffer("delta_mean", torch.zeros(components))
        self.register_buffer("delta_scale", torch.ones(()))

    @property
    def widths(self) -> tuple[int, int]:
        """Numbers of components and of motion components."""
        return self.basis.shape[1], self.motion_basis.shape[1]

    @classmethod
    def fit(cls, features_NTD: torch.Tensor, lengths_N: torch.Tensor, components: int, motion: int) -> "Reduction":
        """Compute the bases from clips; frames from `lengths_N` on are padding.

        There are never more components than clips, since the last ones would only tell those clips apart, and no more
        motion components than an eighth of the clips (or 16), since a sequence model overfits sooner."""
        is_frame_NT = frame_mask(features_NTD, lengths_N)
        number, reduction = len(features_NTD), cls(features_NTD.shape[2], 0, 0)
        normed_NTD = reduction.norm(features_NTD.float())
        reduction.mean = normed_NTD[is_frame_NT].mean(0)
        reduction.basis = principal_axes(normed_NTD[is_frame_NT] - reduction.mean, min(components, number))
        moves_NTD = deviations(normed_NTD, lengths_N)
        reduction.motion_basis = principal_axes(moves_NTD[is_frame_NT], min(motion, max(number // 8, 16), number))
        reduction.delta_mean = torch.zeros(reduction.basis.shape[1])
        components, motion = reduction.widths
        deltas_FK = reduction(features_NTD, lengths_N)[is_frame_NT].split([components, components, motion], 1)[1]
        reduction.delta_mean = deltas_FK.mean(0)
        reduction.delta_scale = 2 * (deltas_FK - reduction.delta_mean).std(correction=0).clamp(min=1e-6)
        return reduction

    def forward(self, features_NTD: torch.Tensor, lengths_N: torch.Tensor) -> torch.Tensor:
        """Return components, changes and motion, float32 [N,T,2K+M]; padding is zero."""
        normed_NTD = self.norm(features_NTD.float())
        components_NTK = (normed_NTD - self.mean) @ self.basis
        deltas_NTK = components_NTK.diff(dim=1, prepend=components_NTK[:, :1]).abs()
        changes_NTK = (deltas_NTK - self.delta_mean) / self.delta_scale
        motion_NTM = deviations(normed_NTD @ self.motion_basis, lengths_N)
        return torch.cat([components_NTK, changes_NTK, motion_NTM], 2) * frame_mask(features_NTD, lengths_N)[..., None]


def principal_axes(rows_FD: torch.Tensor, components: int) -> torch.Tensor:
    """Return the leading axes, [D,K], scaled so that projections of the rows have a variance of one on average."""
    components = min(components, *rows_FD.shape)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        # Oversampling makes the leading components nearly independent of the seed (Halko et al., 2011).
        oversampled = min(components + 100, *rows_FD.shape)
        _, scales, axes = torch.pca_lowrank(rows_FD, oversampled, center=False)
    scales_K, axes_DK = scales[:components] / len(rows_FD) ** 0.5, axes[:, :components]
    is_noise_K = scales_K < 1e-3 * scales_K[0].clamp(min=1e-6)
    # One scale for all, so that a learning rate suits every backbone.
    return axes_DK * ~is_noise_K / scales_K.square().mean().sqrt().clamp(min=1e-6)


def frame_mask(frames_NTK: torch.Tensor, lengths_N: torch.Tensor) -> torch.Tensor:
    """Return which frames are not padding, bool [N,T]."""
    steps = torch.arange(frames_NTK.shape[1], device=frames_NTK.device)
    return steps < lengths_N.to(frames_NTK.device)[:, None]


def segment_means(frames_NTK: torch.Tensor, lengths_N: torch.Tensor, segments: int) -> torch.Tensor:
    """Average S segments of each clip, [N,S,K]: adaptive average pooling within the clip's own length. Segments overlap
    where a clip has fewer frames than segments."""
    steps = torch.arange(frames_NTK.shape[1], device=frames_NTK.device)
    edges_S = torch.arange(segments + 1, device=frames_NTK.device)
    lengths_N1 = lengths_N.to(frames_NTK.device)[:, None]
    first_NS = edges_S[:-1] * lengths_N1 // segments
    stop_NS = (edges_S[1:] * lengths_N1 + segments - 1) // segments
    inside_NST = (steps >= first_NS[..., None]) & (steps < stop_NS[..., None])
    return (inside_NST / inside_NST.sum(-1, keepdim=True)).to(frames_NTK.dtype) @ frames_NTK


def deviations(values_NTK: torch.Tensor, lengths_N: torch.Tensor) -> torch.Tensor:
    """Subtract the mean of each clip; padding becomes zero."""
    return (values_NTK - segment_means(values_NTK, lengths_N, 1)) * frame_mask(values_NTK, lengths_N)[..., None]
