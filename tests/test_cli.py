"""The command line: help, settings, exit codes, and one line for each expected error."""

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pipeline.base.errors import ConfigError, command
from pipeline.base.settings import build, flatten, to_yaml, yaml_differences
from pipeline.cli import ARGUMENTS, COMMANDS, main
from pipeline.config import OVERRIDABLE, Config, DataConfig

from conftest import REPOSITORY, kinema, quick_settings, touch, write_csv, write_video


def fails(code, message, *arguments):
    _, error = kinema(*arguments, code=code)
    assert message in error and error.count("\n") == 1 and error.startswith("kinema: "), error


@pytest.fixture
def calls(monkeypatch):
    """The arguments with which the commands were called, in place of their work."""
    found = []
    for name in ("extract.extract", "train.train", "evaluate.evaluate", "predict.predict"):
        monkeypatch.setattr(f"pipeline.{name}", lambda **arguments: found.append(arguments))
    return found


def test_help_lists_the_verbs(capsys):
    assert kinema("--help") == kinema("-h")
    assert all(f"  {command} " in kinema("--help")[0] for command in COMMANDS)
    assert kinema("--version") == ("kinema 0.1.0\n", "")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_the_arguments_and_settings_of_a_command(command, capsys):
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    text = capsys.readouterr().out
    assert f"usage: kinema {command}" in text and COMMANDS[command] in text
    assert all(name in text for commands, name, _ in ARGUMENTS if name.startswith("--") and command in commands)
    assert ("--decode.timeout FLOAT" in text and "(default: 60.0)" in text) == (command not in ("store", "compare"))
    assert ("--head.hidden" in text) == (command in ("extract", "train", "sweep", "failures"))


def test_help_imports_no_slow_library():
    """So that it takes less than 0.3 s."""
    code = "import sys, pipeline.cli\ntry: pipeline.cli.main(['train', '--help'])\nexcept SystemExit: pass\n"
    code += "sys.exit(bool({'torch', 'numpy', 'scipy', 'jinja2', 'av', 'pydantic'} & {*sys.modules}))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_the_page_of_settings_is_up_to_date():
    command = [sys.executable, REPOSITORY / "scripts" / "settings_page.py"]
    page = subprocess.run(command, cwd=REPOSITORY, capture_output=True, encoding="utf-8", check=True).stdout
    assert page == (REPOSITORY / "docs" / "settings.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("", "unknown command ''; see kinema --help"),
        ("trian", "unknown command 'trian'; did you mean 'train'?"),
        ("train --head.hiden 3", "unknown argument '--head.hiden'; did you mean 'head.hidden'?"),
        ("extract --retry-faild", "unknown argument '--retry-faild'; did you mean 'retry_failed'?"),
        ("train data", "unknown argument 'data'"),
        ("train --train.seed", "--train.seed: expected one argument"),
        ("train --head.hidden many", "head.hidden: input should be a valid integer"),
        ("train --head.hidden null", "head.hidden: input should be a valid integer"),
        ("train --head.kind gru", "head.kind: input should be 'bilstm', 'lstm'"),
        ("train --data.split 4", "data.split: input should be less than or equal to 3"),
        ("train --max-missing=2", "max_missing: input should be less than or equal to 1"),
        ("train --max_missing 2", "max_missing: input should be less than or equal to 1"),
        ("train --train.seed 20261127120000", "train.seed: input should be less than 4294967296"),
        ("train --config none.yaml", "none.yaml: no such config file"),
        ("extract --decode.timeout inf", "decode.timeout: input should be less than or equal to 86400"),
        ("extract --shard 3/2", "expected I/N"),
        ("extract --data.root nowhere", "no such folder"),
        ("extract --data.root . --device cuda:99", "device 'cuda:99'"),
        ("extract --data.root . --device meta", "device 'meta'"),
        ("evaluate none", "none: no such run"),
        ("predict run", "required: SOURCE"),
        ("predict run video --top many", "argument --top: invalid int value"),
        ("predict . a.mp4 --top 0", "--top must be at least 1, got 0"),
        ("predict . a.mp4 --top -1", "--top must be at least 1, got -1"),
        ("store lst", "argument action: invalid choice: 'lst'"),
        ("store list abc", "FINGERPRINT is for prune"),
        ("store --repair list", "--repair for verify"),
    ],
)
def test_wrong_arguments(command, message):
    fails(2, message, *command.split())


