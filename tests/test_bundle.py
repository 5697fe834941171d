"""The files of a run: damage and other versions are one-line errors."""

import json
import pickle
import shutil

import pytest
import safetensors
from safetensors.torch import load_file, save_file

from pipeline.runs.bundle import FORMAT

from conftest import kinema


def refused(message, *arguments):
    _, error = kinema(*arguments, code=1)
    assert message in error and error.count("\n") == 1, error


@pytest.fixture
def run(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "run")


def save_with(run, **changes):
    """Write the model again with other metadata; None removes a line."""
    path = run / "model.safetensors"
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = file.metadata() | changes
    save_file(load_file(path), path, {name: value for name, value in metadata.items() if value is not None})


@pytest.mark.parametrize("place", [-1, -100_000])
def test_damaged_weights(run, place):
    content = bytearray((run / "model.safetensors").read_bytes())
    content[place] ^= 1
    (run / "model.safetensors").write_bytes(content)
    for command in (("predict", run, "x.mp4"), ("evaluate", run)):
        refused("model.safetensors: damaged since training", *command)


@pytest.mark.parametrize("version", [None, "9"])
def test_bundles_of_another_version(run, version):
    """The first bundles had no format."""
    save_with(run, format=version)
    for command in (("predict", run, "x.mp4"), ("evaluate", run)):
        refused(f"by another version of Kinema (format {version or 1}, this version reads {FORMAT}); delete", *command)


@pytest.mark.parametrize("changes", [{"fingerprint": None}, {"checksum": None}, {"split": "{"}, {"kinds": "lstm"}])
def test_changed_metadata(run, changes):
    save_with(run, **changes)
    for command in (("predict", run, "x.mp4"), ("evaluate", run)):
        refused("model.safetensors: damaged since training", *command)


def test_damage_to_other_files(run):
    cnn = (run / "backbone.safetensors").read_bytes()
    (run / "backbone.safetensors").unlink()  # It may be a link to that of the store.
    (run / "backbone.safetensors").write_bytes(cnn[:-1] + bytes([cnn[-1] ^ 1]))
    refused("backbone.safetensors: missing, or changed since training", "predict", run, "x.mp4")
    (run / "backbone.safetensors").write_bytes(cnn)
    (run / "classes.txt").write_text("one class\n")
    refused("does not fit config.yaml and classes.txt", "predict", run, "x.mp4")
    (run / "model.safetensors").write_bytes(pickle.dumps({"a": 1}))
    refused("model.safetensors: damaged", "predict", run, "x.mp4")
    (run / "model.safetensors").unlink()
    refused("model.safetensors is missing", "predict", run, "x.mp4")
    refused("model.safetensors is missing", "evaluate", run)


def test_histories_may_be_damaged_or_have_other_keys(run):
    content = (run / "history.json").read_text()
    (run / "history.json").write_text(content[:-9])
    refused("history.json: damaged", "evaluate", run)
    history = json.loads(content)
    del history["bilstm"][0]["val_loss"]
    (run / "history.json").write_text(json.dumps(history | {"another": [{"epoch": 1}]}))
    kinema("evaluate", run)
