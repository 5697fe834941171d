"""A run as one ONNX graph: frames uint8 [N,T,H,W,3] -> probabilities float32 [N,C]."""

import logging
import sys
import warnings

import numpy as np
import torch
from torch import nn

from pipeline.base.errors import ConfigError, KinemaError
from pipeline.models.classifier import Classifier

try:
    import onnxruntime
    import onnxscript

    sys.modules.setdefault("openvino_telemetry", None)  # Without this package OpenVINO sends no usage statistics.
    import openvino
except ImportError as error:
    raise ConfigError(f"kinema export needs {error.name}; pip install 'kinema[export]'") from None


TOLERANCE = 1e-4
"""Largest difference of a probability to PyTorch."""


class Network(nn.Module):
    """CNN and classifier of a run. Features stay in float32, while those of a store are rounded to float16."""

    def __init__(self, cnn: nn.Module, classifier: Classifier):
        super().__init__()
        self.cnn, self.classifier = cnn, classifier

    def forward(self, frames_NTHW3: torch.Tensor) -> torch.Tensor:
        clips, steps = frames_NTHW3.shape[:2]
        features_FD = self.cnn(frames_NTHW3.flatten(0, 1).permute(0, 3, 1, 2))
        return self.classifier(features_FD.unflatten(0, (clips, steps)), torch.full((clips,), steps)).softmax(1)


def to_onnx(network: Network, size: tuple[int, int], metadata: dict[str, str]) -> bytes:
    """Return the graph for frames of `size`, any number of clips, and any number of frames, the same in all clips."""
    example = torch.zeros((2, 3, *size, 3), dtype=torch.uint8)
    names = {"input_names": ["frames"], "output_names": ["probabilities"], "dynamic_shapes": ({0: "N", 1: "T"},)}
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"):
            program = torch.onnx.export(network, (example,), dynamo=True, verbose=False, **names)
    finally:
        log.setLevel(level)
    # Each node has the lines of the source on this machine.
    onnxscript.ir.passes.common.ClearMetadataAndDocStringPass()(program.model)
    program.model.metadata_props.update(metadata)
    return program.model_proto.SerializeToString()


def check(graph: bytes, network: Network, clips: list[np.ndarray]) -> str:
    """Return the `largest_differences` in words; raise a KinemaError if one is above `TOLERANCE`."""
    differences = largest_differences(graph, network, clips)
    shown = ", ".join(f"{difference:.1e} ({name})" for name, difference in differences.items())
    message = f"Largest difference of a probability to PyTorch on {len(clips)} test clips: {shown}"
    if max(differences.values()) > TOLERANCE:
        raise KinemaError(f"{message}; at most {TOLERANCE:g} is allowed, so nothing was written")
    return message


def largest_differences(graph: bytes, network: Network, clips: list[np.ndarray]) -> dict[str, float]:
    """Run a graph on clips uint8 [T,H,W,3]; return the largest difference of a probability to PyTorch, by engine."""
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    model = openvino.Core().read_model(graph)
    compiled = openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    engines = {
        "ONNX Runtime": lambda frames: session.run(None, {"frames": frames})[0],
        "OpenVINO": lambda frames: compiled(frames)[0],
    }
    largest = dict.fromkeys(engines, 0.0)
    for frames_THW3 in clips:
        frames_1THW3 = np.ascontiguousarray(frames_THW3)[None]
        with torch.inference_mode():
            expected_1C = network(torch.from_numpy(frames_1THW3)).numpy()
        for name, run in engines.items():
            largest[name] = max(largest[name], float(np.abs(run(frames_1THW3) - expected_1C).max()))
    return largest
