"""Extraction and training as a user runs them: in processes of their own, which can be killed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pipeline.base.settings import build
from pipeline.config import Config
from pipeline.features.store import FeatureStore
from pipeline.runs.bundle import Bundle

from conftest import REPOSITORY, kinema


def start(*arguments):
    command = [sys.executable, "-m", "pipeline.cli", *map(str, arguments)]
    return subprocess.Popen(
        command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True
    )


def kill_when(process, condition, patience=120):
    """Kill the process and all its children as soon as `condition` holds."""
    deadline = time.monotonic() + patience
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline, "ended or hangs"
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def same_model(a: Path, b: Path):
    one, other = load_file(a / "model.safetensors"), load_file(b / "model.safetensors")
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_extraction_counts_and_resumes(small_set, settings_of_small_set, extracted):
    assert "48 done, 0 skipped, 0 failed" in extracted
    again, _ = kinema("extract", *settings_of_small_set)
    assert "0 done, 48 skipped, 0 failed" in again


def test_training_is_deterministic_and_survives_a_kill(settings_of_small_set, trained, tmp_path):
    settings = [*settings_of_small_set, "--train.epochs", 12, "--runs", tmp_path]
    killed = tmp_path / "small"
    kill_when(start("train", *settings, "--run", "small"), (killed / "clips.csv").exists)
    assert not (killed / "model.safetensors").exists()
    kinema("train", *settings, "--run", "small")
    assert same_model(killed, trained)
    one, other = (json.loads((run / "history.json").read_text()) for run in (killed, trained))
    for stage in ("bilstm", "bilstm-refit"):
        losses = [record["loss"] for record in one[stage]]
        assert losses == [record["loss"] for record in other[stage]] and len(losses) == 12
    kinema("train", *settings, "--run", "other", "--train.seed", 1)
    assert not same_model(tmp_path / "other", trained)


def test_refit_trains_on_train_and_val(small_set, settings_of_small_set, trained, tmp_path):
    bundle = Bundle(trained)
    history = bundle.history()
    assert "val_loss" in history["bilstm"][-1] and "val_loss" not in history["bilstm-refit"][-1]
    kinema("train", *settings_of_small_set, "--runs", tmp_path, "--train.epochs", 12, "--train.refit", "false")
    config = build(Config, bundle.config_file, {})
    store = FeatureStore.last(config)
    clips = bundle.dataset(config.data.root).clips
    for run, splits in ((trained, ("train", "val")), (tmp_path / "run", ("train",))):
        [reduction, *_] = [model.reduction for model in Bundle(run).load_models(config, torch.device("cpu")).values()]
        features = [store.read(clip).features for clip in clips if clip.split in splits]
        frames = torch.from_numpy(np.concatenate(features)).float()
        torch.testing.assert_close(reduction.mean, reduction.norm(frames).mean(0), rtol=1e-3, atol=1e-5)


def test_a_run_is_never_overwritten(settings_of_small_set, trained):
    before = (trained / "model.safetensors").read_bytes()
    settings = [*settings_of_small_set, "--run", "small"]
    same, _ = kinema("train", *settings, "--train.epochs", 12)
    assert "is already trained" in same
    for name in ("../small", ".."):
        _, error = kinema("train", *settings, "--run", name, code=2)
        assert "a name, not a path" in error
    _, error = kinema("train", *settings, "--train.epochs", 13, code=2)
    assert "train.epochs: 12, now 13" in error and error.count("\n") == 1
    assert (trained / "model.safetensors").read_bytes() == before


def test_missing_features_stop_training(settings_of_small_set, small_set, tmp_path):
    settings = [*settings_of_small_set, "--store", tmp_path]
    for message in ("no features with these settings", "have no valid features"):
        _, error = kinema("train", *settings, "--run", "none", code=1)
        assert message in error and "kinema extract" in error and error.count("\n") == 1
        kinema("extract", *settings, "--shard", "1/48")


@pytest.mark.gpu
def test_training_on_a_gpu_is_deterministic(settings_of_small_set, trained, tmp_path):
    settings = [*settings_of_small_set, "--train.epochs", 6, "--runs", tmp_path, "--device", "cuda"]
    kinema("extract", *settings)
    for run in ("one", "two"):
        kinema("train", *settings, "--run", run)
    assert same_model(tmp_path / "one", tmp_path / "two")
