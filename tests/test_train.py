"""Extraction and training as a user runs them: in processes of their own, which can be killed."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors
import torch
from safetensors.torch import load_file

from pipeline.config import DataConfig
from pipeline.data.clip import Clip, Source
from pipeline.data.formats import CSV_COLUMNS
from pipeline.data.splits import load_dataset
from pipeline.features.entry import Header
from pipeline.predict import Predictor
from pipeline.runs.bundle import Bundle
from pipeline.video.workers import Failure

from conftest import REPOSITORY, kinema, touch, write_csv


def start(*arguments):
    command = [sys.executable, "-m", "pipeline.cli", *map(str, arguments)]
    return subprocess.Popen(
        command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True
    )


def kill_when(process, condition, patience=120):
    """Kills the process and all its children at the first moment when `condition` holds."""
    deadline = time.monotonic() + patience
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline, "ended or stuck before it could be killed"
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def entries(store: Path):
    """Every entry's numbers, bit by bit, and metadata, by file name."""
    found = {}
    for path in store.glob("*/??/*.safetensors"):
        with safetensors.safe_open(path, framework="np") as file:
            arrays = {name: file.get_tensor(name).tobytes() for name in ("features", "pts", "indices")}
            found[path.name] = (arrays, file.metadata())
    return found


def count(store: Path):
    return len(list(store.glob("*/??/*.safetensors")))


def same_model(a: Path, b: Path):
    one, other = load_file(a / "model.safetensors"), load_file(b / "model.safetensors")
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_extraction_counts_and_resumes(small_set, settings_of_small_set, extracted):
    assert "48 done, 0 skipped, 0 failed" in extracted
    again, _ = kinema("extract", *settings_of_small_set)
    assert "0 done, 48 skipped, 0 failed" in again


def test_killed_extraction_goes_on_where_it_was(small_set, settings_of_small_set, extracted, tmp_path):
    settings = [*settings_of_small_set, "--store", tmp_path / "store"]
    kill_when(start("extract", *settings), lambda: count(tmp_path / "store") >= 5)
    kept = count(tmp_path / "store")
    resumed, _ = kinema("extract", *settings)
    assert f"{48 - kept} done, {kept} skipped, 0 failed" in resumed
    assert entries(tmp_path / "store") == entries(small_set / "features")


def test_training_is_deterministic_and_survives_kills(small_set, settings_of_small_set, trained, tmp_path):
    settings = [*settings_of_small_set, "--train.epochs", 12, "--runs", tmp_path]
    killed = tmp_path / "small"
    for name in ("bilstm", "bilstm-refit"):
        checkpoint = killed / f"checkpoint-{name}.safetensors"
        kill_when(start("train", *settings, "--run", "small"), checkpoint.exists)
        assert not (killed / "model.safetensors").exists()
    kinema("train", *settings, "--run", "small")
    assert same_model(killed, trained)
    histories = [json.loads((run / "history.json").read_text()) for run in (killed, trained)]
    for kind in ("bilstm", "mean"):
        one, other = ([record["loss"] for record in history[kind]] for history in histories)
        assert one == other and len(one) > 1
    kinema("train", *settings, "--run", "other", "--train.seed", 1)
    assert not same_model(tmp_path / "other", trained)


def test_a_run_is_never_overwritten(settings_of_small_set, trained):
    before = (trained / "model.safetensors").read_bytes()
    settings = [*settings_of_small_set, "--run", "small"]
    same, _ = kinema("train", *settings, "--train.epochs", 12)
    assert "is trained already" in same
    for name in ("../small", ".."):
        _, error = kinema("train", *settings, "--run", name, code=2)
        assert "a name, not a path" in error
    _, error = kinema("train", *settings, "--train.epochs", 13, code=2)
    assert "train.epochs: 12, now 13" in error and error.count("\n") == 1
    assert (trained / "model.safetensors").read_bytes() == before


def test_evaluation_refuses_clips_of_groups_trained_on(trained):
    _, error = kinema("evaluate", trained, "--data.split", 2, code=1)
    assert "16 of 16 test clips, or others of their groups, were trained on" in error and error.count("\n") == 1