@pytest.mark.parametrize("command", ["evaluate", "predict", "store"])
def test_settings_that_a_run_fixes_are_refused(command):
    for name in [name for name in flatten(Config) if name.split(".")[0] in ("sampling", "head", "train", "runs")]:
        values = {"evaluate": ["run"], "predict": ["run", "x.mp4"], "store": []}[command]
        fails(2, f"{name} cannot be set here, only ", command, f"--{name}", "1", *values)
        with pytest.raises(ConfigError, match=f"{name} cannot be set here"):
            build(Config, None, {name: "1"}, OVERRIDABLE[command])


def test_settings_that_a_run_does_not_fix_are_taken(calls):
    kinema("evaluate", "run", "--max-missing", 0.5, "--decode.timeout", 3)
    kinema("predict", "run", "--backbone.engine=torch", "x.mp4")
    overrides = {"max_missing": "0.5", "decode.timeout": "3"}
    assert calls[0] == {"run": Path("run"), "segments": False, "overrides": overrides}
    assert calls[1]["overrides"] == {"backbone.engine": "torch"}
    assert build(Config, None, {"decode.timeout": 3}, OVERRIDABLE["predict"]).decode.timeout == 3


@pytest.mark.parametrize("name", ["-clip.mp4", "--clip.mp4", "-1.mp4", "/a/-b.mp4"])
def test_files_that_begin_with_a_dash(name, calls):
    kinema("predict", "--top", 3, "run", "a.mp4", "--json", "--device=cpu", "--", name, "b.mp4")
    [arguments] = calls
    assert [*map(Path, arguments["sources"])] == [Path("a.mp4"), Path(name), Path("b.mp4")]
    assert (arguments["run"], arguments["top"], arguments["style"]) == (Path("run"), 3, "json")
    assert arguments["overrides"] == {"device": "cpu"}


def test_arguments_and_settings_in_any_order(tmp_path, calls):
    (tmp_path / "birds.yaml").write_text("head: {hidden: 7}\n")
    kinema("extract", "--data.root=x", "--retry-failed", "--shard", "2/3", "--train.seed", 5)
    kinema("train", "--max-missing", 0.5, "--config", tmp_path / "birds.yaml", "--head.pca_components", 2)
    kinema("train", "--run", "b_c", "--head.pca-components=3")
    assert calls[0]["shard"] == (2, 3) and calls[0]["retry_failed"] and calls[0]["config"].data.root == Path("x")
    assert calls[1]["config"].max_missing == 0.5 and calls[1]["config"].head.hidden == 7
    assert [call["config"].head.pca_components for call in calls[1:]] == [2, 3]
    assert [call["run"] for call in calls[1:]] == ["birds", "b_c"]


@pytest.mark.parametrize(("old", "new"), Config.RENAMED.items())
def test_former_names_lead_to_the_new_ones(tmp_path, old, new):
    fails(2, f"unknown argument '--{old.replace('_', '-')}'; did you mean '{new}'?", "train", f"--{old}", 3)
    section, leaf = old.split(".")
    (tmp_path / "c.yaml").write_text(f"{section}:\n  {leaf}: 3\n")
    fails(2, f"c.yaml:2: unknown setting '{old}'; did you mean '{new}'?", "train", "--config", tmp_path / "c.yaml")
    assert new in flatten(Config)


def test_null_home_and_empty_sections(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "c.yaml").write_text("train:\n  # epochs: 3\nhead:\nstore: ~/features\nbackbone: {weights: null}\n")
    config = build(Config, tmp_path / "c.yaml", {"data.root": "~/videos", "data.lists": "null"})
    assert config == Config(store=tmp_path / "features", data=DataConfig(root=tmp_path / "videos"))
    (tmp_path / "c.yaml").write_text("data:\n  lists: list.csv\n")
    assert build(Config, tmp_path / "c.yaml", {}).data.lists == Path("list.csv")
    assert build(Config, tmp_path / "c.yaml", {"data.lists": "null"}).data.lists is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("head:\n  hiden: 3\n", "c.yaml:2: unknown setting 'head.hiden'; did you mean 'head.hidden'?"),
        ("hed:\n  hidden: 3\n", "c.yaml:2: unknown setting 'hed.hidden'; did you mean 'head.hidden'?"),
        ("head:\n  hidden: 3\n  hidden: 2\n", "c.yaml:3: not valid YAML: 'head.hidden' is given twice"),
        ("\nhead:\n  hidden: wide\n", "c.yaml:3: head.hidden: input should be a valid integer"),
        ("head: {hidden: 0}\n", "c.yaml:1: head.hidden: input should be greater than 0"),
        ("head:\n  hidden:\n", "c.yaml:2: head.hidden: input should be a valid integer"),
        ("head: [3\n", "c.yaml:2: not valid YAML"),
        ("head: {hidden: [3]}\n", "c.yaml:1: not valid YAML: expected 'name: value' lines"),
        ("train: 5\n", "c.yaml:1: 'train' is a section, expected settings below it, got '5'"),
        ("- head\n", "c.yaml:1: not valid YAML: expected 'name: value' lines"),
        ("store: !!python/object/apply:os.getcwd []\n", "c.yaml:1: not valid YAML"),
        ("a: &a {b: *a}\n", "c.yaml: not valid YAML"),
        ("# caf\xe9\n", "c.yaml: not valid YAML"),
    ],
)
def test_wrong_configs_name_file_line_and_setting(tmp_path, text, message):
    (tmp_path / "c.yaml").write_bytes(text.encode("latin-1"))
    fails(2, message, "train", "--config", tmp_path / "c.yaml")


