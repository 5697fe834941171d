"""The device to compute on."""

import torch

from pipeline.base.errors import ConfigError, first_line


def resolve_device(name: str) -> torch.device:
    """Return the device after a test on it; 'auto' is the GPU if there is one, else the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.ones(1, device=name).device  # Fails on GPUs that are too old for this PyTorch.
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device {name!r} cannot be used here: {first_line(error)}; try --device cpu") from None
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device {name!r} is neither the CPU nor a CUDA GPU; try --device cpu")
    return device
