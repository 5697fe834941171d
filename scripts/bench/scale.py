"""Measure the cost of each stage for a data set of UCF101's size, and how it grows with the number of clips.

    python scripts/bench/scale.py --videos data/demo/videos --out docs/performance/scale

Copies of real files, each with a few bytes of its own at the end, form a data set like UCF101: 101 classes, 25 groups,
13,320 clips, groups 1 to 7 for the test. Labels are arbitrary, so the accuracy means nothing. Extraction, training and
evaluation are the commands that a user runs. A stopped run resumes from the folder `--work`, which is removed at the
end; extraction alone must run in one go.
"""

import argparse
import json
import math
import re
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import psutil
from rounds import publish

CLASSES, GROUPS, TEST_GROUPS = 101, 25, 7
PARTS = (100, 1_000, 10_000)
EPOCHS = 30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--videos", type=Path, default=Path("data/demo/videos"), help="folder, searched at any depth")
    parser.add_argument("--clips", type=int, default=13_320)
    parser.add_argument("--work", type=Path, default=Path("data/scale"), help="folder for clips, features and runs")
    parser.add_argument("--out", type=Path, help="also write OUT.md and OUT.json")
    args = parser.parse_args()

    files = make_clips(args.videos, args.clips, args.work)
    work, run = args.work, args.work / "runs" / "scale"
    settings = ["--data.root", work / "videos", "--data.lists", work / "lists", "--store", work / "store"]
    train = ["train", *settings, "--runs", run.parent, "--run", run.name, "--train.epochs", EPOCHS, "--tracking", "off"]
    stages: dict[str, Callable[[], Any]] = {
        "extract": lambda: extraction(["extract", *settings]),
        "resume": lambda: seconds_of(kinema(["extract", *settings])),
        "train": lambda: seconds_of(kinema(train)),
        "evaluate": lambda: seconds_of(kinema(["evaluate", run])),
    }
    counts = sorted({*(clips for clips in PARTS if clips < args.clips), args.clips})
    for name, measure in {"find entries": find, "load features": load, "train an epoch": train_an_epoch}.items():
        stages[name] = lambda measure=measure: [alone(measure, work, clips) for clips in counts]
    kept = work / "measured.json"
    measured = json.loads(kept.read_text()) if kept.exists() else {}
    if not measured and (work / "store").exists():
        raise SystemExit(f"{work}: extraction was stopped, so its time is unknown; delete the folder and start again")
    about = {"files": files, "clips": args.clips}
    if measured and not about.items() <= measured.items():
        raise SystemExit(f"{work}: holds measurements of other clips; delete the folder and start again")
    measured |= about
    for name, stage in stages.items():
        if name not in measured:
            measured[name] = stage()
            kept.write_text(json.dumps(measured, indent=1) + "\n")
    publish(rows(measured), f"{files} files behind {args.clips} clips", measured, args.out)
    shutil.rmtree(work)


