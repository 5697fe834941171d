"""Measure on this machine how fast clips are decoded, how fast the CNN is, and how close the pipeline comes to both.

    python scripts/bench/extraction.py [--clips 96] [--rounds 5]

Rounds alternate between the parts, so that a noisy machine harms them alike; medians are printed.
"""

import argparse
import functools
import time
from collections.abc import Callable
from pathlib import Path

import joblib
import numpy as np
import torch

from pipeline.backbone import Backbone, BackboneConfig, resolve_device
from pipeline.config import Config
from pipeline.data import load_dataset
from pipeline.extract import clip_features, decode_and_transform
from pipeline.settings import build
from pipeline.workers import run_isolated


def seconds(job: Callable[[], object]) -> float:
    began = time.monotonic()
    job()
    return time.monotonic() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, default=Path("configs/demo.yaml"))
    parser.add_argument("--clips", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()

    config = build(Config, args.config, {})
    device = resolve_device(config.device)
    clips = load_dataset(config.data).clips[:: max(1, len(load_dataset(config.data).clips) // args.clips)]
    backbone = Backbone(config.backbone, device)
    plain = Backbone(BackboneConfig(engine="torch", precision="fp32"), device)
    load = functools.partial(
        decode_and_transform, sampling=config.sampling, decode=config.decode, transform=backbone.transform
    )
    workers = config.decode.workers or joblib.cpu_count()
    frames = np.concatenate([load(clip)[0].frames for clip in clips])
    once = [clips[0]]  # A run over one clip: what it costs to start the workers.
    parts = {
        "start": lambda: list(run_isolated(load, once, workers, 60)),
        "decode and resize alone": lambda: list(run_isolated(load, clips, workers, 60)),
        f"CNN alone, {backbone.engine}": lambda: backbone(frames),
        f"CNN alone, {plain.engine}": lambda: plain(frames),
        "pipeline": lambda: list(clip_features(clips, backbone, config.sampling, config.decode)),
    }
    taken: dict[str, list[float]] = {name: [] for name in parts}
    for number in range(args.rounds + 1):
        for name, job in parts.items():
            elapsed = seconds(job)
            if number:  # The first round warms up.
                taken[name].append(elapsed)

    capability = "GPU" if device.type != "cpu" else torch.backends.cpu.get_cpu_capability()
    print(
        f"{len(frames)} frames of {len(clips)} clips, {joblib.cpu_count()} cores ({capability}), {args.rounds} rounds"
    )
    start = np.median(taken.pop("start"))
    isolated = ("decode and resize alone", "pipeline")
    rates = {
        name: len(frames) / (np.median(times) - (start if name in isolated else 0)) for name, times in taken.items()
    }
    for name, rate in rates.items():
        print(f"{name:40s} {rate:7.0f} frames/s")
    decode, cnn, _, pipeline = rates.values()
    # On a GPU the slower part is the limit; on a CPU both share the cores and their times add up.
    limit = min(decode, cnn) if device.type != "cpu" else 1 / (1 / decode + 1 / cnn)
    print(f"{'limit':40s} {limit:7.0f} frames/s, of which the pipeline reaches {pipeline / limit:.0%}")


if __name__ == "__main__":
    main()
