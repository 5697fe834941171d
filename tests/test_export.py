"""The ONNX file of a run, in ONNX Runtime and OpenVINO, and the program of docs/onnx.md that runs it."""

import csv
import json
import re
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from pipeline.base.errors import KinemaError
from pipeline.inference.onnx_graph import Network, check, largest_differences
from pipeline.inference.predictor import Predictor
from pipeline.runs.bundle import Bundle

from conftest import REPOSITORY, kinema

PROGRAM = re.search(r"```python\n(.*?)```", (REPOSITORY / "docs" / "onnx.md").read_text(), re.DOTALL)[1]
WITHOUT_TORCH = "import sys; sys.modules.update(dict.fromkeys(['torch', 'pipeline', 'PIL', 'decord', 'cv2']))\n"


@pytest.fixture
def network(trained):
    predictor = Predictor(trained, {"device": "cpu", "backbone.engine": "torch", "backbone.precision": "fp32"})
    return Network(predictor.backbone.network, predictor.classifier).eval()


@pytest.fixture(scope="module")
def exported(trained, small_set, tmp_path_factory):
    file = tmp_path_factory.mktemp("export") / "model.onnx"
    out, _ = kinema("export", trained, file)
    assert "16 test clips" in out and "uint8 [N,T,224,224,3] -> probabilities [N,8]" in out
    return file


def test_the_file_says_how_to_use_it(trained, exported):
    model = onnx.load(exported)
    about = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(about["classes"]) == Bundle(trained).classes
    assert json.loads(about["sampling"]) == {"frames": 6, "rate": None}
    assert json.loads(about["resize"]) == {"size": [224, 224], "crop": [224, 224], "mode": "bicubic"}
    assert about["fingerprint"] == Bundle(trained).metadata()["fingerprint"]
    [frames], [probabilities] = model.graph.input, model.graph.output
    shape = [size.dim_param or size.dim_value for size in frames.type.tensor_type.shape.dim]
    assert (frames.name, shape) == ("frames", ["N", "T", 224, 224, 3])
    assert probabilities.name == "probabilities"
    assert [node.op_type for node in model.graph.node].count("LSTM") == 2  # Layers, each in both directions.
    assert str(REPOSITORY).encode() not in exported.read_bytes()


def test_the_program_without_torch_gives_the_answers_of_predict(trained, small_set, exported, tmp_path):
    with (trained / "predictions.csv").open(encoding="utf-8", newline="") as stream:
        videos = [small_set / "videos" / row["clip"] for row in csv.DictReader(stream)]
    command = [sys.executable, "-c", WITHOUT_TORCH + PROGRAM, exported, *videos]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    answers = [line.rsplit(maxsplit=2) for line in done.stdout.splitlines()]
    assert [path for path, _, _ in answers] == [str(video) for video in videos]
    predictor = Predictor(trained, {"backbone.precision": "fp32"})
    for (_, prediction), (_, label, probability) in zip(predictor(videos), answers, strict=True):
        [best] = predictor.best(prediction, 1)
        assert best["label"] == label and best["probability"] == pytest.approx(float(probability), abs=0.005)


def test_the_graph_takes_any_number_of_clips_and_frames(exported, network):
    rng = np.random.default_rng(0)
    session = onnxruntime.InferenceSession(exported)
    for shape in ((2, 1), (1, 2), (3, 9)):
        frames = rng.integers(0, 256, (*shape, 224, 224, 3), np.uint8)
        [found] = session.run(None, {"frames": frames})
        with torch.inference_mode():
            np.testing.assert_allclose(found, network(torch.from_numpy(frames)).numpy(), atol=1e-5)


def test_a_graph_that_differs_is_refused(exported, network):
    graph, clips = exported.read_bytes(), [np.full((3, 224, 224, 3), 99, np.uint8)]
    largest = largest_differences(graph, network, clips)
    assert [*largest] == ["ONNX Runtime", "OpenVINO"] and max(largest.values()) < 1e-5
    assert "1 test clips" in check(graph, network, clips)
    network.classifier.head.weights *= 1.1
    with pytest.raises(KinemaError, match="ONNX Runtime"):
        check(graph, network, clips)


def test_test_clips_are_needed(trained, tmp_path):
    _, error = kinema("export", trained, tmp_path / "model.onnx", "--data.root", tmp_path, code=1)
    assert "no test clip" in error and "--data.root" in error and not list(tmp_path.iterdir())