def test_evaluation_refuses_clips_trained_on_under_another_group(small_set, trained, tmp_path):
    with (trained / "clips.csv").open() as stream:
        learned = {row["path"] for row in csv.DictReader(stream) if row["sha256"]}
    names = [path.relative_to(small_set / "videos").as_posix() for path in (small_set / "videos").glob("*/*")]
    rows = [(name, name.split("/")[0], f"new {name}", "test" if name in learned else "train") for name in names]
    lists = write_csv(tmp_path / "clips.csv", ("path", "label", "group", "split"), *rows)
    _, error = kinema("evaluate", trained, "--data.lists", lists, code=1)
    assert "32 of 32 test clips, or others of their groups, were trained on" in error


def test_a_run_keeps_its_split_while_the_data_change(small_set, settings_of_small_set, extracted, tmp_path):
    videos = shutil.copytree(small_set / "videos", tmp_path / "videos")
    shutil.copytree(small_set / "features", tmp_path / "features")
    settings = [*settings_of_small_set, "--store", tmp_path / "features", "--runs", tmp_path, "--train.epochs", 1]
    settings[:4] = ["--data.root", videos]  # No lists: a folder per class.
    kinema("extract", *settings)
    kinema("train", *settings, "--run", "run")
    before = json.loads((evaluated(tmp_path / "run") / "metrics.json").read_text())
    listed = load_dataset(DataConfig(root=videos, lists=tmp_path / "run" / "clips.csv"))
    assert listed.clips == load_dataset(DataConfig(root=videos)).clips

    listed.of("test")[0].path.unlink()
    learned = listed.of("train")[0].path
    learned.rename(learned.with_stem("renamed"))
    touch(videos, *(f"New/{number}.mp4" for number in range(5)))
    out, _ = kinema("evaluate", tmp_path / "run")
    assert "could not be read" in out and "1 of them for they are not there any more" in out
    after = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert (after["n_clips"], after["n_missing"]) == (before["n_clips"] - 1, 1)


def evaluated(run):
    kinema("evaluate", run)
    return run


def test_another_data_set_has_a_report_of_its_own(trained, tmp_path):
    """Here half of the test clips."""
    run = shutil.copytree(trained, tmp_path / "small")
    before = (run / "metrics.json").read_bytes()
    with (run / "clips.csv").open() as stream:
        rows = [tuple(row.values()) for row in csv.DictReader(stream)]
    half = [row for row in rows if row[3] == "test" and row[2] == "g01"]
    lists = write_csv(tmp_path / "half.csv", (*CSV_COLUMNS, "sha256"), *half)
    out, _ = kinema("evaluate", run, "--data.lists", lists)
    assert f"{lists}, test split given: 8 clips" in out and (run / "metrics.json").read_bytes() == before
    assert json.loads((run / "other_data" / "half" / "metrics.json").read_text())["n_clips"] == 8


def test_a_run_whose_list_is_changed_or_lost_can_be_mended(settings_of_small_set, trained, tmp_path):
    run = shutil.copytree(trained, tmp_path / "small")
    before = (run / "metrics.json").read_bytes()
    (run / "clips.csv").write_text("path,label\n")
    for arguments in ((), ("--data.lists", trained / "clips.csv")):
        _, error = kinema("evaluate", run, *arguments, code=1)
        assert "clips.csv: missing, or changed since training; delete it and train again" in error
    (run / "clips.csv").unlink()
    told, _ = kinema("train", *settings_of_small_set, "--runs", tmp_path, "--run", "small", "--train.epochs", 12)
    assert "test: 16 clips in 2 groups\n" in told
    kinema("evaluate", run)
    assert (run / "metrics.json").read_bytes() == before


def test_evaluation_refuses_other_classes(trained, tmp_path):
    touch(tmp_path, *(f"{number}.mp4" for number in range(6)))
    rows = [(f"{number}.mp4", label) for number, label in enumerate(["Grow", "Fly"] * 3)]
    lists = write_csv(tmp_path / "clips.csv", ("path", "label"), *rows)
    _, error = kinema("evaluate", trained, "--data.root", tmp_path, "--data.lists", lists, code=1)
    assert "the run knows no class Fly; train a new one" in error


