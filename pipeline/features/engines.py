"""Inference backends for the frozen CNN: PyTorch and OpenVINO, in fp32, bf16 or fp16.

GPU: PyTorch in fp16. CPU: OpenVINO if it is installed, in bf16 if the processor has instructions for it, else in fp32.
Without OpenVINO: frozen PyTorch in fp32. Its bf16 is less exact (it does not fold batch norms) and hardly faster."""

import importlib.util
import sys
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import joblib
import numpy as np
import torch
from torch import nn

from pipeline.base.errors import ConfigError, first_line
from pipeline.config import BackboneConfig

Run = Callable[[np.ndarray], np.ndarray]  # uint8 [N,3,H,W] -> float32 or float16 [N,D], for any N.


def choose(config: BackboneConfig, device: torch.device) -> tuple[str, str]:
    engine, precision, on_cpu = config.engine, config.precision, device.type == "cpu"
    installed = importlib.util.find_spec("openvino") is not None
    if engine == "auto":
        engine = "openvino" if on_cpu and installed else "torch"
    if precision == "auto":
        # Emulated bf16 is ten times slower than fp32.
        has = torch.cpu.get_capabilities()
        bf16 = engine == "openvino" and any(has.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
        precision = "fp16" if not on_cpu else "bf16" if bf16 else "fp32"
    if engine == "openvino" and not on_cpu:
        raise ConfigError("backbone.engine: openvino runs on the CPU only; use --device cpu or --backbone.engine torch")
    if engine == "openvino" and not installed:
        raise ConfigError("backbone.engine: openvino is not installed; pip install openvino")
    if on_cpu and precision not in ("fp32", "bf16" if engine == "openvino" else "fp32"):
        raise ConfigError(f"backbone.precision: {engine} has no {precision} on a CPU; use auto or fp32")
    return engine, precision


def start(network: nn.Module, device: torch.device, shape: tuple[int, ...], engine: str, precision: str) -> Run:
    """Prepare a network, uint8 [N,3,H,W] -> float32 [N,D], for inference; `shape` is 3, H, W."""
    network = network.to(device)
    # Small batches in parallel, one per core, are faster on a CPU than one batch over all cores.
    size = 2 if device.type == "cpu" else 128
    blank = torch.zeros((size, *shape), dtype=torch.uint8)
    try:
        if engine == "openvino":
            run_batch, threads = _openvino(network, precision, blank)
        else:
            network = network.to(memory_format=torch.channels_last)
            run_batch, threads = _torch_cpu(network, blank) if device.type == "cpu" else _cuda(network, precision)
    except Exception as error:  # Both tracers and OpenVINO have error types of their own.
        reason = f"{engine} {precision} cannot run this model ({first_line(error)})"
        raise ConfigError(f"backbone.model: {reason}; use another model or --backbone.engine") from None

    def run(frames_N3HW: np.ndarray) -> np.ndarray:
        # The last batch is padded with zeros, so that a frame's features do not depend on how many came with it.
        padding = (0, 0, 0, 0, 0, 0, 0, -len(frames_N3HW) % size)
        batches = nn.functional.pad(torch.from_numpy(frames_N3HW), padding).split(size)
        return np.concatenate(list(threads.map(run_batch, batches)))[: len(frames_N3HW)]

    return run


def _cuda(network: nn.Module, precision: str) -> tuple[Callable, ThreadPoolExecutor]:
    @torch.inference_mode()
    def run_batch(batch: torch.Tensor) -> np.ndarray:
        # PyTorch's default for convolutions, TF32, is not fp32.
        exact = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
        half = torch.autocast("cuda", torch.bfloat16 if precision == "bf16" else torch.float16)
        with exact if precision == "fp32" else half:
            return network(batch.to(network.mean.device)).half().cpu().numpy()

    return run_batch, ThreadPoolExecutor(1)


def _torch_cpu(network: nn.Module, blank: torch.Tensor) -> tuple[Callable, ThreadPoolExecutor]:
    # Freezing folds batch norms into convolutions: twice as fast as eager, without the C++ compiler that torch.compile
    # needs. torch.jit is deprecated, but PyTorch has no replacement for this.
    with torch.no_grad(), warnings.catch_warnings(action="ignore"):
        frozen = torch.jit.freeze(torch.jit.trace(network, blank, check_trace=False))

    @torch.inference_mode()
    def run_batch(batch: torch.Tensor) -> np.ndarray:
        return frozen(batch).numpy()

    # One thread per core calls the network, so each needs one OpenMP thread.
    return run_batch, ThreadPoolExecutor(joblib.cpu_count(), initializer=torch.set_num_threads, initargs=(1,))


def _openvino(network: nn.Module, precision: str, blank: torch.Tensor) -> tuple[Callable, ThreadPoolExecutor]:
    sys.modules.setdefault("openvino_telemetry", None)  # Without this package OpenVINO sends no usage statistics.
    import openvino

    with torch.no_grad(), warnings.catch_warnings(action="ignore"):
        # OpenVINO makes a faster graph from torch.jit, which is deprecated, than from torch.export.
        traced = torch.jit.trace(network, blank, check_trace=False)
        graph = openvino.convert_model(traced, example_input=blank)
    graph.reshape(list(blank.shape))
    options = {"INFERENCE_PRECISION_HINT": precision.replace("fp32", "f32"), "PERFORMANCE_HINT": "THROUGHPUT"}
    compiled = openvino.compile_model(graph, "CPU", options)
    threads = compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")

    def run_batch(batch: torch.Tensor) -> np.ndarray:
        return compiled.create_infer_request().infer([batch.numpy()], share_inputs=True)[0]

    return run_batch, ThreadPoolExecutor(threads)
