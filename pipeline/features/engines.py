"""Inference backends for the frozen CNN: PyTorch and OpenVINO, in fp32, bf16 or fp16.

GPU: PyTorch in fp16. CPU: OpenVINO if it is installed, in bf16 if the processor has instructions for it, else in fp32;
without OpenVINO frozen PyTorch in fp32, whose bf16 is less exact (it does not fold batch norms) and hardly faster.
"""

import copy
import importlib.util
import queue
import sys
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType

import joblib
import numpy as np
import torch
from torch import nn

from pipeline.base.errors import ConfigError, first_line
from pipeline.config import BackboneConfig

Run = Callable[[np.ndarray], np.ndarray]
"""uint8 [N,3,H,W] -> float32 or float16 [N,D], for any N."""


def choose(config: BackboneConfig, device: torch.device) -> tuple[str, str]:
    """Return the engine and the precision for a device.

    Raises:
        ConfigError: the requested engine or precision is not available on this device.
    """
    engine, precision = config.engine, config.precision
    if engine == "auto":
        engine = "openvino" if device.type == "cpu" and importlib.util.find_spec("openvino") else "torch"
    elif engine == "openvino" and device.type != "cpu":
        raise ConfigError("backbone.engine: openvino runs on the CPU only; use --device cpu or --backbone.engine torch")
    if precision == "auto":
        precision = "fp16" if device.type != "cpu" else "bf16" if engine == "openvino" and has_bf16() else "fp32"
    elif precision == "fp16" and device.type == "cpu":
        raise ConfigError("backbone.precision: fp16 is for GPUs; use auto, fp32 or bf16 on a CPU")
    elif precision == "bf16" and device.type == "cpu" and engine == "torch":
        raise ConfigError("backbone.precision: bf16 on a CPU needs openvino; use auto or fp32 with torch")
    return engine, precision


def has_bf16() -> bool:
    """Whether the processor has bf16 instructions. Emulated bf16 is ten times slower than fp32."""
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def batch_size(device: torch.device) -> int:
    """Return the number of frames to collect before a call."""
    return 32 * joblib.cpu_count() if device.type == "cpu" else 512


def start(network: nn.Module, device: torch.device, engine: str, precision: str, shape: tuple[int, ...]) -> Run:
    """Prepare a network for inference.

    Args:
        network: uint8 [N,3,H,W] -> float32 [N,D].
        device: where it runs.
        engine: torch or openvino.
        precision: fp32, bf16 or fp16.
        shape: 3, H, W.

    Raises:
        ConfigError: the engine is not installed or cannot run this network.
    """
    network = copy.deepcopy(network).to(device).eval()
    try:
        if device.type == "cuda":
            return _start_cuda(network, precision)
        # Small batches in parallel, one per core, are faster on a CPU than one batch over all cores.
        blank = torch.zeros((2, *shape), dtype=torch.uint8)
        return _start_openvino(network, precision, blank) if engine == "openvino" else _start_torch_cpu(network, blank)
    except (ConfigError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # Both tracers and OpenVINO have error types of their own.
        remedy = "--backbone.engine torch" if engine == "openvino" else "another model"
        raise ConfigError(
            f"backbone.model: {engine} {precision} cannot run this model ({first_line(error)}); use {remedy}"
        ) from None


def _start_cuda(network: nn.Module, precision: str) -> Run:
    network = network.to(memory_format=torch.channels_last)
    device = next(network.parameters()).device

    @torch.inference_mode()
    def run(frames_N3HW: np.ndarray) -> np.ndarray:
        # PyTorch's default for convolutions, TF32, is not fp32.
        exact = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
        half = torch.autocast("cuda", torch.bfloat16 if precision == "bf16" else torch.float16)
        with exact if precision == "fp32" else half:
            features = [network(_channels_last(batch.to(device))).half() for batch in _batches(frames_N3HW, 128)]
            return torch.cat(features)[: len(frames_N3HW)].cpu().numpy()

    return run


def _start_torch_cpu(network: nn.Module, blank: torch.Tensor) -> Run:
    network = network.to(memory_format=torch.channels_last)
    # Freezing folds batch norms into convolutions: twice as fast as eager, without the C++ compiler that torch.compile
    # needs. torch.jit is deprecated, but PyTorch has no replacement for this.
    with torch.no_grad(), warnings.catch_warnings(action="ignore"):
        frozen = torch.jit.freeze(torch.jit.trace(network, _channels_last(blank), check_trace=False))

    @torch.inference_mode()
    def run_batch(batch: torch.Tensor) -> np.ndarray:
        return frozen(_channels_last(batch)).numpy()

    # One thread per core calls the network, so each needs one OpenMP thread.
    threads = ThreadPoolExecutor(joblib.cpu_count(), initializer=torch.set_num_threads, initargs=(1,))
    return _in_parallel(run_batch, len(blank), threads)


def _start_openvino(network: nn.Module, precision: str, blank: torch.Tensor) -> Run:
    openvino = _import_openvino()
    with torch.no_grad(), warnings.catch_warnings(action="ignore"):
        # OpenVINO makes a faster graph from torch.jit, which is deprecated, than from torch.export.
        traced = torch.jit.trace(network, blank, check_trace=False)
        graph = openvino.convert_model(traced, example_input=blank)
    graph.reshape(list(blank.shape))
    hint = {"fp32": "f32", "bf16": "bf16"}[precision]
    options = {"INFERENCE_PRECISION_HINT": hint, "PERFORMANCE_HINT": "THROUGHPUT"}
    compiled = openvino.compile_model(graph, "CPU", options)
    threads = compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")
    idle: queue.SimpleQueue = queue.SimpleQueue()
    for _ in range(threads):
        idle.put(compiled.create_infer_request())

    def run_batch(batch: torch.Tensor) -> np.ndarray:
        request = idle.get()
        features = request.infer([batch.numpy()], share_inputs=True)[0]
        idle.put(request)
        return features

    return _in_parallel(run_batch, len(blank), ThreadPoolExecutor(threads))


def _import_openvino() -> ModuleType:
    if not importlib.util.find_spec("openvino"):
        raise ConfigError("backbone.engine: openvino is not installed: pip install 'kinema[openvino]'")
    # Without this package OpenVINO sends no usage statistics.
    sys.modules.setdefault("openvino_telemetry", None)
    import openvino

    return openvino


def _in_parallel(run_batch: Callable[[torch.Tensor], np.ndarray], size: int, threads: ThreadPoolExecutor) -> Run:
    def run(frames_N3HW: np.ndarray) -> np.ndarray:
        return np.concatenate(list(threads.map(run_batch, _batches(frames_N3HW, size))))[: len(frames_N3HW)]

    return run


def _batches(frames_N3HW: np.ndarray, size: int) -> Iterator[torch.Tensor]:
    """Cut frames into batches of one size, the last padded with zeros, so that a frame's features do not depend on how
    many others came with it."""
    for first in range(0, len(frames_N3HW), size):
        batch = torch.from_numpy(frames_N3HW[first : first + size])
        yield batch if len(batch) == size else nn.functional.pad(batch, (0, 0, 0, 0, 0, 0, 0, size - len(batch)))


def _channels_last(frames_N3HW: torch.Tensor) -> torch.Tensor:
    return frames_N3HW.contiguous(memory_format=torch.channels_last)
