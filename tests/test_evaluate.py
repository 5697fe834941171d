"""Evaluation: of a run's own test split, and of other data."""

import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from pipeline.config import DataConfig
from pipeline.data.clip import Clip
from pipeline.data.formats import CSV_COLUMNS
from pipeline.data.splits import load_dataset
from pipeline.features.entry import Header
from pipeline.runs.bundle import Bundle
from pipeline.runs.gallery import choose
from pipeline.runs.probe import perturbations
from pipeline.runs.results import Results

from conftest import kinema, touch, write_csv, write_video


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def read_metrics(folder: Path) -> dict:
    return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))


def test_metrics_and_report(trained):
    metrics = read_metrics(trained)
    assert (
        metrics.items() >= {"split": 1, "n_clips": 16, "n_groups": 2, "n_missing": 0, "n_copies": 0, "seed": 0}.items()
    )
    for part in (metrics, *metrics["baselines"].values()):
        assert 0 <= part["top1"] <= part["top5"] <= 1
        assert part["top1_ci95"][0] <= part["top1"] <= part["top1_ci95"][1]
        assert {"mean_class", "macro_f1"} <= part.keys()
    assert metrics["head"] == "bilstm" and list(metrics["baselines"]) == ["pyramid", "mean", "majority"]
    assert metrics["baselines"]["majority"]["top1"] == 0.125
    assert len(metrics["per_class"]) == 8
    report, _ = kinema("evaluate", trained)
    assert "test split 1; clips: 16, groups: 2, copies of training files: 0" in report
    for kind, name in (("pyramid", "temporal pyramid"), ("mean", "mean of frames")):
        baseline = metrics["baselines"][kind]
        assert baseline["gain"] == pytest.approx(metrics["top1"] - baseline["top1"])
        interval = baseline["gain_ci95"]
        shown = f"95 % CI {interval[0]:+.3f} to {interval[1]:+.3f}, paired)" if interval else "no CI"
        assert f"BiLSTM vs. {name}: {baseline['gain']:+.3f} ({shown}" in report
    page = (trained / "report.html").read_text(encoding="utf-8")
    assert "16</dd>" in page and "over recordings: " in page and page.count('class="cell ') >= 8


def test_confident_mistakes_of_all_pairs_of_classes_come_first(trained):
    results = Results.read(trained)
    for number, row in enumerate(results.rows[:4]):
        row |= {"label": "a", "predicted": "b" if number else "c", "probability": 0.5 + number / 10}
    chosen = choose(results._replace(rows=results.rows[:4]), 3)
    assert [row["probability"] for row in chosen] == [0.8, 0.5, 0.7]  # b, c, then b again.


def test_groups_trained_on_are_refused(trained):
    _, error = kinema("evaluate", trained, "--data.split", 2, code=1)
    assert "16 of 16 test clips share a file or a group with training clips" in error and error.count("\n") == 1


def test_files_trained_on_are_refused_under_another_group(small_set, trained, tmp_path):
    learned = {row["path"] for row in read_rows(trained / "clips.csv") if row["sha256"]}
    names = [path.relative_to(small_set / "videos").as_posix() for path in (small_set / "videos").glob("*/*")]
    rows = [(name, name.split("/")[0], f"new {name}", "test" if name in learned else "train") for name in names]
    lists = write_csv(tmp_path / "clips.csv", ("path", "label", "group", "split"), *rows)
    _, error = kinema("evaluate", trained, "--data.lists", lists, code=1)
    assert "32 of 32 test clips share a file or a group with training clips" in error


def test_other_classes_are_refused(trained, tmp_path):
    touch(tmp_path, *(f"{number}.mp4" for number in range(6)))
    rows = [(f"{number}.mp4", label) for number, label in enumerate(["Grow", "Fly"] * 3)]
    lists = write_csv(tmp_path / "clips.csv", ("path", "label"), *rows)
    _, error = kinema("evaluate", trained, "--data.root", tmp_path, "--data.lists", lists, code=1)
    assert "the run has no class Fly; train a new one" in error


