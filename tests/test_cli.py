"""What a user meets: help, settings, and one line for each thing that goes wrong."""

import json
import sys

import pytest

from pipeline.cli import main

from conftest import REPOSITORY, kinema, write_video


def fails(code, message, *arguments):
    _, error = kinema(*arguments, code=code)
    assert message in error and error.count("\n") == 1 and error.startswith("kinema: "), error


@pytest.mark.parametrize("verb", ["extract", "train", "evaluate", "predict"])
def test_help_is_readable(verb, capsys):
    with pytest.raises(SystemExit, match="0"):
        main([verb, "--help"])
    text = capsys.readouterr().out
    assert f"usage: kinema {verb}" in text
    assert "--decode.deadline FLOAT" in text and "Seconds that one clip may take" in text and "(default: 60.0)" in text
    assert ("--head.hidden" in text) == (verb != "predict")


def test_wrong_arguments(tmp_path):
    fails(2, "did you mean '--head.hidden'?", "train", "--head.hiden", "3")
    fails(2, "head.hidden: input should be a valid integer", "train", "--head.hidden", "many")
    fails(2, "head.kind: input should be 'bilstm' or 'mean', got 'gru'", "train", "--head.kind", "gru")
    fails(2, "data.split: input should be less than or equal to 3, got '4'", "train", "--data.split", "4")
    fails(2, "invalid choice: 'trian'", "trian")
    fails(2, "no such folder: nowhere", "extract", "--data.root", "nowhere")
    fails(2, "no such run folder", "evaluate", tmp_path / "none")
    fails(2, "device 'cuda:99' is not available", "extract", "--data.root", tmp_path, "--device", "cuda:99")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("head:\n  hiden: 3\n", "c.yaml: unknown setting 'head.hiden'; did you mean 'head.hidden'?"),
        ("hed:\n  hidden: 3\n", "c.yaml: unknown setting 'hed.hidden'; did you mean 'head.hidden'?"),
        ("head:\n  hidden: wide\n", "c.yaml: head.hidden: input should be a valid integer"),
        ("head: [3\n", "c.yaml:2: not valid YAML"),
        ("- head\n", "c.yaml: expected 'name: value' lines, got list"),
        ("head: !!python/object:os.system {}\n", "c.yaml:1: not valid YAML"),
    ],
)
def test_wrong_configs_name_file_and_setting(tmp_path, text, message):
    (tmp_path / "c.yaml").write_text(text)
    fails(2, message, "train", "--config", tmp_path / "c.yaml")


def test_missing_config():
    fails(2, "none.yaml: cannot read the config", "extract", "--config", "none.yaml")


def test_command_line_wins_over_file_and_file_over_default(tmp_path):
    from pipeline.config import Config
    from pipeline.settings import build, to_yaml

    (tmp_path / "c.yaml").write_text("head:\n  hidden: 7\ntrain:\n  learning_rate: 1e-4\ntracking: off\n")
    config = build(Config, tmp_path / "c.yaml", {"sampling.frames": "9", "head.layers": "2"})
    assert (config.head.hidden, config.head.layers, config.sampling.frames) == (7, 2, 9)
    assert (config.train.learning_rate, config.tracking, config.train.epochs) == (1e-4, "off", 60)
    (tmp_path / "resolved.yaml").write_text(to_yaml(config))
    assert build(Config, tmp_path / "resolved.yaml", {}) == config


@pytest.mark.parametrize("name", ["demo", "ucf101", "hmdb51", "folder"])
def test_shipped_configs_are_valid(name):
    from pipeline.config import Config
    from pipeline.settings import build

    build(Config, REPOSITORY / "configs" / f"{name}.yaml", {})


