"""What runs the frozen CNN on this machine: PyTorch or OpenVINO, and in which arithmetic.

What suits one machine is ten times slower on another, so the choice is measured once and remembered. An engine is only
taken unasked if its features agree with those of plain fp32 to a cosine of 0.999.
"""

import copy
import importlib.util
import json
import os
import platform
import queue
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import joblib
import numpy as np
import torch
from PIL import Image
from torch import nn

from pipeline.base.device import as_cuda_graph
from pipeline.base.errors import ConfigError, first_line
from pipeline.base.files import atomic_write
from pipeline.features.bf16 import Halved, split

LEAST_COSINE = 0.999
"""`auto` takes an engine only if the features of each frame that it is tried on reach this cosine to those of fp32."""

Run = Callable[[np.ndarray], np.ndarray]
"""uint8 [N,3,H,W] -> float32 or float16 [N,D], for any N."""


class Choice(NamedTuple):
    """An engine as measured on this machine: frames a second, and the least cosine of its features to fp32."""

    engine: str
    precision: str
    rate: float
    cosine: float


def choose(
    network: nn.Module, device: torch.device, engine: str, precision: str, shape: tuple[int, ...], identity: str
) -> Choice:
    """Finds the fastest engine whose features are right. It measures some seconds at the first time and remembers.

    Args:
        network: uint8 [N,3,H,W] -> float32 [N,D].
        device: where it runs.
        engine: torch, openvino, or auto.
        precision: fp32, bf16, fp16, or auto.
        shape: 3, H, W.
        identity: digest of the network, under which its choice is remembered.

    Raises:
        ConfigError: what was asked for cannot run here.
    """
    on_cpu = device.type == "cpu"
    has_openvino = on_cpu and importlib.util.find_spec("openvino")
    engines = [engine] if engine != "auto" else ["openvino", "torch"] if has_openvino else ["torch"]
    precisions = [precision] if precision != "auto" else ["fp32", *lower_precision(device)]
    machine = f"{platform.node()}, {joblib.cpu_count()} cores" if on_cpu else torch.cuda.get_device_name(device)
    versions = [torch.__version__, *([_openvino().__version__] if "openvino" in engines else [])]
    key = ", ".join([machine, *versions, *engines, *precisions, identity])
    remembered = _remembered()
    if key not in remembered:
        print(f"trying which engine suits this machine, once; {_memory()} remembers it ...", file=sys.stderr)
        frames = _photographs(shape, batch_size(device) // 2)
        expected = start(network, device, "torch", "fp32", shape)(frames).astype(np.float32)
        measured = []
        for candidate in [(name, arithmetic) for name in engines for arithmetic in precisions]:
            try:  # None is kept, since a small GPU has no room for two.
                measured.append(_measure(start(network, device, *candidate, shape), candidate, frames, expected))
            except torch.OutOfMemoryError:  # It may have room the next time, so nothing is to be remembered.
                raise
            except ConfigError as error:
                refusal = error
            except Exception as error:  # Whatever an engine has against this model, another may run it.
                refusal = ConfigError(f"{' '.join(candidate)} cannot run this model: {first_line(error)}")
                if "auto" in (engine, precision):
                    print(refusal, file=sys.stderr)
        if not measured:
            raise refusal
        right = [choice for choice in measured if choice.cosine >= LEAST_COSINE] or measured
        # What another process has found meanwhile stays, so that both go on with the same engine.
        remembered = {key: max(right, key=lambda choice: choice.rate)} | _remembered()
        with suppress(OSError):  # Then it is measured again the next time.
            _memory().parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(_memory()) as temporary:
                temporary.write_text(json.dumps(remembered, indent=1))
    return remembered[key]


def start(network: nn.Module, device: torch.device, engine: str, precision: str, shape: tuple[int, ...]) -> Run:
    """Makes a network ready to run.

    Raises:
        ConfigError: the engine is not installed, or cannot do this here.
    """
    if engine == "openvino" and device.type != "cpu":
        raise ConfigError("backbone.engine: openvino runs on the CPU only; use --device cpu or --backbone.engine torch")
    if precision == "fp16" and device.type == "cpu":
        raise ConfigError("backbone.precision: fp16 is for GPUs; use auto, fp32 or bf16 on a CPU")
    # Processors are at their best with many small batches side by side, one per core. With one over all cores PyTorch
    # is a third slower once a thread beside the main one calls it, as the pipeline does.
    size = 2 if device.type == "cpu" else 128
    blank = torch.zeros((size, *shape), dtype=torch.uint8, device=device)
    network = copy.deepcopy(network).to(device)  # Before it is cut: a part runs only where it was cut.
    parts = split(network, blank) if precision == "bf16" else [network]
    if engine == "openvino":
        return _start_openvino(parts, blank)
    module = Halved(*parts) if precision == "bf16" else parts[0]
    module = module.to(memory_format=torch.channels_last).eval()
    return _start_torch_cpu(module, blank) if device.type == "cpu" else _start_cuda(module, blank, precision)


def lower_precision(device: torch.device) -> list[str]:
    """Returns the arithmetic that may be faster than fp32 on this device, if any."""
    if device.type != "cpu":
        return ["fp16"]
    # Without instructions for it, bf16 is emulated, ten times slower than fp32: trying it would take a minute.
    has = torch.cpu.get_capabilities()
    return ["bf16"] if has.get("avx512_bf16") or has.get("amx_bf16") or has.get("bf16") else []


def batch_size(device: torch.device) -> int:
    """Returns how many frames are worth waiting for before a call."""
    return 32 * joblib.cpu_count() if device.type == "cpu" else 512


def _start_torch_cpu(module: nn.Module, blank: torch.Tensor) -> Run:
    # Frozen, batch norms vanish into convolutions: twice as fast as eager, without the C++ compiler that torch.compile
    # needs. torch.jit is deprecated, but nothing else in PyTorch does this.
    with torch.no_grad(), warnings.catch_warnings(action="ignore"):
        frozen = torch.jit.freeze(torch.jit.trace(module, _channels_last(blank), check_trace=False))

    @torch.inference_mode()
    def run_batch(batch: torch.Tensor) -> np.ndarray:
        return frozen(_channels_last(batch)).numpy()

    one_each = ThreadPoolExecutor(joblib.cpu_count(), initializer=torch.set_num_threads, initargs=(1,))
    return _side_by_side(run_batch, len(blank), one_each)


def _start_cuda(module: nn.Module, blank: torch.Tensor, precision: str) -> Run:
    torch.backends.cudnn.allow_tf32 = False  # Else fp32 would not be what it says, the measure of all else.
    half = torch.autocast("cuda", torch.float16, enabled=precision == "fp16", cache_enabled=False)
    try:
        with torch.no_grad(), half:
            module = as_cuda_graph(module, _channels_last(blank))
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # It computes on the processor too, or waits for a result.
        raise ConfigError(f"backbone.model: cannot run on this GPU: {first_line(error)}; use --device cpu") from None

    @torch.inference_mode()
    def run(frames_N3HW: np.ndarray) -> np.ndarray:
        features = [module(batch).to(torch.float16, copy=True) for batch in _batches(frames_N3HW, len(blank))]
        return torch.cat(features)[: len(frames_N3HW)].cpu().numpy()

    return run


def _start_openvino(parts: list[nn.Module], blank: torch.Tensor) -> Run:
    openvino = _openvino()
    compiled = []
    examples: tuple[torch.Tensor, ...] = (blank,)
    for part, hint in zip(parts, ("f32", "bf16"), strict=False):
        with torch.no_grad(), warnings.catch_warnings(action="ignore"):
            # OpenVINO makes a faster graph from torch.jit, which is deprecated, than from torch.export.
            traced = torch.jit.trace(part, examples, check_trace=False)
            graph = openvino.convert_model(traced, example_input=examples)
            graph.reshape({given: list(example.shape) for given, example in zip(graph.inputs, examples, strict=True)})
            examples = part(*examples)
        options = {"INFERENCE_PRECISION_HINT": hint, "PERFORMANCE_HINT": "THROUGHPUT"}
        compiled.append(openvino.compile_model(graph, "CPU", options))
    threads = compiled[0].get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")
    idle: queue.SimpleQueue = queue.SimpleQueue()
    for _ in range(threads):
        idle.put([part.create_infer_request() for part in compiled])

    def run_batch(batch: torch.Tensor) -> np.ndarray:
        requests, values = idle.get(), [batch.numpy()]
        for request in requests:
            values = list(request.infer(values, share_inputs=True, share_outputs=True).values())
        features = values[0].copy()
        idle.put(requests)
        return features

    return _side_by_side(run_batch, len(blank), ThreadPoolExecutor(threads))


def _side_by_side(run_batch: Callable[[torch.Tensor], np.ndarray], size: int, threads: ThreadPoolExecutor) -> Run:
    def run(frames_N3HW: np.ndarray) -> np.ndarray:
        return np.concatenate(list(threads.map(run_batch, _batches(frames_N3HW, size))))[: len(frames_N3HW)]

    return run


def _openvino() -> ModuleType:
    if not importlib.util.find_spec("openvino"):
        raise ConfigError("backbone.engine: openvino is not installed: pip install 'kinema[openvino]'")
    # It would send statistics of use to its maker, from child processes; without that package it does not.
    sys.modules.setdefault("openvino_telemetry", None)
    import openvino

    return openvino


def _batches(frames_N3HW: np.ndarray, size: int) -> Iterator[torch.Tensor]:
    """Cuts into batches of one shape, the last filled up with zeros: engines are at their best on a shape that they
    know, and a frame's features do not depend on how many others came with it."""
    for first in range(0, len(frames_N3HW), size):
        batch = torch.from_numpy(frames_N3HW[first : first + size])
        yield batch if len(batch) == size else nn.functional.pad(batch, (0, 0, 0, 0, 0, 0, 0, size - len(batch)))


def _channels_last(frames_N3HW: torch.Tensor) -> torch.Tensor:
    return frames_N3HW.contiguous(memory_format=torch.channels_last)


def _photographs(shape: tuple[int, ...], number: int) -> np.ndarray:
    """Cuts parts of all sizes from the two photographs that scikit-learn brings; uint8 [N,3,H,W]."""
    from sklearn.datasets import load_sample_images

    photographs = load_sample_images().images
    rng = np.random.default_rng(0)
    frames = []
    for index in range(number):
        picture = Image.fromarray(photographs[index % len(photographs)])
        side = int(rng.integers(96, min(picture.size)))
        left, top = (int(rng.integers(0, length - side)) for length in picture.size)
        frames.append(np.asarray(picture.resize(shape[:0:-1], box=(left, top, left + side, top + side))))
    return np.ascontiguousarray(np.stack(frames).transpose(0, 3, 1, 2))


def _measure(run: Run, candidate: tuple[str, str], frames: np.ndarray, expected: np.ndarray) -> Choice:
    features = torch.from_numpy(run(frames).astype(np.float32))
    cosines = nn.functional.cosine_similarity(features, torch.from_numpy(expected))
    taken: list[float] = []
    while sum(taken) < 1:
        began = time.monotonic()
        run(frames)
        taken.append(time.monotonic() - began)
    return Choice(*candidate, len(frames) / min(taken), float(cosines.min()))


def _memory() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kinema" / "engines.json"


def _remembered() -> dict[str, Choice]:
    try:
        return {key: Choice(*values) for key, values in json.loads(_memory().read_text()).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