def test_the_test_split_stays_while_the_data_change(small_set, settings_of_small_set, extracted, tmp_path):
    videos = shutil.copytree(small_set / "videos", tmp_path / "videos")
    shutil.copytree(small_set / "features", tmp_path / "features")
    settings = [*settings_of_small_set, "--store", tmp_path / "features", "--runs", tmp_path, "--train.epochs", 1]
    settings[:4] = ["--data.root", videos]  # No lists: a folder per class.
    run = tmp_path / "run"
    kinema("extract", *settings)
    kinema("train", *settings, "--run", "run")
    kinema("evaluate", run)
    before = read_metrics(run)
    listed = load_dataset(DataConfig(root=videos, lists=run / "clips.csv"))
    assert listed.clips == load_dataset(DataConfig(root=videos)).clips

    listed.of("test")[0].path.unlink()
    learned = listed.of("train")[0].path
    learned.rename(learned.with_stem("renamed"))
    touch(videos, *(f"New/{number}.mp4" for number in range(5)))
    kinema("evaluate", run)
    after = read_metrics(run)
    assert (after["n_clips"], after["n_missing"]) == (before["n_clips"] - 1, 1)

    moved = videos.rename(tmp_path / "moved")
    kinema("extract", *settings, "--data.root", moved, code=None)  # New/ cannot be read.
    kinema("evaluate", run, "--data.root", moved)
    assert read_metrics(run) == after | {"data": str(moved)}
    assert not (run / "other_data").exists()


def test_other_lists_have_a_report_of_their_own(trained, tmp_path):
    """Two lists of the same name, each with half of the test clips."""
    run = shutil.copytree(trained, tmp_path / "small")
    before = (run / "metrics.json").read_bytes()
    rows = [tuple(row.values()) for row in read_rows(run / "clips.csv")]
    tested = [row for row in rows if row[3] == "test"]
    for name, half in (("a", tested[:8]), ("b", tested[8:])):
        (tmp_path / name).mkdir()
        lists = write_csv(tmp_path / name / "half.csv", (*CSV_COLUMNS, "sha256"), *half)
        out, _ = kinema("evaluate", run, "--data.lists", lists)
        assert f"{lists}, test split predefined; clips: 8" in out
    kinema("evaluate", run, "--data.lists", lists)  # The same clips again: the same folder.
    reports = list((run / "other_data").glob("half-????????/metrics.json"))
    assert len(reports) == len(list((run / "other_data").iterdir())) == 2
    assert (run / "metrics.json").read_bytes() == before


def test_another_root_has_a_report_of_its_own(tmp_path):
    """Two folders of videos of the same names, and a third whose files have no name of the first."""
    names = [f"{label}/{number}.mp4" for label in ("a", "b") for number in range(4)]
    for seed, folder in enumerate(("first/videos", "second/videos")):
        for number, name in enumerate(names):
            write_video(tmp_path / folder / name, "libx264", frames=8 + number + 10 * seed)
    for name in names:
        path = tmp_path / "third/videos" / name.replace("/", "/other_")
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(tmp_path / "second/videos" / name, path)
    lists = tmp_path / "lists.csv"
    splits = ["train", "train", "val", "test"] * 2
    rows = [(name, name[0], split) for name, split in zip(names, splits, strict=True)]
    write_csv(lists, ("path", "label", "split"), *rows)
    settings = ["--sampling.frames", 2, "--store", tmp_path / "store", "--runs", tmp_path, "--tracking", "off"]
    own = [*settings, "--data.root", tmp_path / "first/videos", "--data.lists", lists]
    kinema("extract", *own)
    kinema("train", *own, "--run", "run", "--train.epochs", 1)
    run = tmp_path / "run"
    kinema("evaluate", run)
    before = (run / "metrics.json").read_bytes()
    for number, folder in enumerate(("second/videos", "third/videos"), 1):
        root = tmp_path / folder
        kinema("extract", *settings, "--data.root", root)
        out, _ = kinema("evaluate", run, "--data.root", root, "--data.lists", "null")
        assert "clips: 8, groups: 8, copies of training files: 0" in out
        assert len(list((run / "other_data").glob("videos-*"))) == number
        assert (run / "metrics.json").read_bytes() == before
    kinema("evaluate", run, "--data.root", tmp_path / "second/videos")
    [new] = {*(run / "other_data").iterdir()} - {*(run / "other_data").glob("videos-*")}
    assert read_metrics(new)["n_clips"] == 2 and new.name.startswith("lists-")  # The split of the list.
    assert (run / "metrics.json").read_bytes() == before


