"""The files of a run: damage and other versions give one line."""

import json
import pickle
import shutil

import pytest
import safetensors
from safetensors.torch import load_file, save_file

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
    for verb in (("predict", run, "x.mp4"), ("evaluate", run)):
        refused("model.safetensors: damaged since training", *verb)


@pytest.mark.parametrize("changes", [{"format": None}, {"format": "9"}, {"fingerprint": None}, {"checksum": None}])
def test_bundles_of_another_version(run, changes):
    save_with(run, **changes)
    for verb in (("predict", run, "x.mp4"), ("evaluate", run)):
        refused("model.safetensors: of another version of Kinema", *verb)


def test_a_bundle_before_formats_were_counted(run):
    save_file(load_file(run / "model.safetensors"), run / "model.safetensors", {"identity": "x", "split": "1"})
    refused("of another version of Kinema (format 1, this version reads 2); delete", "predict", run, "x.mp4")


@pytest.mark.parametrize("changes", [{"split": "{"}, {"kinds": "lstm"}, {"kinds": ""}])
def test_changed_metadata(run, changes):
    save_with(run, **changes)
    refused("model.safetensors: damaged since training", "evaluate", run)


def test_other_files_of_a_bundle(run):
    cnn = (run / "backbone.safetensors").read_bytes()
    (run / "backbone.safetensors").unlink()  # It may be a link to that of the store.
    (run / "backbone.safetensors").write_bytes(cnn[:-1] + bytes([cnn[-1] ^ 1]))
    refused("not the CNN that the run was trained with", "predict", run, "x.mp4")
    (run / "backbone.safetensors").write_bytes(cnn)
    (run / "classes.txt").write_text("one class\n")
    refused("does not fit config.yaml and classes.txt", "predict", run, "x.mp4")
    (run / "model.safetensors").write_bytes(pickle.dumps({"a": 1}))
    refused("model.safetensors: not a readable safetensors file", "predict", run, "x.mp4")
    (run / "model.safetensors").unlink()
    refused("model.safetensors is missing", "predict", run, "x.mp4")
    refused("model.safetensors is missing", "evaluate", run)


@pytest.mark.parametrize("history", ["", "[]", '{"bilstm": 3}', '{"bilstm": [{"epoch": null}]}', '{"mean": ["x"]}'])
def test_damaged_histories(run, history):
    (run / "history.json").write_text(history)
    refused("history.json: damaged", "evaluate", run)


def test_histories_with_other_keys_are_drawn(run):
    history = json.loads((run / "history.json").read_text())
    del history["bilstm"][0]["val_loss"]
    (run / "history.json").write_text(json.dumps(history | {"another": [{"epoch": 1}]}))
    kinema("evaluate", run)
