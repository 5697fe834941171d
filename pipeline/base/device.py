"""Where to compute, and how a GPU is told to."""

import gc
from collections.abc import Callable
from typing import Any

import torch

from pipeline.base.errors import ConfigError, first_line


def resolve_device(name: str) -> torch.device:
    """Turns 'auto' into the GPU if there is one, else the CPU.

    Raises:
        ConfigError: the device does not exist here, or PyTorch cannot use it.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.ones(1, device=name)  # A kernel, for PyTorch has none for GPUs that are too old.
        device = torch.device(name)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device {name!r} cannot be used here: {first_line(error)}; try --device cpu") from None
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device {name!r} cannot be used here: neither the CPU nor a CUDA GPU; try --device cpu")
    return device


def as_cuda_graph(function: Callable, *example: torch.Tensor) -> Callable[..., Any]:
    """Records the kernels that a function of tensors launches on a GPU, to launch them as one from then on.

    Hundreds of small kernels keep the processor busier than the GPU.

    Args:
        function: a module, which is changed; or a function, if the caller keeps alive, and changes only in place, all
            else that it reads.
        example: arguments of the shapes that all others will have, on the GPU.

    Returns:
        The function for other arguments, from the CPU too; its results lie in the same memory each time.
    """
    gc.collect()  # Earlier recordings give their memory back; amid this one they would spoil it.
    with torch.cuda.device(example[0].device):
        return torch.cuda.make_graphed_callables(function, example)
