"""Features of frames -> a temporal pyramid of their principal components."""

import torch
from torch import nn


class Reduction(nn.Module):
    """Features of frames -> a temporal pyramid of their principal components, half whitened, and of how much each has
    changed in a frame.

    All of it is computed from the clips that are learned from. Few clips cannot train weights for thousands of values a
    frame. Half whitening divides each component by the root of its standard deviation: between the raw scale, in which
    a few drown the rest, and full whitening, which blows up noise. The size of a change is what no weighted sum of
    frames can tell.
    The pyramid (as in Pirsiavash and Ramanan, CVPR 2012) holds averages of the whole clip, its halves, quarters, ...
    """

    def __init__(self, width: int, components: int, levels: int):
        super().__init__()
        self.levels = levels
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.register_buffer("centre", torch.zeros(width))
        self.register_buffer("basis", torch.zeros(width, components))
        self.register_buffer("usual_change", torch.zeros(components))
        self.register_buffer("change_scale", torch.ones(()))

    @classmethod
    def of(cls, features_NTD: torch.Tensor, lengths_N: torch.Tensor, components: int, levels: int) -> "Reduction":
        """Computes it for at most so many components, but no more than there are clips, since the frames of a clip are
        much alike: beyond that, components tell the clips apart that it was computed from, and nothing else. Frames
        from `lengths_N` on are padding."""
        is_frame_NT = torch.arange(features_NTD.shape[1]) < lengths_N[:, None]
        frames_FD = features_NTD[is_frame_NT].float()
        reduction = cls(frames_FD.shape[1], min(components, len(features_NTD), *frames_FD.shape), levels)
        normed_FD = reduction.norm(frames_FD)
        reduction.centre = normed_FD.mean(0)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            # With more than wanted, those that are kept depend less on the seed (Halko et al., SIAM Review 53, 2011).
            _, scales, basis = torch.pca_lowrank(normed_FD - reduction.centre, min(components + 100, *frames_FD.shape))
        scales_K, basis_DK = (values[..., : reduction.basis.shape[1]] for values in (scales, basis))
        # Directions in which the training frames do not vary are nothing but noise in others.
        deviations_K = (scales_K / len(frames_FD) ** 0.5).clamp(min=1e-6)
        basis_DK = basis_DK * (deviations_K > 1e-3 * deviations_K[0])
        # The variance is one on average, so that learning rates mean the same for all backbones.
        reduction.basis = basis_DK / (deviations_K * deviations_K.mean()).sqrt()
        changes_FK = reduction.of_frames(features_NTD)[is_frame_NT].chunk(2, -1)[1]
        reduction.usual_change = changes_FK.mean(0)
        # Half as large as components on average: where clips are few, what changes say of others is mostly chance.
        reduction.change_scale = 2 * (changes_FK - reduction.usual_change).std(correction=0).clamp(min=1e-6)
        return reduction

    @property
    def shape(self) -> tuple[int, int]:
        """The shape [P,2K] of a clip's pyramid."""
        return 2**self.levels - 1, 2 * self.basis.shape[1]

    def of_frames(self, features_NTD: torch.Tensor) -> torch.Tensor:
        """Returns float32 [N,T,2K]: the components, and the sizes of their changes since the frame before."""
        components_NTK = (self.norm(features_NTD.float()) - self.centre) @ self.basis
        changes_NTK = components_NTK.diff(dim=1, prepend=components_NTK[:, :1]).abs()
        return torch.cat([components_NTK, (changes_NTK - self.usual_change) / self.change_scale], 2)

    def forward(self, features_NTD: torch.Tensor, lengths_N: torch.Tensor) -> torch.Tensor:
        """Returns float32 [N,P,2K], the averages of P = 2^levels - 1 parts of each clip, from the whole to the finest;
        frames from `lengths_N` on are padding."""
        frames_NTK = self.of_frames(features_NTD)
        return torch.cat([segment_means(frames_NTK, lengths_N, 2**level) for level in range(self.levels)], 1)


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
