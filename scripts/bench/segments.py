"""Measure the segments of long recordings: accuracy, memory, speed, and whether answers come while the file is read.

    python scripts/bench/segments.py data/segments --minutes 1 20

Trains a run on generated clips and a class `background`, in which nothing moves. Joins test clips, with pauses between
them, to recordings of 1280x720 at 24 frames/s, and runs `kinema predict --json` on them. What is there is kept.
"""

import argparse
import csv
import importlib
import itertools
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import psutil
from PIL import Image
from rounds import alternate, machine_in_words, ratio

from pipeline.data.clip import Clip
from pipeline.features.extraction import clip_features
from pipeline.inference.predictor import Predictor
from pipeline.runs.recordings import actions
from pipeline.runs.segment_metrics import edit_score, f1
from pipeline.video.workers import Failure

sys.path.append(str(Path(__file__).parents[1]))
demo = importlib.import_module("make_demo_data")
SIZE = 1280, 720  # Width, height.
RATE = 24  # Frames per second; those of the clips are shown twice.
KINEMA = [sys.executable, "-m", "pipeline.cli"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, nargs="+", default=[1, 20])
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    clips, run = args.folder / "clips", args.folder / "runs" / "segments"
    make_clips(clips)
    settings = ["--data.root", clips / "videos", "--data.lists", clips / "splits", "--sampling.frames", "8"]
    settings += ["--store", args.folder / "features", "--runs", args.folder / "runs", "--tracking", "off"]
    call([*KINEMA, "extract", *settings])
    call([*KINEMA, "train", *settings, "--run", run.name])
    print(machine_in_words())
    for minutes in args.minutes:
        file = args.folder / f"{minutes:g}.mp4"
        if not file.exists():
            record(clips, file, minutes)
        found = answer(run, file)
    compare_cut(run, file, found, args.folder / "cut.mp4")
    compare_speed(run, args.folder / f"{args.minutes[0]:g}.mp4", args.folder / "cut", args.rounds)


def call(command: list) -> None:
    subprocess.run(list(map(str, command)), check=True)


def make_clips(folder: Path) -> None:
    """Generate the demo's classes, and `background`: pictures of the same scenes, held, some with a cut to another."""
    if (folder / "done").exists():
        return
    call([sys.executable, demo.__file__, folder, "--pairs", "changes", "orbits"])
    videos, lists = folder / "videos", folder / "splits"
    number = len((lists / "classInd.txt").read_text().splitlines()) + 1
    with (lists / "classInd.txt").open("a") as stream:
        stream.write(f"{number} background\n")
    (videos / "background").mkdir(exist_ok=True)
    for part in ("train", "test"):
        file = lists / f"{part}list01.txt"
        groups = sorted({re.search(r"_g(\d+)_", line)[1] for line in file.read_text().splitlines()})
        rng, found = np.random.default_rng(0), []
        for group in groups:
            for clip in range(1, 7):
                suffix, codec, options = demo.CODECS[(int(group) + clip) % len(demo.CODECS)]
                before = int(rng.integers(4, 20)) if clip % 2 else 24  # Frames up to the cut.
                pictures = [*still(int(group), before, rng), *still(int(rng.choice(groups)), 24 - before, rng)]
                found.append(f"background/v_background_g{group}_c{clip:02d}.{suffix}")
                same_size = [scaled(picture, pictures[0].shape[1::-1]) for picture in pictures]
                demo.encode(videos / found[-1], codec, options, [*same_size, same_size[-1]], np.ones(25, np.int64))
        with file.open("a") as stream:
            stream.writelines(f"{name}{f' {number}' * (part == 'train')}\n" for name in found)
    (folder / "done").touch()


