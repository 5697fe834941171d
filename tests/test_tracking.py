"""Weights & Biases, offline: the log of a run is read back with W&B's own tool."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from scipy.special import softmax

from pipeline.base.errors import KinemaError
from pipeline.cli import main
from pipeline.config import Config, TrainConfig
from pipeline.runs.bundle import Bundle, open_tested
from pipeline.runs.over_time import probability_over_time
from pipeline.runs.results import Results
from pipeline.runs.tracking import Tracker

from conftest import kinema


def read_logs(folder: Path) -> list[dict]:
    """Read the records of the offline runs in a bundle, in order."""
    found = []
    for run in sorted((folder / "wandb").glob("offline-run-*"), key=lambda path: path.stat().st_mtime_ns):
        command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", run]
        found += subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    return [json.loads(line) for line in found]


def of_type(records: list[dict], kind: str) -> list[dict]:
    return [record[kind] for record in records if record["type"] == kind]


def history(records: list[dict]) -> list[dict]:
    return [record["item"] for record in of_type(records, "history")]


def summary(records: list[dict]) -> dict:
    merged = {}
    for record in of_type(records, "summary"):
        merged |= record["update"]
    return merged


def test_tracking_off_works_without_wandb(trained, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # An import of it would now fail.
    kinema("evaluate", trained)
    with monkeypatch.context() as patch:
        patch.setenv("WANDB_MODE", "disabled")
        kinema("evaluate", trained, "--tracking", "auto")
    with pytest.raises(ImportError):
        main(["evaluate", str(trained), "--tracking", "offline"])


@pytest.fixture(scope="module")
def tracked(settings_of_small_set, extracted, tmp_path_factory):
    """A run with the settings of `trained`, tracked offline, evaluated without previews, then with four."""
    folder = tmp_path_factory.mktemp("tracked")
    settings = [*settings_of_small_set, "--runs", folder, "--tracking", "offline", "--train.epochs", 12]
    kinema("train", *settings, "--run", "small")
    for media in (0, 4):
        out, _ = kinema("evaluate", folder / "small", "--tracking-media", media)
        assert ("W&B: previews of 4 test clips, 0." in out) == (media == 4) and "with: wandb sync" in out
    return folder / "small"


def test_all_jobs_log_to_one_run(trained, tracked):
    records = read_logs(tracked)
    runs = of_type(records, "run")
    assert len(runs) == 3 and {run["run_id"] for run in runs} == {(tracked / "wandb_id.txt").read_text().strip()}
    assert all(run["resume"] for run in runs) and [end["exit_code"] for end in of_type(records, "exit")] == [0, 0, 0]
    settings = runs[0]["config"]["update"]
    assert {"head.kind", "train.seed", "fingerprint", "clips_sha256", "version.torch"} <= settings.keys()
    assert runs[0]["tags"] == ["bilstm", "tf_efficientnet_lite0", "splits"]
    assert runs[0]["run_group"].startswith("splits-bilstm-") and runs[0]["job_type"] == "bilstm"
    # Tracking does not change what is trained.
    assert Bundle(tracked).metadata() == Bundle(trained).metadata()  # With the checksum of the weights.


def test_the_names_of_metrics_and_tables(tracked):
    records = read_logs(tracked)
    defined = of_type(records, "metric")
    steps = {metric["glob_name"]: metric["step_metric"] for metric in defined if "glob_name" in metric}
    over_epochs = {"train/*": "epoch", "val/*": "epoch", "refit/*": "epoch"}
    assert steps == over_epochs | {"throughput/*": "throughput/seconds"}
    points = [row for row in history(records) if "throughput/seconds" in row]
    assert points and all(row["throughput/frames_per_second"] > 0 < row["throughput/cnn_busy"] <= 1 for row in points)
    epochs = [row for row in history(records) if "epoch" in row]
    assert [row["epoch"] for row in epochs] == [*range(1, 13)] * 2
    for row, parts in ((epochs[0], ("train", "val")), (epochs[-1], ("refit",))):
        names = {f"{part}/loss" for part in parts} | ({"val/top1"} if "val" in parts else set())
        assert names <= row.keys() and {name.partition("/")[0] for name in row if "/" in name} == {*parts}
    found = summary(records)
    assert found["best/top1"] == max(row["val/top1"] for row in epochs if "val/top1" in row)
    assert {"best/loss", "test/top1", "test/n_copies", "baseline/mean/top1", "baseline/mean/gain"} <= found.keys()
    assert found["extract/frames_per_second"] > 0 and found["probe/as_is"] == found["test/top1"]
    tables = {key.removesuffix("._type") for key, value in found.items() if value == "table-file"}
    names = ("confusion_table", "reliability_table", "over_time_table", "classes", "clips", "failures")
    assert tables == {f"test/{name}" for name in names}
    panels = {key for record in of_type(records, "config") for key in record["update"]}
    assert {"_wandb.visualize.test/confusion", "_wandb.visualize.test/reliability"} <= panels
    assert "_wandb.visualize.test/over_time" in panels


def test_frames_are_logged_only_when_asked_for(tracked):
    artifacts = [a["manifest"]["contents"] for a in of_type(read_logs(tracked), "artifact") if "testclips" in a["name"]]
    without, four = ([entry for entry in contents if entry["path"].endswith(".mp4")] for contents in artifacts)
    assert not without and len(four) == 4


def test_the_model_is_an_artifact_and_the_bundle_holds_all_content(trained, tracked):
    artifacts = of_type(read_logs(tracked), "artifact")
    files = [
        Path(entry["local_path"]) for a in artifacts for entry in a["manifest"]["contents"] if "local_path" in entry
    ]
    assert files and all(file.is_file() and file.is_relative_to(tracked) for file in files)
    by_name = {artifact["name"]: artifact for artifact in artifacts}
    fingerprint = Bundle(tracked).metadata()["fingerprint"]
    [manifest] = by_name[f"features-{fingerprint}"]["manifest"]["contents"]
    assert manifest["ref"] == (trained.parents[1] / "features" / fingerprint / "manifest.json").as_uri()
    model = by_name["small"]
    copied = {entry["path"]: entry["local_path"] for entry in model["manifest"]["contents"]}
    assert copied == {file.name: str(file) for file in Bundle(tracked).files()}
    assert json.loads(model["metadata"])["best/top1"] == summary(read_logs(tracked))["best/top1"]


def test_a_model_that_cannot_be_downloaded_is_one_line(monkeypatch, tmp_path):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    _, error = kinema("predict", "wandb:me/kinema/demo:best", "a.mp4", code=1)
    assert error.startswith("kinema: wandb:me/kinema/demo:best: cannot be downloaded (") and error.count("\n") == 1


def test_an_interrupted_run_keeps_its_id_and_seeds_share_a_group(trained, tmp_path, capsys):
    def environment():  # W&B itself names its service there at the first run of a process.
        return {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}

    before, failed = environment(), KinemaError("the learning rate is too high")
    for name, seed in (("first", 0), ("second", 1)):
        config = Config(tracking="offline", train=TrainConfig(seed=seed))
        (tmp_path / name).mkdir()
        shutil.copyfile(trained / "clips.csv", tmp_path / name / "clips.csv")
        with pytest.raises(KinemaError), Tracker(config, tmp_path / name, "fingerprint") as tracker:
            tracker.log_epoch("bilstm", {"epoch": 1, "loss": 1.0, "val_loss": 2.0, "val_top1": 0.5})
            raise failed
    assert not capsys.readouterr().out
    with Tracker(config, tmp_path / name, "fingerprint") as tracker:
        tracker.log_epoch("bilstm", {"epoch": 2, "loss": 0.5, "val_loss": 1.0, "val_top1": 0.75})
    assert environment() == before
    first, second = read_logs(tmp_path / "first"), read_logs(tmp_path / "second")
    groups = {run["run_group"] for run in of_type([*first, *second], "run")}
    ids = [run["run_id"] for run in of_type([*first, *second], "run")]
    assert len(groups) == 1 and ids[0] != ids[1] == ids[2]
    assert [(row["epoch"], row["train/loss"]) for row in history(second)] == [(1, 1.0), (2, 0.5)]
    assert [end["exit_code"] for end in of_type(second, "exit")] == [1, 0] and summary(second)["best/epoch"] == 2


def test_wrong_settings_of_wandb_are_one_line(trained, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "of line")
    _, error = kinema("evaluate", trained, "--tracking", "auto", code=1)
    assert "use --tracking offline or off" in error.splitlines()[-1] and error.count("kinema: ") == 1


def test_the_probability_over_time_ends_with_that_of_the_prediction(tracked):
    _, _, device, classifiers, dataset, _, store, found = open_tested(tracked, {})
    clips = [*found][:3]
    curves = probability_over_time(store, clips, dataset.classes, next(iter(classifiers.values())), device)
    rows = {row["clip"]: row for row in Results.read(tracked).rows}
    for clip, curve in zip(clips, curves, strict=True):
        expected = softmax(rows[clip.id]["logits"])[dataset.classes.index(clip.label)]
        assert curve["clip"] == clip.id and len(curve["seconds"]) == len(curve["probability"]) == 6
        assert curve["probability"][-1] == pytest.approx(expected, abs=1e-4) != curve["probability"][0]
