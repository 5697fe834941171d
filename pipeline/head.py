"""The classifier on top of the cached features."""

import math

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from pipeline.config import HeadConfig

torch.backends.mha.set_fastpath_enabled(False)  # It cannot run many Transformers side by side.


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
