"""Weights & Biases, offline."""

import os
import re
import sys
import time
from pathlib import Path

import pytest

from pipeline.base.errors import KinemaError
from pipeline.cli import main
from pipeline.config import Config, HeadConfig
from pipeline.runs.tracking import Tracker

from conftest import kinema


def test_tracking_off_works_without_wandb(trained, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # An import of it would now fail.
    kinema("evaluate", trained)
    with monkeypatch.context() as patch:
        patch.setenv("WANDB_MODE", "disabled")
        kinema("evaluate", trained, "--tracking", "auto")
    with pytest.raises(ImportError):
        main(["evaluate", str(trained), "--tracking", "offline"])


def records(run: Path) -> list:
    """Read the records of an offline run. W&B's own process may write them a little later."""
    [path] = run.glob("run-*.wandb")
    deadline = time.monotonic() + 60
    while not (found := read_log(path.read_bytes())) or found[-1].WhichOneof("record_type") != "exit":
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return found


def read_log(content: bytes) -> list:
    """Read LevelDB's log format."""
    from wandb.proto import wandb_internal_pb2

    position, text, found = 7, b"", []
    while position + 7 <= len(content):
        if 32768 - position % 32768 < 7:
            position += 32768 - position % 32768
            continue
        size, kind = int.from_bytes(content[position + 4 : position + 6], "little"), content[position + 6]
        text += content[position + 7 : position + 7 + size]
        position += 7 + size
        if kind in (1, 4):  # Whole, or the last part.
            record = wandb_internal_pb2.Record()
            record.ParseFromString(text)
            found.append(record)
            text = b""
    return found


def offline_run(folder: Path) -> Path:
    [run] = (folder / "wandb").glob("offline-run-*")
    return run


def keys(run: Path, kind: str) -> list[set[str]]:
    """Return the keys of each record of a kind, 'history' or 'summary'."""
    found = [getattr(record, kind) for record in records(run) if record.WhichOneof("record_type") == kind]
    items = [record.item if kind == "history" else record.update for record in found]
    return [{item.key or "/".join(item.nested_key) for item in row} for row in items]


def test_an_offline_run_can_be_moved(settings_of_small_set, trained, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    settings = [*settings_of_small_set, "--runs", tmp_path, "--tracking", "offline", "--train.epochs", 2]
    for arguments in (("train", *settings, "--run", "tracked"), ("evaluate", tmp_path / "tracked")):
        out, _ = kinema(*arguments)
        place = Path(re.search("upload with: wandb sync (.*)", out)[1]).resolve()
        stored = [record for record in records(place) if record.WhichOneof("record_type") == "artifact"]
        assert not [entry for record in stored for entry in record.artifact.manifest.contents if entry.local_path]
    assert not (place / "files" / "media").exists()
    assert {"test/top1", "mean/gain", "recall/Grow"} <= set().union(*keys(place, "summary"))
    monkeypatch.setenv("WANDB_MODE", "of line")
    _, error = kinema("evaluate", trained, "--tracking", "auto", code=1)
    assert "use --tracking offline or off" in error.splitlines()[-1] and error.count("kinema: ") == 1


def test_curves_lie_over_the_epochs_and_runs_are_apart(tmp_path):
    def environment():  # W&B itself names its service there at the first run of a process.
        return {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}

    before = environment()
    for kind in ("bilstm", "pyramid"):
        config = Config(tracking="offline", head=HeadConfig(kind=kind))
        (tmp_path / kind).mkdir()
        with Tracker(config, tmp_path / kind, "train") as tracker:
            for stage in (kind, "mean"):
                tracker.log_epoch(stage, {"epoch": 1, "loss": 1.0, "val_loss": 2.0, "val_top1": 0.5})
    assert environment() == before
    for kind in ("bilstm", "pyramid"):
        run = offline_run(tmp_path / kind)
        metrics = [record.metric for record in records(run) if record.WhichOneof("record_type") == "metric"]
        assert [(metric.glob_name, metric.step_metric) for metric in metrics] == [("*", "epoch")]
        own, mean = keys(run, "history")
        assert {"epoch", f"{kind}/loss", "val/top1", "val/loss"} <= own
        assert {"epoch", "mean/loss"} <= mean and "val/top1" not in mean


def test_a_failed_run_is_finished(tmp_path, capsys):
    with pytest.raises(KinemaError), Tracker(Config(tracking="offline"), tmp_path, "train"):
        raise KinemaError("the learning rate is too high")
    exits = [
        record.exit.exit_code for record in records(offline_run(tmp_path)) if record.WhichOneof("record_type") == "exit"
    ]
    assert exits == [1] and not capsys.readouterr().out
