"""Write a run as one ONNX file: `kinema export data/runs/ucf101 model.onnx`."""

import json
from pathlib import Path
from typing import Any

from pipeline import __version__
from pipeline.base.errors import KinemaError
from pipeline.base.files import atomic_write
from pipeline.base.settings import build
from pipeline.config import OVERRIDABLE, Config
from pipeline.features.extraction import decode_clips
from pipeline.inference.onnx_graph import Network, check, to_onnx
from pipeline.inference.predictor import Predictor
from pipeline.runs.bundle import Bundle
from pipeline.video.workers import Failure

CHECKED = 16
"""Test clips to compare."""


def export(run: Path, file: Path, overrides: dict[str, Any]) -> None:
    """Write a run as an ONNX graph in fp32, after ONNX Runtime and OpenVINO agreed with PyTorch on test clips."""
    fp32 = {"device": "cpu", "backbone.engine": "torch", "backbone.precision": "fp32"}
    predictor, bundle = Predictor(run, fp32), Bundle(run)
    config = build(Config, bundle.config_file, overrides, OVERRIDABLE["export"])
    transform, sampling = predictor.backbone.transform, config.sampling
    metadata = {
        "kinema": __version__,
        "fingerprint": bundle.metadata()["fingerprint"],
        "classes": json.dumps(predictor.classes),
        "sampling": json.dumps({"frames": sampling.frames, "rate": sampling.rate}),
        "resize": json.dumps(transform._asdict()),
    }
    test = [clip for clip in bundle.dataset(config.data.root).of("test") if clip.path.is_file()]
    chosen = test[:: max(len(test) // CHECKED, 1)][:CHECKED]
    outcomes = [outcome for _, outcome in decode_clips(chosen, transform, sampling, config.decode)]
    clips = [outcome.frames.transpose(0, 2, 3, 1) for outcome in outcomes if not isinstance(outcome, Failure)]
    if not clips:
        raise KinemaError(f"{config.data.root}: no test clip of the run to check the graph on; give --data.root")
    network = Network(predictor.backbone.network, predictor.classifier).eval()
    graph = to_onnx(network, transform.crop, metadata)
    print(check(graph, network, clips))
    with atomic_write(file) as temporary:
        temporary.write_bytes(graph)
    height, width = transform.crop
    print(f"Saved {file}: frames uint8 [N,T,{height},{width},3] -> probabilities [N,{len(predictor.classes)}]")
