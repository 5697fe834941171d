"""Extraction as a user runs it, and the commands `failures` and `store`."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
import safetensors
import timm
import torch
from safetensors.torch import save_file

from pipeline import extract as command
from pipeline.config import BackboneConfig, Config, DecodeConfig, SamplingConfig
from pipeline.data.clip import Clip
from pipeline.features.backbone import Backbone
from pipeline.features.extraction import clip_features
from pipeline.features.store import FeatureStore
from pipeline.features.throughput import Throughput

from conftest import REPOSITORY, kinema, quick_settings, write_csv, write_video


def fails(code, message, *arguments):
    _, error = kinema(*arguments, code=code)
    assert message in error and error.count("\n") == 1 and error.startswith("kinema: "), error


def healthy(folder, clips=4, longer=0):
    for number in range(clips):
        write_video(folder / "Good" / f"{number}.mp4", "libx264", frames=5 + number + longer)
    return folder


def config_of(folder):
    backbone = BackboneConfig(model="test_efficientnet", weights=folder / "cnn.safetensors")
    return Config(store=folder / "store", sampling=SamplingConfig(frames=2), backbone=backbone)


def extract(folder, *more, code=0):
    return kinema("extract", *quick_settings(folder), *more, code=code)


def start(*arguments):
    command = [sys.executable, "-m", "pipeline.cli", *map(str, arguments)]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": os.environ | {"PYTHONUNBUFFERED": "1"}}
    return subprocess.Popen(command, cwd=REPOSITORY, text=True, start_new_session=True, **options)


def entries(store):
    """All entries by name: their arrays, bit by bit, and metadata."""
    found = {}
    for path in store.glob("*/??/*.safetensors"):
        with safetensors.safe_open(path, framework="np") as file:
            found[path.name] = [file.metadata(), *(file.get_tensor(name).tobytes() for name in sorted(file.keys()))]
    return found


def test_extraction_counts_and_resumes(settings_of_small_set, extracted):
    assert "extract: 48 done, 0 skipped, 0 failed" in extracted
    assert "extract: 0 done, 48 skipped, 0 failed" in kinema("extract", *settings_of_small_set)[0]


def test_a_killed_extraction_resumes(small_set, settings_of_small_set, extracted, tmp_path):
    settings = [*settings_of_small_set, "--store", tmp_path / "store"]
    process = start("extract", *settings)
    while len(entries(tmp_path / "store")) < 5:
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    kept = len(entries(tmp_path / "store"))
    assert f"{48 - kept} done, {kept} skipped, 0 failed" in kinema("extract", *settings)[0]
    assert entries(tmp_path / "store") == entries(small_set / "features")


def test_processes_at_the_same_time_compute_each_clip_once(tmp_path):
    """The same files under two paths. A third process has claimed all of them until both are waiting."""
    healthy(tmp_path / "videos", clips=8)
    shutil.copytree(tmp_path / "videos", tmp_path / "elsewhere")
    extract(tmp_path, "--data.root", healthy(tmp_path / "others", longer=10))
    store = FeatureStore.last(config_of(tmp_path))
    paths = sorted((tmp_path / "videos" / "Good").iterdir())
    keys = [store.key(Clip(id="", path=path, label="", group="")) for path in paths]
    assert all(store.claim(key) for key in keys)
    settings = quick_settings(tmp_path)
    processes = [start("extract", *settings), start("extract", *settings, "--data.root", tmp_path / "elsewhere")]
    for process in processes:
        assert any("8 clips, 1 classes" in line for line in iter(process.stdout.readline, ""))
    time.sleep(1)
    assert len(entries(tmp_path / "store")) == 4
    for key in keys:
        store.release(key)
    printed = [process.communicate()[0] for process in processes]
    counts = [tuple(map(int, re.search(r"(\d+) done, (\d+) skipped, 0 failed", text).groups())) for text in printed]
    assert sum(done for done, _ in counts) == 8 and all(done + skipped == 8 for done, skipped in counts)
    assert len(entries(tmp_path / "store")) == 12


def test_moved_renamed_touched_and_copied_files_keep_their_features(tmp_path):
    healthy(tmp_path / "videos")
    assert "4 done, 0 skipped" in extract(tmp_path)[0]
    for path in (tmp_path / "videos" / "Good").iterdir():
        os.utime(path, ns=(0, 0))
    (tmp_path / "videos" / "Good" / "0.mp4").rename(tmp_path / "videos" / "Good" / "renamed.mp4")
    (tmp_path / "videos" / "Good").rename(tmp_path / "videos" / "Better")
    shutil.copytree(tmp_path / "videos" / "Better", tmp_path / "videos" / "Copies")
    (tmp_path / "videos" / "Copies" / "link.mp4").symlink_to(tmp_path / "videos" / "Better" / "1.mp4")
    assert "0 done, 9 skipped, 0 failed" in extract(tmp_path)[0]
    shutil.rmtree(tmp_path / "store" / "index")
    assert "0 done, 9 skipped, 0 failed" in extract(tmp_path)[0]
    shutil.rmtree(tmp_path / "store")
    assert "4 done, 5 skipped, 0 failed" in extract(tmp_path)[0]


def test_a_copy_of_the_same_size_and_time_with_other_content_is_another_clip(tmp_path):
    extract(tmp_path, "--data.root", healthy(tmp_path / "before"))
    shutil.copytree(tmp_path / "before", tmp_path / "videos")
    clip = tmp_path / "videos" / "Good" / "0.mp4"
    stat = clip.stat()
    clip.write_bytes(bytes(stat.st_size))
    os.utime(clip, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert "0 done, 3 skipped, 1 failed" in extract(tmp_path)[0]


def test_a_file_that_changes_meanwhile_gets_no_features(tmp_path, monkeypatch):
    healthy(tmp_path / "videos")
    compute = command.clip_features

    def change(clips, *more):
        for clip, outcome in compute(clips, *more):
            write_video(clip.path, "libx264", frames=30)
            yield clip, outcome

    with monkeypatch.context() as patch:
        patch.setattr(command, "clip_features", change)
        assert "none of 4 clips could be read" in extract(tmp_path, code=1)[1]
    assert not entries(tmp_path / "store")
    assert "1 done, 3 skipped, 0 failed" in extract(tmp_path)[0]


def test_segments_of_a_file_have_entries_of_their_own(tmp_path):
    write_video(tmp_path / "videos" / "a.mp4", "libx264", frames=50)
    healthy(tmp_path / "videos", clips=2)
    rows = [("a.mp4", "Good", "train", *times) for times in (("", ""), (0, 1), (1, 2))]
    rows += [(f"Good/{number}.mp4", "Good", split, "", "") for number, split in enumerate(("val", "test"))]
    lists = write_csv(tmp_path / "clips.csv", ("path", "label", "split", "start", "end"), *rows)
    assert "5 done, 0 skipped" in extract(tmp_path, "--data.lists", lists)[0]
    features = [features for _, features, *_ in entries(tmp_path / "store").values()]
    assert len(set(features)) == 5


def test_failed_clips_are_tried_again_only_on_request(tmp_path):
    healthy(tmp_path / "videos")
    bad = tmp_path / "videos" / "Bad"
    bad.mkdir()
    whole = write_video(bad / "truncated.mp4", "libx264").read_bytes()
    (bad / "truncated.mp4").write_bytes(whole[: len(whole) // 2])
    (bad / "empty.avi").touch()
    write_video(bad / "one_frame.mp4", "libx264", frames=1)
    assert "4 done, 0 skipped, 3 failed" in extract(tmp_path)[0]
    again, _ = extract(tmp_path)
    assert "0 done, 4 skipped, 3 failed" in again and "3 clips failed before" in again and "--retry-failed" in again
    assert "0 done, 4 skipped, 3 failed" in extract(tmp_path, "--retry-failed")[0]
    assert "1 x empty file\n    Bad/empty.avi\n" in kinema("failures", *quick_settings(tmp_path))[0]
    (bad / "truncated.mp4").write_bytes(whole)
    assert "1 done, 4 skipped, 2 failed" in extract(tmp_path)[0]


def test_files_that_cannot_be_opened_fail_in_every_run(tmp_path):
    healthy(tmp_path / "videos")
    os.mkfifo(tmp_path / "videos" / "Good" / "pipe.avi")
    (tmp_path / "videos" / "Good" / "dangling.avi").symlink_to("nowhere")
    for _ in range(2):
        assert re.search(r"\d done, \d skipped, 2 failed", extract(tmp_path)[0])
    failures, _ = kinema("failures", *quick_settings(tmp_path))
    assert "1 x not a regular file" in failures and "1 x No such file or directory" in failures


def test_shards_do_all_clips_between_them(tmp_path):
    healthy(tmp_path / "videos", clips=5)
    assert "3 done, 0 skipped" in extract(tmp_path, "--shard", "1/2")[0]
    assert "2 done, 0 skipped" in extract(tmp_path, "--shard", "2/2")[0]
    assert "0 done, 5 skipped" in extract(tmp_path)[0]
    fails(2, "expected I/N with I from 1 to N", "extract", "--shard", "3/2")


def test_nothing_readable_is_a_failure(tmp_path):
    (tmp_path / "videos" / "a").mkdir(parents=True)
    for number in range(9):
        (tmp_path / "videos" / "a" / f"{number}.avi").write_text(f"no video {number}")
    for _ in range(2):
        assert "none of 9 clips could be read" in extract(tmp_path, code=1)[1]


def test_failures_are_grouped_and_can_be_examined(tmp_path):
    healthy(tmp_path / "videos")
    for number in range(3):
        (tmp_path / "videos" / "Good" / f"text{number}.avi").write_text(f"This is not a video {number}.")
    cut_off = write_video(tmp_path / "videos" / "Good" / "cut.avi", "mpeg4")
    cut_off.write_bytes(cut_off.read_bytes()[: int(cut_off.stat().st_size * 0.8)])
    extracted, _ = extract(tmp_path)
    assert "5 done (1 partial), 0 skipped, 3 failed" in extracted
    [command] = [line.removeprefix("Why they failed: ") for line in extracted.splitlines() if line.startswith("Why")]
    out, _ = kinema(*shlex.split(command)[1:])
    assert "1 clips are partial: damage left fewer frames than planned\n    Good/cut.avi: 1 of 2\n" in out
    assert "3 of 8 clips could not be read" in out and "3 x Invalid data" in out
    assert f"kinema failures --data.root={tmp_path / 'videos'}" in out and "--clip=Good/text0.avi" in out

    numbered, empty, damaged = sorted((tmp_path / "store").glob("*/failed/*.json"))
    numbered.write_text(json.dumps(json.loads(numbered.read_text()) | {"reason": "7 bytes"}))
    empty.write_text("{}")
    damaged.write_text('{"reas')
    out, _ = kinema("failures", *quick_settings(tmp_path))
    assert "1 of 8 clips could not be read" in out and "1 x 7 bytes" in out
    out, _ = kinema("failures", *quick_settings(tmp_path), "--clip", "Good/0.mp4")
    assert "decord: 2 of 2 frames" in out and "pyav: 2 of 2 frames, 192x96" in out
    assert kinema("failures", *quick_settings(tmp_path), "--clip", "Good/text0.avi")[0].count("Invalid data") == 2
    fails(2, "no such clip", "failures", *quick_settings(tmp_path), "--clip", "Good/none.avi")


def test_the_store_is_listed_verified_repaired_and_pruned(tmp_path):
    healthy(tmp_path / "videos")
    extract(tmp_path)
    store = ["--store", tmp_path / "store"]
    [folder] = {path.parent for path in (tmp_path / "store").glob("*/manifest.json")}
    listed, _ = kinema("store", *store)
    assert re.search(rf"{folder.name}  test_efficientnet .* 2  auto +4 +0 ", listed)
    assert "verify: 4 entries, 0 damaged\n" in kinema("store", "verify", *store)[0]

    cut_off, flipped, *_ = folder.glob("??/*.safetensors")
    cut_off.write_bytes(cut_off.read_bytes()[:-1])
    flipped.write_bytes(flipped.read_bytes()[:-1] + b"\xff")
    out, error = kinema("store", "verify", *store, code=1)
    assert "not a complete safetensors file" in out and "checksum does not match" in out
    assert "2 entries are damaged; kinema store verify --repair removes them" in error
    assert "2 damaged and removed" in kinema("store", "verify", "--repair", *store)[0]
    assert "2 done, 2 skipped, 0 failed" in extract(tmp_path)[0]

    fails(2, "no fingerprint 0123", "store", "prune", "0123", *store)
    fails(2, "FINGERPRINT is for prune", "store", "list", "0123", *store)
    (folder / "manifest.json").write_text('{"model": {}}')
    assert f"{folder.name}  manifest.json is damaged" in kinema("store", *store)[0]
    kinema("store", "prune", folder.name, *store)
    assert not folder.exists()


def test_an_old_store_is_an_error_in_one_line(tmp_path):
    shutil.copytree(healthy(tmp_path / "videos") / "Good", tmp_path / "videos" / "Bad")
    (tmp_path / "store" / "0123456789abcdef").mkdir(parents=True)
    (tmp_path / "store" / "0123456789abcdef" / "manifest.json").write_text('{"format": 3, "backbone": {}}')
    message = "store of an earlier version; delete it, or name another with --store"
    assert message in extract(tmp_path, code=1)[1].splitlines()[-1]
    fails(1, message, "train", *quick_settings(tmp_path))
    fails(1, message, "store", "--store", tmp_path / "store")


def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=700k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root can mount a small disk")
    try:
        healthy(tmp_path / "videos", clips=40)
        settings = ["--store", disk / "store", "--sampling.frames", 4]
        _, error = extract(tmp_path, *settings, code=1)
        assert "No space left on device" in error and str(disk) in error
        assert error.splitlines()[-1].startswith("kinema: ")
        subprocess.run([*mount[:4], "remount,size=4m", str(disk)], check=True)
        assert re.search(r"\d+ done, [1-9]\d* skipped, 0 failed", extract(tmp_path, *settings)[0])
        assert "40 entries, 0 damaged" in kinema("store", "verify", "--store", disk / "store")[0]
        subprocess.run([*mount[:4], "remount,ro", str(disk)], check=True)
        assert "0 done, 40 skipped, 0 failed" in extract(tmp_path, *settings)[0]
        write_video(tmp_path / "videos" / "Good" / "new.mp4", "libx264", frames=50)
        assert "Read-only file system" in extract(tmp_path, *settings, code=1)[1]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("moment", [0.2, "first entry"])
def test_an_interrupted_extraction_ends_clean(tmp_path, moment):
    """Ctrl-C in a terminal reaches the workers too, and the process from which they are forked."""
    healthy(tmp_path / "videos", clips=60)
    process = start("extract", "--data.root", tmp_path / "videos", "--store", tmp_path / "store")
    while not (entries(tmp_path / "store") if moment == "first entry" else psutil.Process(process.pid).children()):
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(0 if moment == "first entry" else moment)
    children = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=30)
    assert process.returncode == -signal.SIGINT
    assert "Traceback" not in error and error.splitlines()[-1].lower().startswith("kinema: interrupted")
    assert not psutil.wait_procs(children, timeout=10)[1]
    assert not list((tmp_path / "store").rglob("*.tmp"))


@pytest.mark.parametrize("end", ["abandoned", "an exception of the CNN"])
def test_workers_end_with_the_iterator(tmp_path, end):
    healthy(tmp_path, clips=1)

    class CNN:
        transform, batch, engine, precision = torch.nn.Identity(), 2, "", ""

        def recover_after_fork(self):
            pass

        def __call__(self, frames):
            if end != "abandoned":
                raise RuntimeError("CNN")
            return np.zeros((len(frames), 3), np.float16)

    before = {process.pid for process in psutil.Process().children(recursive=True)}
    clips = [Clip(id=str(n), path=tmp_path / "Good" / "0.mp4", label="", group="") for n in range(50)]
    results = clip_features(clips, CNN(), SamplingConfig(frames=2), DecodeConfig(workers=2))
    if end == "abandoned":
        next(results)
        results.close()
    else:
        with pytest.raises(RuntimeError, match="CNN"):
            list(results)
    left = {process.pid: process for process in psutil.Process().children(recursive=True) if process.pid not in before}
    workers = [process for process in left.values() if process.ppid() != os.getpid()]
    assert not psutil.wait_procs(workers, timeout=5)[1]


def test_features_that_overflow_are_a_failure(tmp_path):
    """Weights so large that features leave the range of float16."""
    state = {name: tensor * 50 for name, tensor in timm.create_model("test_efficientnet").state_dict().items()}
    save_file(state, tmp_path / "large.safetensors")
    config = dict(model="test_efficientnet", weights=tmp_path / "large.safetensors", engine="torch", precision="fp32")
    backbone = Backbone(BackboneConfig(**config, view="pooled"), torch.device("cpu"))
    path = write_video(tmp_path / "a.mp4", "libx264", frames=4)
    clips = [Clip(id="a", path=path, label="", group="")]
    [(_, outcome)] = clip_features(clips, backbone, SamplingConfig(frames=2), DecodeConfig(workers=1))
    assert "features overflow in torch fp32" in outcome.reason and "--backbone.view grid" in outcome.reason


def test_the_throughput_has_bounded_points_and_its_mean_is_the_rate(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    throughput = Throughput(busy=7.0)
    for clip in range(1, 1001):
        clock[0] += 1.5 if clip <= 500 else 0.5  # Decoding is slow first; the CNN needs 0.5 s.
        throughput.update(clip / 1000, 16 * clip, 7 + 0.5 * clip)
    curve = throughput.curve()
    assert 50 < len(curve) <= 100 and curve[-1]["seconds"] == 1000
    assert curve[0]["frames_per_second"] == pytest.approx(16 / 1.5) and curve[0]["cnn_busy"] == pytest.approx(1 / 3)
    assert curve[-1]["frames_per_second"] == pytest.approx(32) and curve[-1]["cnn_busy"] == 1
    lengths = np.diff([0, *(point["seconds"] for point in curve)])
    assert sum(lengths * [point["frames_per_second"] for point in curve]) == pytest.approx(16 * 1000)


def test_the_last_burst_of_an_extraction_is_no_peak(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    throughput = Throughput(busy=0.0)
    for burst in range(1, 5):
        clock[0] += 6
        for clip in range(1, 5):  # All four at the same time, but for a microsecond.
            clock[0] += 1e-6
            throughput.update((4 * burst + clip - 4) / 16, 16 * (4 * burst + clip - 4), 3 * burst)
    curve = throughput.curve()
    assert len(curve) == 4 and max(point["frames_per_second"] for point in curve) < 20 and curve[-1]["seconds"] > 24
