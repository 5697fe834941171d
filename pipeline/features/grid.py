"""The view `grid`: beside the pooled last layer the last stages on a spatial grid, which keep location at no cost."""

import numpy as np
import torch
from torch import nn
from torch.nn.functional import adaptive_avg_pool2d, conv2d

from pipeline.base.errors import ConfigError

STAGES, CELLS, SIZE = 3, 4, 4
"""Number of stages, cells of the grid in each direction, and width of the view in multiples of the pooled layer, which
is included. A change needs a new `FORMAT` of the store."""


class Grid(nn.Module):
    """A timm model's pooled layer and its last stages averaged over the cells of a grid, [N,4D].

    Each part is scaled to a mean square of one per frame. A random projection (Johnson-Lindenstrauss) limits the width.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        if len(getattr(model, "feature_info", ())) < STAGES or not hasattr(model, "forward_intermediates"):
            raise ConfigError("backbone.view: this model does not return its stages; use pooled")
        channels = sum(stage["num_chs"] for stage in model.feature_info[-STAGES:])
        kept = (SIZE - 1) * model.head_hidden_size // CELLS**2
        # RandomState: its numbers are the same in every version of NumPy.
        projection = np.random.RandomState(0).standard_normal((kept, channels)) / channels**0.5
        self.register_buffer("projection", torch.from_numpy(projection).float()[..., None, None])

    def forward(self, pictures_N3HW: torch.Tensor) -> torch.Tensor:
        last, stages = self.model.forward_intermediates(pictures_N3HW, indices=STAGES)
        pooled_ND = self.model.forward_head(last, pre_logits=True)
        cells = torch.cat([_scaled(adaptive_avg_pool2d(stage, CELLS)) for stage in stages], 1)
        return torch.cat([_scaled(pooled_ND), conv2d(cells, self.projection).flatten(1)], 1)


def _scaled(values: torch.Tensor) -> torch.Tensor:
    return values / (values.square().mean(tuple(range(1, values.ndim)), keepdim=True) + 1e-6).sqrt()
