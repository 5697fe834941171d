"""What a user meets: help, settings, and one line for each thing that goes wrong."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import timm
import torch
from safetensors.torch import save_file

from pipeline.base.errors import ConfigError
from pipeline.base.settings import build, to_yaml, yaml_differences
from pipeline.cli import main
from pipeline.config import OVERRIDABLE, Config, DataConfig
from pipeline.features import store
from pipeline.features.entry import decode_entry

from conftest import REPOSITORY, kinema, touch, write_video


def fails(code, message, *arguments):
    _, error = kinema(*arguments, code=code)
    assert message in error and error.count("\n") == 1 and error.startswith("kinema: "), error


@pytest.mark.parametrize("verb", ["extract", "train", "evaluate", "predict", "failures", "store"])
def test_help_is_readable(verb, capsys):
    with pytest.raises(SystemExit, match="0"):
        main([verb, "--help"])
    text = capsys.readouterr().out
    assert f"usage: kinema {verb}" in text
    assert ("--decode.timeout FLOAT" in text and "(default: 60.0)" in text) == (verb != "store")
    assert ("--head.hidden" in text) == (verb in ("extract", "train", "failures"))


def test_help_imports_neither_torch_nor_scipy():
    code = "import sys, pipeline.cli\ntry: pipeline.cli.main(['train', '--help'])\nexcept SystemExit: pass\n"
    code += "sys.exit(bool({'torch', 'numpy', 'scipy', 'matplotlib', 'av'} & {*sys.modules}))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_version():
    assert kinema("--version") == ("kinema 0.1.0\n", "")


def test_the_page_of_settings_is_up_to_date():
    command = [sys.executable, REPOSITORY / "scripts" / "settings_page.py"]
    page = subprocess.run(command, cwd=REPOSITORY, capture_output=True, encoding="utf-8", check=True).stdout
    assert page == (REPOSITORY / "docs" / "settings.md").read_text(encoding="utf-8")


def test_wrong_arguments(tmp_path):
    fails(2, "unknown argument '--head.hiden'; did you mean '--head.hidden'?", "train", "--head.hiden", "3")
    fails(2, "head.hidden: input should be a valid integer", "train", "--head.hidden", "many")
    fails(2, "head.kind: input should be 'bilstm', 'transformer'", "train", "--head.kind", "gru")
    fails(2, "data.split: input should be less than or equal to 3", "train", "--data.split", "4")
    fails(2, "invalid choice: 'trian'", "trian")
    fails(2, "expected one argument", "train", "--train.seed")
    fails(2, f"no such folder: {Path.cwd()}/nowhere", "extract", "--data.root", "nowhere")
    fails(2, "none", "evaluate", tmp_path / "none")
    for device in ("cuda:99", "meta"):
        fails(2, device, "extract", "--data.root", tmp_path, "--device", device)
    fails(2, "timeout: input should be less than or equal to 86400", "extract", "--decode.timeout", "inf")
    fails(2, "seed: input should be less than 4294967296", "train", "--train.seed", 20261127120000)
    fails(2, "max_missing: input should be less than or equal to 1", "train", "--max-missing=2")
    fails(2, "max_missing: input should be less than or equal to 1", "train", "--max_missing", 2)
    fails(2, "expected I/N", "extract", "--shard", "3/2")
    fails(2, "expected a number from 1 to 1000", "predict", "run", "video", "--top", "0")
    fails(2, "no video given", "predict", "run")
    fails(2, "FINGERPRINT is for prune", "store", "list", "abc")
    fails(2, "--repair for verify", "store", "--repair", "list")


def test_settings_that_a_run_fixes_are_refused(tmp_path):
    fails(2, "train.seed cannot be changed here, only data, store", "evaluate", tmp_path, "--train.seed", "3")
    fails(2, "sampling.frames cannot be changed here", "predict", "--sampling.frames=3", tmp_path, "x.mp4")
    fails(2, "max_missing cannot be changed here", "store", "--max-missing", 1)
    for names, name in ((OVERRIDABLE["predict"], "sampling.frames"), (OVERRIDABLE["evaluate"], "head.kind")):
        with pytest.raises(ConfigError, match=f"{name} cannot be changed here"):
            build(Config, None, {name: "1"}, names)
    assert build(Config, None, {"decode.timeout": 3}, OVERRIDABLE["predict"]).decode.timeout == 3


@pytest.mark.parametrize("name", ["-clip.mp4", "--clip.mp4", "-1.mp4"])
def test_files_that_begin_with_a_dash(name, monkeypatch):
    fails(2, f"put -- before it: kinema predict RUN -- {name}", "predict", "run", name)
    calls = []
    monkeypatch.setattr("pipeline.predict.predict", lambda **arguments: calls.append(arguments))
    kinema("predict", "--top", 3, "run", "a.mp4", "--json", "--device=cpu", "--", name, "--debug")
    [arguments] = calls
    assert arguments["videos"] == [Path("a.mp4"), Path(name), Path("--debug")]
    assert (arguments["run"], arguments["top"], arguments["as_json"]) == (Path("run"), 3, True)
    assert arguments["overrides"] == {"device": "cpu"}


def test_settings_may_stand_anywhere(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr("pipeline.extract.extract", lambda **arguments: calls.append(arguments))
    monkeypatch.setattr("pipeline.train.train", lambda **arguments: calls.append(arguments))
    (tmp_path / "birds.yaml").write_text("head: {hidden: 7}\n")
    kinema("extract", "--data.root=x", "--retry-failed", "--shard", "2/3", "--train.seed", 5)
    kinema("train", "--max-missing", 0.5, "--config", tmp_path / "birds.yaml", "--head.layers", 2)
    kinema("train", "--run", "b")
    assert calls[0]["shard"] == (2, 3) and calls[0]["retry_failed"] and calls[0]["config"].data.root == Path("x")
    assert calls[1]["config"].max_missing == 0.5 and calls[1]["config"].head.hidden == 7
    assert [call["run"] for call in calls[1:]] == ["birds", "b"]


@pytest.mark.parametrize(("name", "successor"), Config.OUTDATED.items())
def test_former_names_are_explained(tmp_path, name, successor):
    name, _, value = name.partition("=")
    message = f"{name}={value}: {successor}" if value else f"{name}: {successor}"
    fails(2, f"command line: {message}", "train", f"--{name}", value or "3")
    section, _, leaf = name.rpartition(".")
    text = f"{section}:\n  {leaf}: {value or 3}\n" if section else f"\n{leaf}: true\n"
    (tmp_path / "c.yaml").write_text(text)
    fails(2, f"c.yaml:2: {message}", "train", "--config", tmp_path / "c.yaml")


def test_null_unsets_a_path(tmp_path):
    (tmp_path / "c.yaml").write_text("data:\n  lists: list.csv\nbackbone:\n  weights: null\n")
    assert build(Config, tmp_path / "c.yaml", {}).data.lists == Path("list.csv")
    config = build(Config, tmp_path / "c.yaml", {"data.lists": "null"})
    assert config.data.lists is None and config.backbone.weights is None
    fails(2, "head.hidden: input should be a valid integer", "train", "--head.hidden", "null")


def test_home_and_empty_sections(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "c.yaml").write_text("train:\n  # epochs: 3\nhead:\nstore: ~/features\n")
    config = build(Config, tmp_path / "c.yaml", {"data.root": "~/videos"})
    assert config == Config(store=tmp_path / "features", data=DataConfig(root=tmp_path / "videos"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("head:\n  hiden: 3\n", "c.yaml:2: unknown setting 'head.hiden'; did you mean 'head.hidden'?"),
        (
            "head:\n  hidden: 3\ntrain:\n  epochs: 2\nhead:\n  layers: 2\n",
            "c.yaml:5: not valid YAML: 'head' is given twice",
        ),
        ("hed:\n  hidden: 3\n", "c.yaml:2: unknown setting 'hed.hidden'; did you mean 'head.hidden'?"),
        ("\nhead:\n  hidden: wide\n", "c.yaml:3: head.hidden: input should be a valid integer"),
        ("head: {hidden: 0}\n", "c.yaml:1: head.hidden: input should be greater than 0"),
        ("head: [3\n", "c.yaml:2: not valid YAML"),
        ("train: 5\n", "c.yaml:1: 'train' is a section, expected settings below it, got 5"),
        ("- head\n", "c.yaml:1: expected 'name: value' lines"),
        ("head: !!python/object:os.system {}\n", "c.yaml:1: not valid YAML"),
        ("a: &a {b: *a}\n", "c.yaml: not valid YAML"),
    ],
)
def test_wrong_configs_name_file_line_and_setting(tmp_path, text, message):
    (tmp_path / "c.yaml").write_text(text)
    fails(2, message, "train", "--config", tmp_path / "c.yaml")


def test_missing_config():
    fails(2, "none.yaml: cannot read the config", "extract", "--config", "none.yaml")


def test_command_line_wins_over_file_and_file_over_default(tmp_path):
    (tmp_path / "c.yaml").write_text("head:\n  hidden: 7\ntrain:\n  learning_rate: 1e-4\ntracking: off\n")
    config = build(Config, tmp_path / "c.yaml", {"sampling.frames": "9", "head.layers": "2", "data.root": "R\u00fcck"})
    assert (config.head.hidden, config.head.layers, config.sampling.frames) == (7, 2, 9)
    assert (config.train.learning_rate, config.tracking, config.train.epochs) == (1e-4, "off", 60)
    (tmp_path / "resolved.yaml").write_text(to_yaml(config), encoding="utf-8")
    assert build(Config, tmp_path / "resolved.yaml", {}) == config


def test_differences_between_configs():
    before, after = (build(Config, None, {"head.hidden": size, "store": str(size)}) for size in (3, 4))
    assert yaml_differences(to_yaml(before), to_yaml(after), ignore=("store",)) == ["head.hidden: 3, now 4"]
    assert not yaml_differences(to_yaml(before), to_yaml(after), ignore=("store", "head"))


@pytest.mark.parametrize("name", ["demo", "ucf101", "hmdb51", "folder"])
def test_shipped_configs_are_valid(name):
    build(Config, REPOSITORY / "configs" / f"{name}.yaml", {})


def test_output_is_printable_in_any_locale(tmp_path):
    """Class names need not fit the terminal's encoding."""
    touch(tmp_path, *(f"R\u00fcck/{number}.mp4" for number in range(4)))
    command = [sys.executable, "-m", "pipeline.cli", "failures", "--data.root", tmp_path, "--store", tmp_path / "none"]
    for locale in ({"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}):
        done = subprocess.run(list(map(str, command)), env=os.environ | locale, capture_output=True, text=True)
        assert "only one class, R" in done.stdout and "Traceback" not in done.stderr


def test_a_home_that_cannot_be_written_is_not_used(monkeypatch):
    names = ("MPLCONFIGDIR", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR")
    for name in names:
        monkeypatch.setenv(name, "")  # So that they are restored after the test.
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", "/proc/nowhere")
    kinema(code=2)
    assert all(Path(os.environ[name]).is_dir() for name in names)


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
    out, _ = extract(tmp_path)
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


def healthy(folder, clips=4):
    for number in range(clips):
        write_video(folder / "Good" / f"{number}.mp4", "libx264", frames=5)
    return folder


def quick(folder):
    """Settings for `folder/videos`, two frames per clip, with a small CNN of random weights that starts in no time."""
    weights = folder / "cnn.safetensors"
    if not weights.exists():
        torch.manual_seed(0)
        save_file(timm.create_model("test_efficientnet", num_classes=0).state_dict(), weights)
    places = ["--data.root", folder / "videos", "--store", folder / "store", "--runs", folder, "--tracking", "off"]
    return [*places, "--sampling.frames", 2, "--backbone.model", "test_efficientnet", "--backbone.weights", weights]


def extract(tmp_path, *more, code=0):
    return kinema("extract", *quick(tmp_path), *more, code=code)


def test_a_pipe_that_never_gives_a_byte_costs_its_deadline_and_no_clip(tmp_path):
    healthy(tmp_path / "videos")
    os.mkfifo(tmp_path / "videos" / "Good" / "clip.avi")
    began = time.monotonic()
    assert "4 done, 0 skipped, 1 failed" in extract(tmp_path, "--decode.timeout", 4)[0]
    assert time.monotonic() - began < 30
    [ledger] = (tmp_path / "store").glob("*/failures.jsonl")
    [line] = map(json.loads, ledger.open())
    assert (line["clip"], line["reason"], line["attempt"]) == ("Good/clip.avi", "timeout 4 s", 1)
    again, _ = extract(tmp_path, "--decode.timeout", 4)
    assert "0 done, 4 skipped, 0 failed" in again and "not tried again: 1 clips" in again
    assert "0 done, 4 skipped, 1 failed" in extract(tmp_path, "--decode.timeout", 1, "--retry-failed")[0]


def test_shards_do_all_clips_between_them(tmp_path):
    healthy(tmp_path / "videos", clips=5)
    assert "3 done, 0 skipped" in extract(tmp_path, "--shard", "1/2")[0]
    assert "2 done, 0 skipped" in extract(tmp_path, "--shard", "2/2")[0]
    assert "0 done, 5 skipped" in extract(tmp_path)[0]


def test_a_reader_that_has_read_enough_is_no_error(tmp_path):
    healthy(tmp_path / "videos")
    extract(tmp_path)
    command = f"{sys.executable} -m pipeline.cli store --store {tmp_path / 'store'} | true; exit ${{PIPESTATUS[0]}}"
    usual = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    ended = subprocess.run(["bash", "-c", command], cwd=REPOSITORY, env=usual, capture_output=True, text=True)
    assert ended.stderr == "" and ended.returncode in (0, 128 + signal.SIGPIPE)


def test_the_store_is_listed_verified_mended_and_pruned(tmp_path):
    healthy(tmp_path / "videos")
    extract(tmp_path)
    store = ["--store", tmp_path / "store"]
    listed, _ = kinema("store", *store)
    [folder] = (tmp_path / "store").iterdir()
    assert folder.name in listed and "test_efficientnet" in listed
    assert f"{sum(file.stat().st_size for file in folder.rglob('*.*')) / 1e6:.1f} MB" in listed
    assert "nothing wrong" in kinema("store", "verify", *store)[0]

    damaged, *_ = folder.glob("??/*.safetensors")
    damaged.write_bytes(damaged.read_bytes()[:-1])
    clips = sorted((tmp_path / "videos" / "Good").iterdir())
    ids = {clip_id: path for path in folder.glob("??/*.safetensors") if path != damaged for clip_id in [id_of(path)]}
    touched, changed, gone = (tmp_path / "videos" / clip_id for clip_id in sorted(ids))
    os.utime(touched)
    changed.write_bytes(changed.read_bytes() + b"x")
    gone.unlink()
    out, error = kinema("store", "verify", *store, code=1)
    assert all(f"1 {kind}" in out for kind in ("damaged", "touched", "outdated", "orphan"))
    assert error.splitlines()[-1].startswith("kinema: ") and "4 entries are not right" in error
    _, error = kinema("store", "verify", "--repair", *store, code=1)
    assert "1 entries are not right; where videos were moved or renamed, kinema extract takes them over" in error
    assert "1 done, 2 skipped, 0 failed" in extract(tmp_path)[0] and len(clips) == 4

    fails(2, "no setting 0123", "store", "prune", "0123", *store)
    (folder / "manifest.json").write_text('{"backbone": {}}')
    assert f"{folder.name}  its manifest.json is damaged" in kinema("store", *store)[0]
    kinema("store", "prune", folder.name, *store)
    assert not folder.exists()


def id_of(path):
    return decode_entry(path)[0]


def test_a_touched_data_set_is_not_computed_again(tmp_path):
    for clip in (healthy(tmp_path / "videos") / "Good").iterdir():
        os.utime(clip, ns=(0, 0))
    extract(tmp_path)
    for clip in (tmp_path / "videos" / "Good").iterdir():
        os.utime(clip)
    assert "0 done, 4 skipped, 0 failed" in extract(tmp_path)[0]


def test_a_damaged_copy_of_a_data_set_is_not_taken_for_the_original(tmp_path):
    """Its size and time of change are the same."""
    extract(tmp_path, "--data.root", healthy(tmp_path / "before"))
    shutil.copytree(tmp_path / "before", tmp_path / "videos")
    clip = tmp_path / "videos" / "Good" / "0.mp4"
    stat = clip.stat()
    clip.write_bytes(bytes(stat.st_size))
    os.utime(clip, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    shutil.rmtree(tmp_path / "before")
    assert "0 done, 3 skipped, 1 failed" in extract(tmp_path)[0]
    assert "1 of 4 clips could not be read" in kinema("failures", *quick(tmp_path))[0]


def test_failures_are_grouped_and_can_be_looked_at(tmp_path):
    healthy(tmp_path / "videos")
    for number in range(3):
        (tmp_path / "videos" / "Good" / f"text{number}.avi").write_text("This is not a video.")
    (tmp_path / "videos" / "Good" / "empty.avi").touch()
    cut_off = write_video(tmp_path / "videos" / "Good" / "cut.avi", "mpeg4")
    cut_off.write_bytes(cut_off.read_bytes()[: int(cut_off.stat().st_size * 0.8)])
    extract(tmp_path)
    (tmp_path / "c.yaml").write_text(
        f"data: {{root: {tmp_path / 'videos'}}}\nstore: {tmp_path / 'store'}\nsampling: {{frames: 2}}\n"
        f"backbone: {{model: test_efficientnet, weights: {tmp_path / 'cnn.safetensors'}}}\n"
    )
    out, _ = kinema("failures", "--config", tmp_path / "c.yaml")
    assert "1 clips are partial: damage left fewer frames than planned\n    Good/cut.avi: 1 of 2\n" in out
    assert "4 of 9 clips could not be read" in out and "3 x Invalid data" in out and "1 x empty file" in out
    assert f"kinema failures --config {tmp_path / 'c.yaml'} --clip=Good/text0.avi" in out
    [ledger] = (tmp_path / "store").glob("*/failures.jsonl")
    lines = ledger.read_text().splitlines(keepends=True)
    ledger.write_text("".join(line.replace("Invalid data", f"{n} bytes") for n, line in enumerate(lines)))
    out, _ = kinema("failures", "--config", tmp_path / "c.yaml")
    assert "3 x # bytes" in out and re.search(r"text0.avi: \d bytes", out)
    out, _ = kinema("failures", "--config", tmp_path / "c.yaml", "--clip", "Good/0.mp4")
    assert "container: 5 of 5 frames" in out and "decord: 2 of 2 frames" in out and "pyav: 2 of 2 frames" in out
    out, _ = kinema("failures", "--config", tmp_path / "c.yaml", "--clip", "Good/text0.avi")
    assert out.count("Invalid data") == 3
    fails(2, "no such clip", "failures", "--config", tmp_path / "c.yaml", "--clip", "Good/none.avi")


def test_too_many_missing_clips_stop_training(tmp_path):
    for label in ("Good", "Bad"):
        for number in range(20):
            path = write_video(tmp_path / "videos" / label / f"{label}{number}.mp4", "libx264", frames=5)
            if label == "Bad" and number < 6:
                path.write_text("This is not a video.")
    extract(tmp_path)
    settings = [*quick(tmp_path), "--run", "few", "--train.epochs", 1]
    _, error = kinema("train", *settings, code=1)
    assert "could not be read (Bad" in error and "and --max-missing 0.05 allows 2;" in error
    assert "could not be read (Bad" in kinema("train", *settings, "--max-missing", 0.5)[0]


def test_a_full_disk_is_told_in_one_line_and_loses_nothing(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=700k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small disk can be made by root alone")
    try:
        healthy(tmp_path / "videos", clips=40)
        settings = ["--store", disk / "store", "--sampling.frames", 4]
        _, error = extract(tmp_path, *settings, code=1)
        assert "No space left on device: about" in error and "MB are missing" in error and str(disk) in error
        assert error.splitlines()[-1].startswith("kinema: ")
        subprocess.run([*mount[:4], "remount,size=4m", str(disk)], check=True)
        out, _ = extract(tmp_path, *settings)
        assert re.search(r"\d+ done, [1-9]\d* skipped, 0 failed", out)
        assert "nothing wrong" in kinema("store", "verify", "--store", disk / "store")[0]
        subprocess.run([*mount[:4], "remount,ro", str(disk)], check=True)
        assert "0 done, 40 skipped, 0 failed" in extract(tmp_path, *settings)[0]
        write_video(tmp_path / "videos" / "Good" / "new.mp4", "libx264", frames=5)
        assert "Read-only file system" in extract(tmp_path, *settings, code=1)[1]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_an_interrupted_extraction_ends_clean(tmp_path):
    """Ctrl-C in a terminal reaches the workers too."""
    healthy(tmp_path / "videos", clips=60)
    command = [sys.executable, "-m", "pipeline.cli", "extract", "--data.root", tmp_path / "videos"]
    command += ["--store", tmp_path / "store", "--sampling.frames", "4"]
    process = subprocess.Popen(
        list(map(str, command)), cwd=REPOSITORY, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    while not list((tmp_path / "store").glob("*/??/*.safetensors")):
        assert process.poll() is None
        time.sleep(0.02)
    children = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=30)
    assert process.returncode == -signal.SIGINT
    assert error.splitlines()[-1] == "kinema: Interrupted. Finished work is kept; run the same command to resume."
    _, alive = psutil.wait_procs(children, timeout=10)
    assert len(children) >= 3 and not alive
    assert not list((tmp_path / "store").rglob("*.tmp"))


@pytest.mark.parametrize("seconds", [0.2, 1])
def test_an_interruption_at_the_start_is_a_line(tmp_path, seconds):
    """While the processes that decode are still being imported."""
    healthy(tmp_path / "videos", clips=60)
    command = [sys.executable, "-m", "pipeline.cli", "extract", "--data.root", tmp_path / "videos"]
    command = list(map(str, [*command, "--store", tmp_path / "store"]))
    process = subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while not psutil.Process(process.pid).children():
        time.sleep(0.01)
    time.sleep(seconds)
    os.killpg(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=30)
    assert process.returncode == -signal.SIGINT
    assert "Traceback" not in error and error.splitlines()[-1].startswith("kinema: Interrupted.")


def test_names_cannot_steer_the_terminal_or_break_the_report(tmp_path):
    names = ["\x1b[2Jclear", "new\nline", "<script>", "a|b", "$x", os.fsdecode(b"latin\xe9")]
    for name in names:
        for number in range(4):
            write_video(tmp_path / "videos" / name / f"{name.replace('|', '')}{number}.mp4", "libx264", frames=5)
    (tmp_path / "videos" / names[0] / "bad\x07.mp4").write_text("This is not a video.")
    settings = [*quick(tmp_path), "--max-missing", 1]
    printed = [*kinema("extract", *settings), *kinema("train", *settings, "--run", "odd", "--train.epochs", 1)]
    printed += kinema("evaluate", tmp_path / "odd")
    printed += kinema("predict", tmp_path / "odd", tmp_path / "videos" / names[0] / "bad\x07.mp4", code=1)
    printed += kinema("predict", tmp_path / "odd", next((tmp_path / "videos" / names[0]).glob("*0.mp4")))
    assert not any(char in text for text in printed for char in "\x1b\x07")
    report = (tmp_path / "odd" / "report.md").read_text()
    assert "<script>" not in report and "&lt;script&gt;" in report and "a&#124;b" in report
    assert len((tmp_path / "odd" / "classes.txt").read_text().splitlines()) == len(names)


def test_nothing_readable_is_a_failure(tmp_path):
    (tmp_path / "videos" / "a").mkdir(parents=True)
    for number in range(9):
        (tmp_path / "videos" / "a" / f"{number}.avi").write_text("no video")
    _, error = extract(tmp_path, code=1)
    assert "none of 9 clips could be read" in error


def test_predict_answers_for_every_file(tmp_path, small_set, trained):
    good = next((small_set / "videos" / "Grow").iterdir())
    write_bad_clips(tmp_path)
    cut_off = write_video(tmp_path / "cut off.avi", "mpeg4")
    cut_off.write_bytes(cut_off.read_bytes()[: int(cut_off.stat().st_size * 0.85)])
    files = [good, *(tmp_path / name for name in BAD_CLIPS), tmp_path / "none.mp4", cut_off]
    out, error = kinema("predict", trained, *files, "--json", "--top", "3", code=1)
    answers = {answer["path"]: answer for answer in map(json.loads, out.splitlines())}
    assert error.count("\n") == 6
    assert answers.keys() == {str(file) for file in files}
    assert (answers[str(good)]["frames"], answers[str(good)]["planned"]) == (6, 6)
    assert answers[str(cut_off)]["frames"] == 4
    assert "cut off.avi (damaged: 4 of 6 frames)\n" in kinema("predict", trained, cut_off)[0]
    fails(2, f"{tmp_path}: a folder; name the files in it, such as {tmp_path}/*", "predict", trained, tmp_path)
    top = answers[str(good)]["top"]
    assert (
        len(top) == 3 and 0 < top[0]["probability"] <= 1 and top[0]["label"] in ("Grow", "Shrink", "Appear", "Vanish")
    )
    for name, reason in BAD_CLIPS.items():
        assert reason in answers[str(tmp_path / name)]["error"]


def test_broken_bundles_are_refused_in_one_line(trained, tmp_path):
    import pickle

    copy = tmp_path / "copy"
    shutil.copytree(trained, copy)
    model = (copy / "model.safetensors").read_bytes()
    for place in (-1, -len(model) // 2):
        other = bytearray(model)
        other[place] ^= 1
        (copy / "model.safetensors").write_bytes(other)
        fails(1, "model.safetensors: damaged since training", "predict", copy, "x.mp4")
    (copy / "model.safetensors").write_bytes(model)
    cnn = (copy / "backbone.safetensors").read_bytes()
    (copy / "backbone.safetensors").write_bytes(cnn[:-1] + bytes([cnn[-1] ^ 1]))
    fails(1, "not the CNN that the heads were trained with", "predict", copy, "x.mp4")
    history = (copy / "history.json").read_text()
    (copy / "history.json").write_text("")
    fails(1, "history.json: damaged", "evaluate", copy)
    (copy / "history.json").write_text(history)
    save_file({"a": torch.zeros(1)}, copy / "model.safetensors")
    fails(1, "model.safetensors: damaged since training", "evaluate", copy)
    (copy / "model.safetensors").write_bytes(pickle.dumps({"a": 1}))
    fails(1, "model.safetensors: not a readable safetensors file", "predict", copy, "x.mp4")
    (copy / "model.safetensors").unlink()
    fails(1, "model.safetensors is missing", "predict", copy, "x.mp4")
    fails(1, "model.safetensors is missing", "evaluate", copy)


def test_features_of_another_version_are_not_used(settings_of_small_set, trained, monkeypatch):
    video = settings_of_small_set[1] / "Grow" / "v_Grow_g01_c01.avi"
    kinema("predict", trained, video, "--backbone.engine", "torch", "--backbone.precision", "fp32")
    monkeypatch.setattr(store, "FORMAT", store.FORMAT + 1)
    fails(1, "features that another version of Kinema or timm made; extract and train again", "predict", trained, video)
    fails(1, "no features with these settings; run kinema extract", "train", *settings_of_small_set, "--run", "newer")


def test_a_full_gpu_is_reported_in_one_line(monkeypatch):
    def out_of_memory(**_):
        of_gpu = "GPU 0 has a total capacity of 7.79 GiB of which 1.05 GiB is free. Of the allocated memory 5.12 GiB is"
        raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate 2.00 GiB. {of_gpu} allocated by PyTorch")

    monkeypatch.setattr("pipeline.train.train", out_of_memory)  # No GPU is at hand to fill.
    fails(1, "Tried to allocate 2.00 GiB; stop other programs on the GPU or use --device cpu", "train")


def test_tracking_off_works_without_wandb(trained, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # An import of it would now fail.
    kinema("evaluate", trained)
    with monkeypatch.context() as patch:
        patch.setenv("WANDB_MODE", "disabled")
        kinema("evaluate", trained, "--tracking", "auto")
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
    monkeypatch.setenv("WANDB_MODE", "of line")
    _, error = kinema("evaluate", trained, "--tracking", "auto", code=1)
    assert "'dryrun' or 'run'); use --tracking offline or off\n" in error
