"""Sweeps without W&B's server, and the command line of W&B's agent."""

import csv

import pytest
import yaml

from pipeline.base.errors import ConfigError
from pipeline.runs.bundle import Bundle
from pipeline.runs.sweep import CrossValidation, read_sweep

from conftest import REPOSITORY, kinema

FILE = REPOSITORY / "configs" / "sweep.yaml"


def write_sweep(path, **content):
    path.write_text(yaml.safe_dump(content))
    return path


def test_a_grid_has_all_combinations_and_draws_are_within_bounds(tmp_path):
    parameters = {
        "head.hidden": {"values": [64, 128]},
        "head.layers": {"values": [1, 2]},
        "train.refit": {"value": False},
    }
    grid = read_sweep(write_sweep(tmp_path / "grid.yaml", method="grid", parameters=parameters))
    assert [(s["head.hidden"], s["head.layers"]) for s in grid] == [(64, 1), (64, 2), (128, 1), (128, 2)]
    assert not any(settings["train.refit"] for settings in grid)
    drawn = read_sweep(FILE)
    assert len(drawn) == 24 and drawn == read_sweep(FILE) and len({str(settings) for settings in drawn}) == 24
    assert all(0.3 <= s["head.dropout"] <= 0.8 and 5e-4 <= s["train.learning_rate"] <= 5e-3 for s in drawn)
    for content in ({"method": "bayes", "parameters": {}}, {"method": "grid"}, {"method": "random", "parameters": {}}):
        with pytest.raises(ConfigError):
            read_sweep(write_sweep(tmp_path / "bad.yaml", **content))


def test_the_best_setting_is_trained(settings_of_small_set, extracted, tmp_path):
    rates = {"train.learning_rate": {"values": [1e-7, 0.005]}}  # With the first, nothing is learned.
    file = write_sweep(tmp_path / "rates.yaml", method="grid", parameters=rates)
    settings = [*settings_of_small_set, "--runs", tmp_path, "--head.kind", "pyramid", "--train.epochs", 4]
    settings += ["--train.learning_rate", 1e-6]
    out, _ = kinema("sweep", file, *settings, "--folds", 2)
    assert "32 clips of train and val, 2 folds, 2 settings\n" in out and "Saved " in out
    with (tmp_path / "best" / "sweep.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert rows[0]["settings"] == "--train.learning_rate=0.005" and float(rows[0]["top1"]) > 0.25
    assert {row["settings"] for row in rows[1:]} == {"--train.learning_rate=1e-07", "as configured"}
    assert "learning_rate: 0.005" in (tmp_path / "best" / "config.yaml").read_text()
    other = write_sweep(tmp_path / "other.yaml", method="grid", parameters={"sampling.frames": {"values": [2]}})
    assert "sampling.frames needs other features" in kinema("sweep", other, *settings, code=2)[1]


def test_rounds_keep_the_best_third_and_the_configured_settings(settings_of_small_set, extracted, tmp_path):
    rates = {"train.learning_rate": {"values": [1e-7, 2e-7, 3e-7, 4e-7, 1e30, 0.005]}}
    file = write_sweep(tmp_path / "rates.yaml", method="grid", parameters=rates)
    settings = [*settings_of_small_set, "--runs", tmp_path, "--head.kind", "mean", "--train.epochs", 18]
    out, _ = kinema("sweep", file, *settings, "--folds", 2, "--train.learning_rate", 1e-6)
    with (tmp_path / "best" / "sweep.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["epochs"] for row in rows] == [*["18"] * 2, *["2"] * 5]
    assert [row["settings"] for row in rows[:2]] == ["--train.learning_rate=0.005", "as configured"]
    assert out.count("\ntop-1 ") == 2
    assert "train.learning_rate 1e+30 is too high" in out and rows[-1]["settings"] == "--train.learning_rate=1e+30"


def test_folds_share_no_group(trained):
    clips = [*Bundle(trained).trained_on]
    folds = CrossValidation(None, clips, sorted({clip.label for clip in clips}), 2, None).folds
    held_out = [{clips[n].group for n in held_N.nonzero()[0]} for held_N in folds]
    assert not set.intersection(*held_out) and sum(int(held_N.sum()) for held_N in folds) == len(clips)


def test_the_command_line_of_the_agent_is_accepted(settings_of_small_set, extracted, tmp_path, monkeypatch):
    """Twice, with the arguments and the environment that `wandb agent` gives to each trial."""
    program, command, *arguments = yaml.safe_load(FILE.read_text())["command"]
    assert (program, command) == ("kinema", "train")
    base = [*settings_of_small_set, "--runs", tmp_path, "--head.kind", "pyramid", "--train.epochs", 1]
    for name, settings in zip(("first", "second"), read_sweep(FILE), strict=False):
        monkeypatch.setenv("WANDB_RUN_ID", name)
        args = [f"--{setting}={value}" for setting, value in settings.items()]
        place = arguments.index("${args}")
        kinema(command, *base, *arguments[:place], *args, *arguments[place + 1 :], "--data.split", 1)
        assert (tmp_path / f"demo-{name}" / "model.safetensors").exists()