def write_bad_clips(folder):
    whole = write_video(folder / "truncated.mp4", "libx264").read_bytes()
    (folder / "truncated.mp4").write_bytes(whole[: len(whole) // 2])
    (folder / "text.avi").write_text("This is not a video.\n" * 100)
    (folder / "empty.avi").touch()
    write_video(folder / "one_frame.mp4", "libx264", frames=1)
    write_audio(folder / "sound.mp4")


def write_audio(path):
    import av
    import numpy as np

    with av.open(path, "w") as container:
        stream = container.add_stream("aac", rate=16000)
        stream.layout = "mono"
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


def test_bad_clips_end_in_the_ledger_and_the_run_goes_on(tmp_path):
    for number in range(4):
        write_video(tmp_path / "videos" / "Good" / f"{number}.mp4", "libx264", frames=5)
    (tmp_path / "videos" / "Bad").mkdir()
    write_bad_clips(tmp_path / "videos" / "Bad")
    places = ["--data.root", tmp_path / "videos", "--store", tmp_path / "store", "--tracking", "off"]
    out, _ = kinema("extract", *places)
    assert "4 done, 0 skipped, 5 failed" in out
    [ledger] = (tmp_path / "store").glob("*/failures.jsonl")
    reasons = {record["clip"]: record["reason"] for record in map(json.loads, ledger.open())}
    assert set(reasons) == {f"Bad/{name}" for name in BAD_CLIPS}
    for name, reason in BAD_CLIPS.items():
        assert reason in reasons[f"Bad/{name}"]


BAD_CLIPS = {
    "truncated.mp4": "Invalid data",
    "text.avi": "Invalid data",
    "empty.avi": "empty file",
    "one_frame.mp4": "only one frame",
    "sound.mp4": "no video stream",
}


def test_nothing_readable_is_a_failure(tmp_path):
    (tmp_path / "videos" / "a").mkdir(parents=True)
    for number in range(9):
        (tmp_path / "videos" / "a" / f"{number}.avi").write_text("no video")
    _, error = kinema("extract", "--data.root", tmp_path / "videos", "--store", tmp_path / "store", code=1)
    assert "none of 9 clips could be read" in error


def test_predict_answers_for_every_file(tmp_path, small_set, trained):
    good = next((small_set / "videos" / "Grow").iterdir())
    write_bad_clips(tmp_path)
    files = [good, *(tmp_path / name for name in BAD_CLIPS), tmp_path / "none.mp4"]
    out, error = kinema("predict", trained, *files, "--json", "--top", "3", code=1)
    answers = {answer["path"]: answer for answer in map(json.loads, out.splitlines())}
    assert error.count("\n") == 6
    assert answers.keys() == {str(file) for file in files}
    top = answers[str(good)]["top"]
    assert (
        len(top) == 3 and 0 < top[0]["probability"] <= 1 and top[0]["label"] in ("Grow", "Shrink", "Appear", "Vanish")
    )
    for name, reason in BAD_CLIPS.items():
        assert reason in answers[str(tmp_path / name)]["error"]


def test_broken_bundles_are_refused_in_one_line(trained, tmp_path):
    import pickle
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(trained, copy)
    (copy / "model.safetensors").write_bytes(pickle.dumps({"a": 1}))
    fails(1, "model.safetensors: not a readable safetensors file", "predict", copy, "x.mp4")
    (copy / "model.safetensors").unlink()
    fails(1, "model.safetensors is missing", "predict", copy, "x.mp4")
    fails(1, "model.safetensors is missing", "evaluate", copy)


def test_tracking_off_works_without_wandb(trained, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # An import of it would now fail.
    kinema("evaluate", trained)
    with pytest.raises(ImportError):
        main(["evaluate", str(trained), "--tracking", "offline"])


def test_offline_tracking_keeps_a_run_to_sync(settings_of_small_set, trained, tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_DATA_DIR", raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    settings = [*settings_of_small_set, "--runs", tmp_path, "--tracking", "offline", "--train.epochs", 2]
    for arguments in (("train", *settings, "--run", "tracked"), ("evaluate", tmp_path / "tracked")):
        out, _ = kinema(*arguments)
        assert "upload with: wandb sync" in out
    kept = tmp_path / "tracked" / "wandb"
    assert len(list(kept.glob("offline-run-*"))) == 2
    assert len(list(kept.glob("offline-run-*/files/media/table/*.table.json"))) == 2
    assert len(list(kept.glob("offline-run-*/files/media/images/confusion*.png"))) == 1
    thumbnails = [path for path in kept.glob("artifacts/staging/*") if path.read_bytes().startswith(b"\x89PNG")]
    assert len(thumbnails) == 16
