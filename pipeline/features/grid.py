"""What is kept of the frozen CNN for each frame: the view `grid`.

The last pooled layer, which is all that the view `pooled` keeps, has forgotten where things are. The stages before it
still know, and are computed anyway.
"""

import numpy as np
import torch
from torch import nn
from torch.nn.functional import adaptive_avg_pool2d, conv2d

from pipeline.base.errors import ConfigError

STAGES, CELLS = 3, 4
"""The last stages that the grid is made of, and its cells in each direction."""
SIZE = 4
"""Width of the grid view in multiples of the pooled layer, which it includes. Whoever changes one of these three
changes `FORMAT` of the store too, for features must not mix."""


class Grid(nn.Module):
    """The last pooled layer, and beside it the last stages, averaged over the cells of a grid, [N,4D].

    Each part is scaled to the same mean square, and a fixed random projection of each cell (Johnson and Lindenstrauss)
    keeps the size in proportion.
    """

    def __init__(self, model: nn.Module):
        """Wraps a timm model.

        Raises:
            ConfigError: it does not give its stages.
        """
        super().__init__()
        self.model = model
        if len(getattr(model, "feature_info", ())) < STAGES or not hasattr(model, "forward_intermediates"):
            raise ConfigError("backbone.view: this model has no stages to make a grid of; use pooled")
        channels = sum(stage["num_chs"] for stage in model.feature_info[-STAGES:])
        kept = (SIZE - 1) * model.head_hidden_size // CELLS**2
        # RandomState, since its numbers will never change.
        projection = np.random.RandomState(0).standard_normal((kept, channels)) / channels**0.5
        self.register_buffer("projection", torch.from_numpy(projection).float()[..., None, None])

    def forward(self, pictures_N3HW: torch.Tensor) -> torch.Tensor:
        last, stages = self.model.forward_intermediates(pictures_N3HW, indices=STAGES)
        pooled_ND = self.model.forward_head(last, pre_logits=True)
        cells = torch.cat([_even(adaptive_avg_pool2d(stage, CELLS)) for stage in stages], 1)
        return torch.cat([_even(pooled_ND), conv2d(cells, self.projection).flatten(1)], 1)


def _even(values: torch.Tensor) -> torch.Tensor:
    """Scales each frame's values to a mean square of one."""
    return values / (values.square().mean(tuple(range(1, values.ndim)), keepdim=True) + 1e-6).sqrt()
