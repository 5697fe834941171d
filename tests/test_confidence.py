"""Calibration error, the threshold for unknown clips, and what evaluation and prediction make of them."""

import json

import numpy as np
import pytest

from pipeline.inference.predictor import Predictor
from pipeline.runs.bundle import Bundle
from pipeline.runs.confidence import KEPT, calibration_error, rejections, unknown_threshold
from pipeline.runs.report import summary

from conftest import kinema


def logits_of(probabilities):
    """Logits of two classes, of which the first has these probabilities."""
    first = np.array(probabilities)
    return np.log(np.stack([first, 1 - first], 1))


def test_calibration_error_by_hand():
    assert calibration_error(logits_of([0.9, 0.9, 0.6, 0.6]), np.array([0, 1, 0, 0])) == pytest.approx(0.4)
    assert calibration_error(logits_of([0.75] * 4), np.array([0, 0, 0, 1])) == pytest.approx(0)
    assert calibration_error(logits_of([1e-9]), np.array([0])) == pytest.approx(1)


def test_labels_drawn_from_the_probabilities_are_calibrated():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (20_000, 5))
    labels = (logits + rng.gumbel(size=logits.shape)).argmax(1)
    assert calibration_error(logits, labels) < 0.02 < 0.1 < calibration_error(2 * logits, labels)


def test_the_threshold_keeps_right_answers():
    rng = np.random.default_rng(0)
    logits, labels = logits_of(rng.uniform(0.5, 1, 2000)), rng.integers(0, 2, 2000)
    found = rejections(logits, labels, unknown_threshold(logits, labels))
    right = (labels == 0).sum()
    assert found["unknown_but_right"] == pytest.approx((1 - KEPT) * right, abs=1)
    assert found["unknown"] > found["unknown_but_right"]
    assert unknown_threshold(logits, np.ones_like(labels)) == 1


def test_rejections_by_hand():
    logits, labels = logits_of([0.9, 0.8, 0.55, 0.6, 0.7]), np.array([0, 1, 0, 1, 0])
    expected = {"threshold": 0.65, "unknown": 2, "unknown_but_right": 1, "top1_of_known": pytest.approx(2 / 3)}
    assert rejections(logits, labels, 0.65) == expected
    assert rejections(logits, labels, 1)["top1_of_known"] is None


def test_evaluation_and_prediction_use_the_threshold_of_the_run(small_set, trained):
    metrics = json.loads((trained / "metrics.json").read_text(encoding="utf-8"))
    assert 0 < metrics["ece"] != metrics["ece_equal_weights"] > 0
    threshold = float(Bundle(trained).metadata()["unknown_below"])
    assert metrics["unknown"]["threshold"] == threshold < 1
    unknown = metrics["unknown"]
    assert f"calls {unknown['unknown']} of 16 clips unknown" in "\n".join(summary(metrics))

    videos = sorted((small_set / "videos").glob("*/*g0[12]*"))
    lines = kinema("predict", trained, *videos, "--whole", "--unknown", "--json")[0].splitlines()
    answers = [json.loads(line) for line in lines]
    for answer in answers:
        best = answer["top"][0]
        assert answer.get("label") == ("unknown" if best["probability"] < threshold else None)

    predictor = Predictor(trained)
    predictions = [prediction for _, prediction in predictor(videos)]
    predictor.unknown_below = float(np.median([answer["top"][0]["probability"] for answer in answers]))
    assert 0 < sum(map(predictor.is_unknown, predictions)) < len(predictions)