def rows(measured: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return the table. Extraction is measured from mark to mark, the others from the start."""
    table = [("", "clips", "seconds", "ms per clip", "MiB")]
    for name in ("extract", "find entries", "load features", "train an epoch"):
        clips, seconds = 0, 0.0
        for mark in measured[name]:
            each = (mark["seconds"] - seconds) / (mark["clips"] - clips) * 1000
            table.append((name, f"{mark['clips']:,}", f"{mark['seconds']:,.2f}", f"{each:,.3g}", f"{mark['MiB']:,.0f}"))
            if name == "extract":
                clips, seconds = mark["clips"], mark["seconds"]
    commands = {"resume": "kinema extract again", "train": "kinema train", "evaluate": "kinema evaluate"}
    return table + [(text, "", f"{measured[name]:,.0f}", "", "") for name, text in commands.items()]


def make_clips(videos: Path, clips: int, work: Path) -> int:
    """Create the data set and return the number of real files in it."""
    from pipeline.data.folder import VIDEO_SUFFIXES

    files = [path.resolve() for path in sorted(videos.rglob("*")) if path.suffix.lower() in VIDEO_SUFFIXES]
    lists: dict[str, list[str]] = {"trainlist01.txt": [], "testlist01.txt": []}
    for number in range(clips):
        group, label, take = GROUPS - number % GROUPS, number // GROUPS % CLASSES, number // (GROUPS * CLASSES) + 1
        file = files[number % len(files)]
        name = f"C{label:03}/v_C{label:03}_g{group:02}_c{take:02}{file.suffix}"
        path = work / "videos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():  # Equal contents would be extracted once. Players ignore bytes after the end.
            path.write_bytes(file.read_bytes() + number.to_bytes(8, "big"))
        lists["testlist01.txt" if group <= TEST_GROUPS else "trainlist01.txt"].append(name)
    # Fewer clips than in UCF101 have fewer classes.
    lists["classInd.txt"] = [f"{label + 1} C{label:03}" for label in range(min(CLASSES, -(-clips // GROUPS)))]
    (work / "lists").mkdir(exist_ok=True)
    for name, lines in lists.items():
        (work / "lists" / name).write_text("\n".join(lines) + "\n")
    return len(files)


def kinema(command: list[Any]) -> subprocess.Popen:
    line = [sys.executable, "-m", "pipeline.cli", *map(str, command)]
    return subprocess.Popen(line, stderr=subprocess.PIPE, text=True)


def seconds_of(process: subprocess.Popen) -> float:
    began = time.monotonic()
    for line in process.stderr:
        sys.stderr.write(line)
    if process.wait():
        raise SystemExit(f"failed: {' '.join(process.args)}")
    return round(time.monotonic() - began, 2)


def extraction(command: list[Any]) -> list[dict[str, float]]:
    """Extract; record time and memory of the main process when its progress reaches one of `PARTS`."""
    process = kinema(command)
    began = time.monotonic()
    marks: list[dict[str, float]] = []
    for line in process.stderr:
        sys.stderr.write(line)
        done = re.match(r"extract: (\d+)/(\d+)", line)
        reached = int(done[1]) if done else 0
        is_mark = reached >= (*PARTS, math.inf)[min(len(marks), len(PARTS))] or done and done[1] == done[2]
        if is_mark and (not marks or reached > marks[-1]["clips"]):
            memory = psutil.Process(process.pid).memory_info().rss / 2**20
            marks.append({"clips": reached, "seconds": round(time.monotonic() - began, 1), "MiB": round(memory)})
    if process.wait():
        raise SystemExit("extraction failed")
    return marks


def alone(measure: Callable[[Path, int], float], work: Path, clips: int) -> dict[str, float]:
    """Run a measurement in a process of its own; add its peak memory."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        seconds = pool.submit(measure, work, clips).result()
        peak = pool.submit(peak_memory).result()
    return {"clips": clips, "seconds": round(seconds, 3), "MiB": round(peak)}


def peak_memory() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# These functions import late, so that the memory of finding entries does not include that of PyTorch.
def opened(work: Path, clips: int) -> tuple[Any, Any, Any]:
    from pipeline.config import Config, DataConfig
    from pipeline.data.splits import load_dataset
    from pipeline.features.store import FeatureStore

    config = Config(data=DataConfig(root=work / "videos", lists=work / "lists"), store=work / "store")
    return config, FeatureStore.last(config), load_dataset(config.data).clips[:clips]


def find(work: Path, clips: int) -> float:
    _, store, some = opened(work, clips)
    began = time.monotonic()
    if not all(store.find(clip) for clip in some):
        raise SystemExit("a clip has no features")
    return time.monotonic() - began


def load(work: Path, clips: int) -> float:
    return _loaded(work, clips)[0]


def train_an_epoch(work: Path, clips: int) -> float:
    import torch

    from pipeline.base.device import resolve_device
    from pipeline.config import HeadConfig, TrainConfig
    from pipeline.runs.trainer import fit

    _, loaded = _loaded(work, clips)
    is_train_N = torch.ones(clips, dtype=torch.bool)
    history = []
    fit(HeadConfig(), TrainConfig(epochs=4), loaded, is_train_N, resolve_device("auto"), history.append)
    return min(record["seconds"] for record in history[1:])


def _loaded(work: Path, clips: int) -> tuple[float, Any]:
    from pipeline.runs.dataset import fit_reduction, load_clips

    config, store, some = opened(work, clips)
    reduction = fit_reduction(config, store, some)
    began = time.monotonic()
    loaded = load_clips(store, some, [f"C{label:03}" for label in range(CLASSES)], reduction)
    return time.monotonic() - began, loaded


if __name__ == "__main__":
    main()