def test_copies_of_training_files(small_set, tmp_path):
    """Copies under other names, in groups of their own; the largest class differs between training and test."""
    rows = ["path,label,split"]
    for label, in_training, in_test in (("Grow", 4, 1), ("Shrink", 2, 3)):
        files = sorted((small_set / "videos" / label).iterdir())
        (tmp_path / "videos" / label).mkdir(parents=True)
        copied = [*files[:in_training], *files[3 : 3 + in_test]]  # The fourth is trained on as `Grow`.
        for number, file in enumerate(copied):
            name = f"{label}/{number}{file.suffix}"
            (tmp_path / "videos" / name).write_bytes(file.read_bytes())
            split = "test" if number >= in_training else "val" if number == 1 else "train"
            rows.append(f"{name},{label},{split}")
    for number, split in enumerate(("train", "test")):  # Two copies with another label.
        [file] = (tmp_path / "videos" / "Grow").glob(f"{number}.*")
        (tmp_path / "videos" / "Shrink" / f"of_grow_{file.name}").write_bytes(file.read_bytes())
        rows.append(f"Shrink/of_grow_{file.name},Shrink,{split}")
    (tmp_path / "clips.csv").write_text("\n".join(rows))
    settings = ["--data.root", tmp_path / "videos", "--data.lists", tmp_path / "clips.csv", "--sampling.frames", 2]
    settings += ["--store", tmp_path / "store", "--runs", tmp_path, "--tracking", "off", "--train.epochs", 1]
    kinema("extract", *settings)
    out, _ = kinema("train", *settings, "--run", "copies")
    assert re.search(r"Grow/0\.\w+ and Shrink/of_grow_0\.\w+\n", out)
    out, _ = kinema("evaluate", tmp_path / "copies")
    for text in (out, (tmp_path / "copies" / "report.html").read_text(encoding="utf-8")):
        assert "2 of 5 test clips are copies of training files under other names (1 with another label)" in text
    assert "clips: 5, groups: 5, copies of training files: 2" in out
    rows = read_rows(tmp_path / "copies" / "predictions.csv")
    copies = {row["clip"][:-4]: row["copy_of"][:-4] for row in rows if row["copy_of"]}
    assert copies == {"Grow/4": "Grow/3", "Shrink/of_grow_1": "Grow/1"}
    metrics = read_metrics(tmp_path / "copies")
    assert (metrics["n_copies"], metrics["n_copies_of_other_classes"]) == (2, 1)
    assert metrics["baselines"]["majority"]["top1"] == 0.2


def test_a_copy_is_of_the_same_segment_if_that_was_trained_on(tmp_path):
    def clip(name, **segment):
        return Clip(id=name, path=tmp_path, label="", group=name, **segment)

    first, second = clip("x.mp4@0-2.0", start=0, end=2.0), clip("x.mp4@2.0-4.0", start=2.0, end=4.0)
    tested = [clip("y.mp4@0-2.0", start=0, end=2.0), clip("y.mp4")]
    bundle = Bundle(tmp_path)
    bundle.trained_on = {first: "digest", second: "digest"}
    copies = bundle.copies({**dict.fromkeys(tested, Header(1, 1, "digest")), clip("z.mp4"): Header(1, 1, "other")})
    assert copies == {tested[0]: first, tested[1]: second}


def test_a_changed_clip_list_is_refused_and_can_be_restored(settings_of_small_set, trained, tmp_path):
    run = shutil.copytree(trained, tmp_path / "small")
    before = (run / "metrics.json").read_bytes()
    (run / "clips.csv").write_text("path,label\n")
    for arguments in ((), ("--data.lists", trained / "clips.csv")):
        _, error = kinema("evaluate", run, *arguments, code=1)
        assert "clips.csv: missing, or changed since training; delete " in error
    (run / "model.safetensors").unlink()
    out, _ = kinema("train", *settings_of_small_set, "--runs", tmp_path, "--run", "small", "--train.epochs", 12)
    assert "test: 16 clips in 2 groups\n" in out
    kinema("evaluate", run)
    assert (run / "metrics.json").read_bytes() == before


def test_the_probe_shuffles_every_clip_differently():
    frames, shuffle = np.arange(50)[:, None], perturbations()["shuffled"]
    first, second = shuffle(frames), shuffle(frames)
    assert sorted(first.tolist()) == sorted(second.tolist()) == frames.tolist() and (first != second).any()
    assert (perturbations()["shuffled"](frames) == first).all()


def test_the_probe_shows_that_time_is_used(trained):
    probed = json.loads(kinema("probe", trained, "--json")[0])
    metrics = read_metrics(trained)
    assert list(probed) == ["as_is", "shuffled", "reversed", "frozen", "frames_1", "frames_2", "frames_4", "frames_8"]
    assert probed == {name: values["top1"] for name, values in metrics["probe"].items()}
    assert probed["as_is"] == metrics["top1"] > max(probed["shuffled"], probed["reversed"], probed["frozen"])
    assert probed["frames_1"] < probed["as_is"] == probed["frames_8"]  # The clips have six frames.
    assert "order of frames matters" in kinema("probe", trained)[0]