def test_command_line_wins_over_file_and_file_over_default(tmp_path):
    (tmp_path / "c.yaml").write_text("head:\n  hidden: 7\ntrain: {learning_rate: 1e-4, refit: no}\ntracking: off\n")
    config = build(Config, tmp_path / "c.yaml", {"sampling.frames": "9", "head.hidden": "2", "data.root": "R\u00fcck"})
    assert (config.head.hidden, config.sampling.frames, config.train.refit) == (2, 9, False)
    assert (config.train.learning_rate, config.tracking, config.train.epochs) == (1e-4, "off", 48)
    (tmp_path / "resolved.yaml").write_text(to_yaml(config), encoding="utf-8")
    assert build(Config, tmp_path / "resolved.yaml", {}) == config


def test_differences_between_configs():
    before, after = (build(Config, None, {"head.hidden": size, "store": str(size)}) for size in (3, 4))
    assert yaml_differences(to_yaml(before), to_yaml(after), ignore=("store",)) == ["head.hidden: 3, now 4"]
    assert not yaml_differences(to_yaml(before), to_yaml(after), ignore=("store", "head"))


@pytest.mark.parametrize("name", ["demo", "ucf101", "hmdb51", "folder"])
def test_shipped_configs_are_valid(name):
    build(Config, REPOSITORY / "configs" / f"{name}.yaml", {})


def test_debug_shows_the_traceback():
    with pytest.raises(ConfigError):
        main(["train", "--head.hidden", "0", "--debug"])


