"""The device to compute on."""

import torch

from pipeline.base.errors import ConfigError, first_line


def resolve_device(name: str) -> torch.device:
    """Return the device; 'auto' is the GPU if there is one, else the CPU.

    Raises:
        ConfigError: the device does not exist here, or PyTorch cannot use it.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.ones(1, device=name)  # Fails on GPUs that are too old for this PyTorch.
        device = torch.device(name)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device {name!r} cannot be used here: {first_line(error)}; try --device cpu") from None
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device {name!r} cannot be used here: neither the CPU nor a CUDA GPU; try --device cpu")
    return device
