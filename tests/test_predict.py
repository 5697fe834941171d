"""Predictions of a bundle on video files."""

import csv
import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from pipeline.base.errors import ConfigError
from pipeline.predict import Predictor
from pipeline.video.workers import Failure


def test_predictions_have_the_logits_of_evaluation(small_set, trained, tmp_path):
    """From a copy of the bundle alone, elsewhere, without store and lists."""
    with (trained / "predictions.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    for name in ("config.yaml", "classes.txt", "backbone.safetensors", "model.safetensors"):
        shutil.copyfile(trained / name, tmp_path / name)
    videos = {small_set / "videos" / row["clip"]: row for row in rows}
    missing = small_set / "missing.mp4"
    asked = [*list(videos)[:9], missing, *list(videos)[9:], missing]
    predictor = Predictor(tmp_path)
    outcomes = list(predictor(asked))
    assert [path for path, _ in outcomes] == asked[:-1] and len(rows) == 16
    assert isinstance(outcomes.pop(9)[1], Failure)
    for path, prediction in outcomes:
        assert prediction.frames == prediction.planned == 6
        np.testing.assert_allclose(prediction.logits.numpy(), json.loads(videos[path]["logits"]), atol=1e-3)
        best = predictor.best(prediction, 3)
        assert best[0]["label"] == videos[path]["predicted"] and len(best) == 3
        assert best[0]["probability"] == pytest.approx(float(videos[path]["probability"]), abs=1e-3)


def test_one_predictor_in_several_threads(small_set, trained):
    predictor = Predictor(trained)
    videos = sorted((small_set / "videos").glob("*/*g01*"))[:4]
    alone = [prediction.logits for _, prediction in predictor(videos)]
    with ThreadPoolExecutor(3) as threads:
        for outcomes in threads.map(lambda _: list(predictor(videos)), range(3)):
            assert [path for path, _ in outcomes] == videos
            torch.testing.assert_close([prediction.logits for _, prediction in outcomes], alone)


@pytest.mark.parametrize("name", ["sampling.frames", "head.hidden", "backbone.view", "train.seed"])
def test_settings_of_the_run_are_fixed(trained, name):
    with pytest.raises(ConfigError, match=name) as error:
        Predictor(trained, {name: 3})
    assert "\n" not in str(error.value)
    Predictor(trained, {"device": "cpu", "decode.workers": 1})
