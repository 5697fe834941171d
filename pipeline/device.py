"""Where to compute."""

import torch

from pipeline.errors import ConfigError, first_line


def resolve_device(name: str) -> torch.device:
    """Turns 'auto' into the GPU if there is one, else the CPU.

    Raises:
        ConfigError: the device does not exist here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=name)
        return torch.device(name)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device {name!r} is not available here: {first_line(error)}") from None