def still(group: int, frames: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Return frames in which a moment of a random action is held, with the noise of the camera."""
    scene = demo.Scene(group, seed=0)
    action = str(rng.choice([first for first, _ in demo.CHANGES + demo.ORBITS]))
    centre, radius = rng.uniform(0.35, 0.65, 2) * scene.size, rng.uniform(0.3, 0.42) * min(scene.size)
    picture = np.asarray(scene.frame(action, rng.uniform(), centre, radius)) * rng.uniform(0.8, 1.2)
    return [noisy(picture, rng) for _ in range(frames)]


def frames_of(path: Path) -> Iterator[np.ndarray]:
    with av.open(path) as source:
        for frame in source.decode(video=0):
            yield frame.to_ndarray(format="rgb24")


def noisy(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Add the noise of a camera."""
    return (picture + rng.normal(0, 4, (*picture.shape[:2], 1))).clip(0, 255).astype(np.uint8)


def write(path: Path, pictures: Iterable[np.ndarray], rate: int) -> None:
    """Encode pictures, with a keyframe every two seconds."""
    with av.open(path, "w") as container:
        options = {"crf": "16", "preset": "veryfast", "g": str(2 * rate)}
        stream = container.add_stream("libx264", rate=rate, options=options)
        stream.pix_fmt = "yuv420p"
        for number, picture in enumerate(pictures):
            if not number:
                stream.height, stream.width = picture.shape[:2]
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def record(clips: Path, file: Path, minutes: float) -> None:
    """Join test clips in random order to a recording; before each, its first picture is held for two to six seconds.
    Write the true segments beside it."""
    lines = (clips / "splits" / "testlist01.txt").read_text().splitlines()
    names = [line for line in lines if not line.startswith("background")]
    rng, true, shown = np.random.default_rng(round(minutes)), [], 0

    def pictures() -> Iterator[np.ndarray]:
        nonlocal shown
        while shown < 60 * minutes * RATE:
            name = names[rng.integers(len(names))]
            action = list(frames_of(clips / "videos" / name))
            pause = round(rng.uniform(2, 6) * RATE)
            for _ in range(pause):
                yield scaled(noisy(action[0], rng), SIZE)
            for picture in action:
                yield from [scaled(picture, SIZE)] * 2
            true.append(((shown + pause) / RATE, (shown + pause + 2 * len(action)) / RATE, name.split("/")[0]))
            shown += pause + 2 * len(action)

    write(file, pictures(), RATE)
    with file.with_suffix(".csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("path", "label", "start", "end"), *((file.name, t[2], *t[:2]) for t in true)])


def scaled(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Scale a picture to a size (width, height), as the CNN gets it, without regard to its shape."""
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC))


def true_segments(file: Path) -> list[tuple[float, float, str]]:
    with file.with_suffix(".csv").open(newline="") as stream:
        return [(float(row["start"]), float(row["end"]), row["label"]) for row in csv.DictReader(stream)]


def predict(run: Path, file: Path) -> tuple[list[tuple[float, float, str]], list[float], float, list[float]]:
    """Run the command; return its segments, when each was printed, how long it took, and the memory in MB over time."""
    command = list(map(str, [*KINEMA, "predict", run, file, "--json", "--segments"]))
    began, memory, answered, found = time.monotonic(), [], [], []
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    watcher = threading.Thread(target=watch, args=(process, memory))
    watcher.start()
    for line in process.stdout:
        segment = json.loads(line)
        answered.append(time.monotonic() - began)
        found.append((segment["start"], segment["end"], segment["label"]))
    if process.wait():
        raise SystemExit(f"{' '.join(command)} failed")
    watcher.join()
    return found, answered, time.monotonic() - began, memory


def watch(process: subprocess.Popen, memory: list[float]) -> None:
    """Append the memory of a process and its children in MB, pages that they share counted once, until it ends."""
    parent = psutil.Process(process.pid)
    while process.poll() is None:
        total = 0.0
        for one in [parent, *parent.children(recursive=True)]:
            try:
                total += one.memory_full_info().pss / 2**20
            except psutil.Error:  # It has ended.
                continue
        memory.append(total)
        time.sleep(1)


def answer(run: Path, file: Path) -> list[tuple[float, float, str]]:
    """Print how good the segments of a recording are, and what they took; return them."""
    found, answered, seconds, memory = predict(run, file)
    true, mine = [true_segments(file)], [actions(found)]
    scores = " ".join(f"F1@{round(100 * overlap)} {f1(mine, true, overlap):.3f}" for overlap in (0.1, 0.25, 0.5))
    print(f"{file.name}: {len(true[0])} actions, {len(mine[0])} found; {scores} edit {edit_score(mine, true):.3f}")
    print(f"{file.name}: {seconds:.0f} s, first answer after {answered[0]:.0f} s, {max(memory):.0f} MB at most")
    return found


def compare_cut(run: Path, file: Path, whole: list[tuple[float, float, str]], cut: Path) -> None:
    """Print whether the first third of a file has the same segments as the whole, as far as it goes."""
    with av.open(file) as before, av.open(cut, "w") as after:
        stream = after.add_stream_from_template(before.streams.video[0])
        limit = float(before.duration / av.time_base) / 3
        for packet in before.demux(video=0):
            if packet.size and packet.pts * packet.time_base < limit:
                packet.stream = stream
                after.mux(packet)
    part = predict(run, cut)[0]
    same = next((n for n, pair in enumerate(zip(part, whole, strict=False)) if pair[0] != pair[1]), len(part))
    print(f"{cut.name}: {same} of {len(part)} segments are those of the whole; the end is at {limit:.1f} s")


def compare_speed(run: Path, file: Path, folder: Path, rounds: int) -> None:
    """Print the rate of segments beside that of extraction from the same pictures as clips of one window."""
    predictor = Predictor(run)
    seconds, folder = round(predictor.window.seconds), folder.absolute()
    if not folder.exists():
        folder.mkdir()
        pictures, length = frames_of(file), seconds * RATE
        for number in range(round(true_segments(file)[-1][1] * RATE) // length):
            write(folder / f"{number:04d}.mp4", itertools.islice(pictures, length), RATE)
    clips = [Clip(id=path.name, path=path, label="", group="") for path in sorted(folder.iterdir())]
    recording = predictor.plan([file])[file]
    config = predictor.config

    def extract() -> int:
        outcomes = [outcome for _, outcome in clip_features(clips, predictor.backbone, config.sampling, config.decode)]
        return sum(len(outcome.features) for outcome in outcomes if not isinstance(outcome, Failure))

    def segments() -> int:
        list(predictor.segments(file))
        return len(recording.indices_T)

    rates = alternate({"segments": segments, "extract": extract}, rounds)
    shown = ", ".join(f"{name} {np.median(values):.0f}" for name, values in rates.items())
    print(f"{file.name}: frames/s: {shown}; segments / extract {ratio(rates['segments'], rates['extract']):.2f}")


if __name__ == "__main__":
    main()