def test_stopped_by_a_signal(monkeypatch, capsys):
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # Restored after the test.
    monkeypatch.setattr("pipeline.train.train", lambda **_: os.kill(os.getpid(), signal.SIGTERM))
    assert kinema("train", code=128 + signal.SIGTERM)[1].startswith("kinema: Interrupted. Computed features are kept")
    monkeypatch.setattr("pipeline.train.train", lambda **_: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        main(["train"])


def test_output_is_printable_in_any_locale(tmp_path):
    """Class names need not fit the terminal's encoding."""
    touch(tmp_path, *(f"R\u00fcck/{number}.mp4" for number in range(4)))
    command = [sys.executable, "-m", "pipeline.cli", "train", "--data.root", tmp_path, "--runs", tmp_path / "runs"]
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(list(map(str, command)), env=os.environ | locale, capture_output=True, text=True)
    assert "only one class, R" in done.stdout and "Traceback" not in done.stderr


def test_a_home_that_cannot_be_written_is_not_used(monkeypatch):
    names = "MPLCONFIGDIR", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR"
    for name in names:
        monkeypatch.setenv(name, "")  # Restored after the test.
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", "/proc/nowhere")
    kinema(code=2)
    assert all(os.access(os.environ[name], os.W_OK) for name in names)


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


def extract(tmp_path, *more, code=0):
    return kinema("extract", *quick_settings(tmp_path), *more, code=code)


def test_a_reader_that_has_read_enough_is_no_error(tmp_path):
    healthy(tmp_path / "videos")
    extract(tmp_path)
    command = f"{sys.executable} -m pipeline.cli store --store {tmp_path / 'store'} | true; exit ${{PIPESTATUS[0]}}"
    usual = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    ended = subprocess.run(["bash", "-c", command], cwd=REPOSITORY, env=usual, capture_output=True, text=True)
    assert ended.stderr == "" and ended.returncode in (0, 128 + signal.SIGPIPE)


def test_too_many_missing_clips_stop_training(tmp_path):
    for label in ("Good", "Bad"):
        for number in range(20):
            path = write_video(tmp_path / "videos" / label / f"{label}{number}.mp4", "libx264", frames=5)
            if label == "Bad" and number < 6:
                path.write_text("This is not a video.")
    extract(tmp_path)
    settings = [*quick_settings(tmp_path), "--run", "few", "--train.epochs", 1]
    _, error = kinema("train", *settings, code=1)
    assert "could not be read (Bad" in error and "--max-missing 0.05 allows 2." in error
    assert "could not be read (Bad" in kinema("train", *settings, "--max-missing", 0.5)[0]


def test_unreadable_test_clips_stop_training_too(tmp_path):
    names = [f"{label}/{split}.mp4" for label in "ab" for split in ("train", "val", "test")]
    for name in names:
        path = write_video(tmp_path / "videos" / name, "libx264", frames=5)
        if path.stem == "test":
            path.write_text(f"This is not a video, {name}.")
    rows = [(name, name[0], name[2:-4]) for name in names]
    settings = [
        *quick_settings(tmp_path),
        "--data.lists",
        write_csv(tmp_path / "l.csv", ("path", "label", "split"), *rows),
    ]
    kinema("extract", *settings)
    _, error = kinema("train", *settings, "--run", "few", code=1)
    assert "test: 2 of 2 clips could not be read" in error


def test_commands_in_messages_can_be_pasted(monkeypatch, tmp_path):
    (tmp_path / "kinema").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert command("predict", "my clip.mp4") == "kinema predict 'my clip.mp4'"
    (tmp_path / "kinema").unlink()
    program, *arguments = shlex.split(command("predict", "\x1b[2J"))
    assert Path(program).is_file() and arguments[-2:] == ["predict", "\\x1b[2J"]


def test_names_cannot_steer_the_terminal_or_break_the_report(tmp_path):
    names = ["\x1b[2Jclear", "new\nline", "<script>", "a|b", "$x", os.fsdecode(b"latin\xe9")]
    for name in names:
        for number in range(4):
            write_video(tmp_path / "videos" / name / f"{name.replace('|', '')}{number}.mp4", "libx264", frames=5)
    (tmp_path / "videos" / names[0] / "bad\x07.mp4").write_text("This is not a video.")
    settings = [*quick_settings(tmp_path), "--max-missing", 1]
    printed = [*kinema("extract", *settings), *kinema("train", *settings, "--run", "odd", "--train.epochs", 1)]
    printed += [*kinema("failures", *settings), *kinema("evaluate", tmp_path / "odd")]
    printed += kinema("predict", tmp_path / "odd", tmp_path / "videos" / names[0] / "bad\x07.mp4", code=1)
    printed += kinema("predict", tmp_path / "odd", next((tmp_path / "videos" / names[0]).glob("*0.mp4")))
    assert not any(char in text for text in printed for char in "\x1b\x07")
    report = (tmp_path / "odd" / "report.html").read_text()
    assert report.count("<script>") == 1 and "&lt;script&gt;" in report  # One is the page's own.
    assert len((tmp_path / "odd" / "classes.txt").read_text().splitlines()) == len(names)


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
    top = answers[str(good)]["top"]
    assert (
        len(top) == 3 and 0 < top[0]["probability"] <= 1 and top[0]["label"] in ("Grow", "Shrink", "Appear", "Vanish")
    )
    for name, reason in BAD_CLIPS.items():
        assert reason in answers[str(tmp_path / name)]["error"]


def test_features_of_another_version_are_not_used(settings_of_small_set, trained, monkeypatch):
    video = settings_of_small_set[1] / "Grow" / "v_Grow_g01_c01.avi"
    kinema("predict", trained, video, "--backbone.engine", "torch", "--backbone.precision", "fp32")
    monkeypatch.setattr("pipeline.features.store.FORMAT", 99)
    fails(1, "features that another version of Kinema or timm made; extract and train again", "predict", trained, video)
    fails(1, "no features with these settings; run kinema extract", "train", *settings_of_small_set, "--run", "newer")


def test_a_full_gpu_is_reported_in_one_line(monkeypatch):
    def out_of_memory(**_):
        of_gpu = "GPU 0 has a total capacity of 7.79 GiB of which 1.05 GiB is free. Of the allocated memory 5.12 GiB is"
        raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate 2.00 GiB. {of_gpu} allocated by PyTorch")

    monkeypatch.setattr("pipeline.train.train", out_of_memory)  # No GPU is at hand to fill.
    fails(1, "out of memory. Tried to allocate 2.00 GiB", "train")
    fails(1, "; stop other programs on the GPU or use --device cpu", "train")