def test_copies_of_trained_clips_are_told_and_the_majority_is_of_training(small_set, tmp_path):
    """Clips by other names, of other groups as far as anybody has said; one class is larger in training, another in
    the test."""
    rows = ["path,label,split"]
    for label, in_training, in_test in (("Grow", 4, 1), ("Shrink", 2, 3)):
        files = sorted((small_set / "videos" / label).iterdir())
        (tmp_path / "videos" / label).mkdir(parents=True)
        copied = [*files[:in_training], *files[3 : 3 + in_test]]  # The fourth is learned from as `Grow`.
        for number, file in enumerate(copied):
            name = f"{label}/{number}{file.suffix}"
            (tmp_path / "videos" / name).write_bytes(file.read_bytes())
            split = "test" if number >= in_training else "val" if number == 1 else "train"
            rows.append(f"{name},{label},{split}")
    for number, split in enumerate(("train", "test")):  # Two that were given another class, too.
        [file] = (tmp_path / "videos" / "Grow").glob(f"{number}.*")
        (tmp_path / "videos" / "Shrink" / f"of_grow_{file.name}").write_bytes(file.read_bytes())
        rows.append(f"Shrink/of_grow_{file.name},Shrink,{split}")
    (tmp_path / "clips.csv").write_text("\n".join(rows))
    settings = ["--data.root", tmp_path / "videos", "--data.lists", tmp_path / "clips.csv", "--sampling.frames", 2]
    settings += ["--store", tmp_path / "store", "--runs", tmp_path, "--tracking", "off", "--train.epochs", 1]
    kinema("extract", *settings)
    told, _ = kinema("train", *settings, "--run", "copies")
    assert re.search(r"in two classes, so one is wrong: Grow/0\.\w+ and Shrink/of_grow_0\.\w+\n", told)
    told, _ = kinema("evaluate", tmp_path / "copies")
    for text in (told, (tmp_path / "copies" / "report.md").read_text()):
        assert "2 of 5 test clips are copies" in text and "1 of them were learned as another class" in text
    with (tmp_path / "copies" / "predictions.csv").open() as stream:
        copies = {row["clip"][:-4]: row["copy_of"][:-4] for row in csv.DictReader(stream) if row["copy_of"]}
    assert copies == {"Grow/4": "Grow/3", "Shrink/of_grow_1": "Grow/1"}
    assert json.loads((tmp_path / "copies" / "metrics.json").read_text())["baselines"]["majority"]["top1"] == 0.2


def test_a_copy_is_of_the_same_part_if_that_was_learned_from(tmp_path, monkeypatch):
    rows = [("x.mp4", "a", "g", "train", start, start + 2, "digest") for start in (0, 2)]
    write_csv(tmp_path / "clips.csv", (*CSV_COLUMNS, "sha256"), *rows)
    tested = [Clip(id=f"y.mp4{part}", path=tmp_path, label="", group="") for part in ("@0-2.0", "")]
    header = Header("", 1, 1, Source("", 1, 1, "digest"))
    bundle = Bundle(tmp_path)
    monkeypatch.setattr(bundle, "trained", lambda: {"clips_sha256": Source.of(bundle.clips_file).sha256})
    copies = {clip.id: copied.id for clip, copied in bundle.copies(dict.fromkeys(tested, header)).items()}
    assert copies == {"y.mp4@0-2.0": "x.mp4@0-2.0", "y.mp4": "x.mp4@2.0-4.0"}


def test_evaluation_tells_all_that_was_promised(trained):
    metrics = json.loads((trained / "metrics.json").read_text())
    about = {"split": 1, "n_clips": 16, "n_groups": 2, "n_missing": 0, "seed": 0}
    for part in (metrics, *metrics["baselines"].values()):
        assert about.items() <= part.items()
        assert 0 <= part["top1"] <= part["top5"] <= 1
        assert part["top1_ci95"][0] <= part["top1"] <= part["top1_ci95"][1]
        assert {"mean_class", "macro_f1"} <= part.keys()
    assert list(metrics["baselines"]) == ["pyramid", "mean", "majority"]
    assert metrics["baselines"]["majority"]["top1"] == 0.125
    assert len(metrics["per_class"]) == 8
    report = (trained / "report.md").read_text()
    assert "BiLSTM" in report and "mean of frames" in report and "majority class" in report
    for kind, name in (("pyramid", "temporal pyramid"), ("mean", "mean of frames")):
        baseline = metrics["baselines"][kind]
        assert baseline["gain"] == pytest.approx(metrics["top1"] - baseline["top1"])
        assert f"BiLSTM against {name}, clip by clip: {baseline['gain']:+.3f}, 95 %" in report
    with (trained / "predictions.csv").open() as stream:
        wrong = [row for row in csv.DictReader(stream) if row["predicted"] != row["label"]]
    surest = max(wrong, key=lambda row: float(row["probability"]))
    listed = report.partition("## Surest of the wrong answers")[2]
    assert listed.partition("--:|\n")[2].startswith(f"| {surest['clip']} | {surest['label']} | {surest['predicted']} |")
    assert (trained / "confusion.png").stat().st_size > 10_000


def test_prediction_gives_the_logits_of_evaluation(small_set, trained, tmp_path):
    """From a copy of the bundle alone, elsewhere, with store and lists out of reach."""
    with (trained / "predictions.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    for name in ("config.yaml", "classes.txt", "backbone.safetensors", "model.safetensors"):
        (bundle / name).write_bytes((trained / name).read_bytes())
    videos = {small_set / "videos" / row["clip"]: row for row in rows}
    missing = small_set / "missing.mp4"
    asked = [*list(videos)[:9], missing, *list(videos)[9:]]
    answers = list(Predictor(bundle)(asked))
    assert [path for path, _ in answers] == asked and len(rows) == 16
    assert answers.pop(9)[1] == Failure("No such file or directory", "file")
    for path, answer in answers:
        assert answer.frames == answer.planned == 6
        np.testing.assert_allclose(answer.logits.numpy(), json.loads(videos[path]["logits"]), atol=1e-3)


def test_heads_side_by_side_and_chosen_settings(settings_of_small_set, small_set, extracted, tmp_path):
    """What the simplest run does not use: two Transformers, trained with what cross-validation chose."""
    settings = [*settings_of_small_set, "--runs", tmp_path, "--run", "auto", "--auto", "--train.epochs", 2]
    settings += ["--head.kind", "transformer", "--train.heads", 2, "--head.hidden", 6, "--train.learning_rate", 1e-7]
    told, _ = kinema("train", *settings)
    assert "train.learning_rate 0.003: loss" in told
    bundle = tmp_path / "auto"
    config = (bundle / "config.yaml").read_text()
    for name, value in json.loads((bundle / "tuning.json").read_text())["chosen"].items():
        assert f"  {name.split('.')[1]}: {value}\n" in config
    assert "is trained already" in kinema("train", *settings)[0]
    _, error = kinema("train", *settings, "--train.epochs", 3, code=2)
    assert "train.epochs: 2, now 3" in error
    told, _ = kinema("evaluate", bundle)
    assert "2 heads of different seeds answer together; each alone has a top-1 of" in told
    with (bundle / "predictions.csv").open() as stream:
        row = next(csv.DictReader(stream))
    [(_, answer)] = Predictor(str(bundle))(f"{small_set}/videos/{row['clip']}")
    np.testing.assert_allclose(answer.logits.numpy(), json.loads(row["logits"]), atol=1e-3)


def test_heads_that_are_trained_once(settings_of_small_set, extracted, tmp_path):
    settings = [*settings_of_small_set, "--runs", tmp_path, "--run", "once", "--train.epochs", 2]
    kinema("train", *settings, "--train.refit", "false", "--train.heads", 2)
    assert list(json.loads((tmp_path / "once" / "history.json").read_text())) == ["bilstm", "mean"]
    tensors = load_file(tmp_path / "once" / "model.safetensors")
    one, other = (tensors[f"bilstm.{number}.fusion_weights"] for number in (0, 1))
    assert torch.equal(one, other) and not torch.equal(one, torch.tensor([1, 1, 0.5]))
    assert not torch.equal(one[:2], tensors["bilstm.0.pyramid.fusion_weights"])  # Found for the pyramid alone.
    assert not torch.equal(tensors["mean.0.linear.weight"], tensors["mean.1.linear.weight"])


def test_missing_features_stop_training(settings_of_small_set, small_set, tmp_path):
    settings = [*settings_of_small_set, "--store", tmp_path]
    for message in ("no features with these settings; run kinema extract", "have no valid features"):
        _, error = kinema("train", *settings, "--run", "none", code=1)
        assert message in error and "run kinema extract" in error and error.count("\n") == 1
        kinema("extract", *settings, "--shard", "1/48")


@pytest.mark.gpu
def test_training_on_a_gpu_is_deterministic(settings_of_small_set, trained, tmp_path):
    settings = [*settings_of_small_set, "--train.epochs", 6, "--runs", tmp_path, "--device", "cuda"]
    kinema("extract", *settings)
    for run in ("one", "two"):
        kinema("train", *settings, "--run", run)
    assert same_model(tmp_path / "one", tmp_path / "two")
