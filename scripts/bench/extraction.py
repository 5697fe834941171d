"""Measure extraction on this machine against a plain loop, and how close it comes to the limit of its parts.

    python scripts/bench/extraction.py --videos data/demo/videos --out docs/extraction

Rounds alternate between the ways, so that a noisy machine harms them alike; medians are printed, and ratios are medians
of the ratios round by round. The plain loop is what most public code does: decord, timm's transform, the CNN in eager
fp32, one video at a time.
"""

from __future__ import annotations

import argparse
import functools
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path

if __name__ != "__mp_main__":  # Each decoding process loads this file anew, and needs none of this.
    import joblib
    import numpy as np
    import timm
    import torch

    # isort: split
    import decord
    from PIL import Image
    from tqdm import tqdm

    from pipeline.backbone import Backbone
    from pipeline.config import BackboneConfig, DecodeConfig, SamplingConfig
    from pipeline.data import Clip
    from pipeline.device import resolve_device
    from pipeline.extract import clip_features
    from pipeline.frames import read_frames
    from pipeline.workers import Failure, run_isolated

INSTRUCTION_SETS = ("avx2", "avx512_f", "avx512_bf16", "amx_bf16", "neon", "sve")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--videos", type=Path, default=Path("data/demo/videos"), help="folder, searched at any depth")
    parser.add_argument("--files", type=int, default=16, help="files taken, evenly over the folder")
    parser.add_argument("--times", type=int, default=8, help="how often the pipeline goes over them in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="write OUT.md and OUT.json too")
    args = parser.parse_args()

    found = [path for path in sorted(args.videos.rglob("*.*")) if path.is_file()]
    paths = [found[position] for position in np.linspace(0, len(found) - 1, args.files).astype(int)]
    clips = [Clip(id=f"{n} {path}", path=path, label="", group="") for n in range(args.times) for path in paths]
    device = resolve_device("auto")
    backbone = Backbone(BackboneConfig(), device)
    decode, sampling, workers = DecodeConfig(), SamplingConfig(), joblib.cpu_count()
    load = functools.partial(read_frames, sampling=sampling, decode=decode, transform=backbone.transform)
    loaded = [load(clip) for clip in clips[: args.files]]
    if unreadable := [clip.id for clip, got in zip(clips, loaded, strict=False) if isinstance(got, Failure)]:
        raise SystemExit(f"{unreadable[0]} cannot be read; give a folder of healthy videos")
    ready = np.concatenate([decoded.frames for decoded, _ in loaded])
    ready = np.concatenate([ready] * max(1, 1000 // len(ready)))
    backbones = {backbone.choice.engine: backbone}
    if backbone.choice.engine != "torch":
        backbones["torch"] = Backbone(BackboneConfig(engine="torch"), device)

    def decode_alone() -> int:
        return sum(len(got[0].frames) for _, got in run_isolated(load, clips, workers, decode.deadline))

    ways: dict[str, Callable[[], int]] = {
        "plain loop": functools.partial(plain_loop, paths, sampling.frames, device),
        f"decode and resize alone, {workers} processes": decode_alone,
    }
    for engine in backbones.values():
        ways[f"CNN alone, {engine.engine}"] = functools.partial(run_cnn, engine, ready)
        ways[f"pipeline, {engine.engine}"] = functools.partial(run_pipeline, clips, engine, sampling, decode)
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for number in tqdm(range(args.rounds + 1), "rounds", disable=None):
        for name, way in ways.items():
            began = time.monotonic()
            frames = way()
            if number:  # The first round warms up.
                rates[name].append(frames / (time.monotonic() - began))

    plain, alone = (np.array(rates[name]) for name in list(ways)[:2])
    rows = [("way", "frames/s", "against the plain loop", "share of the limit"), (":--", "--:", "--:", "--:")]
    for name, values in rates.items():
        row = [name, f"{np.median(values):.0f}", f"{np.median(values / plain):.1f}", ""]
        if name.startswith("pipeline"):
            cnn = np.array(rates[name.replace("pipeline", "CNN alone")])
            # On a CPU both share the cores, so their times add up; else the slower of them is the limit.
            limit = 1 / (1 / alone + 1 / cnn) if device.type == "cpu" else np.minimum(alone, cnn)
            row[-1] = f"{np.median(values / limit):.0%}"
        rows.append(tuple(row))
    machine = machine_in_words(device)
    lines = [f"{machine}; {args.files} files, {sampling.frames} frames each, medians of {args.rounds} rounds.", ""]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    print("\n".join(lines))
    if args.out:
        args.out.with_suffix(".md").write_text("\n".join(lines) + "\n")
        content = {"machine": machine, "frames_per_second": rates}
        args.out.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n")


def plain_loop(paths: list[Path], frames: int, device: torch.device) -> int:
    """Decodes, transforms and runs one video after the other; returns the number of frames."""
    model, transform = plain_model(device)
    done = 0
    for path in paths:
        reader = decord.VideoReader(str(path))
        wanted = ((np.arange(frames) + 0.5) * (len(reader) - 1) / frames).astype(int)
        batch = torch.stack([transform(Image.fromarray(frame)) for frame in reader.get_batch(wanted).asnumpy()])
        with torch.inference_mode():
            done += len(model(batch.to(device)).cpu())
    return done


@functools.cache
def plain_model(device: torch.device) -> tuple[torch.nn.Module, Callable]:
    # Random weights take the same time.
    model = timm.create_model(BackboneConfig().model, num_classes=0).eval().to(device)
    return model, timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)


def run_cnn(backbone: Backbone, frames: np.ndarray) -> int:
    return len(backbone(frames))


def run_pipeline(clips: list[Clip], backbone: Backbone, sampling: SamplingConfig, decode: DecodeConfig) -> int:
    return sum(len(outcome.features) for _, outcome in clip_features(clips, backbone, sampling, decode))


def machine_in_words(device: torch.device) -> str:
    has = torch.cpu.get_capabilities()
    sets = ", ".join(name for name in INSTRUCTION_SETS if has.get(name))
    gpu = f", {torch.cuda.get_device_name(device)}" if device.type == "cuda" else ""
    versions = f"Python {platform.python_version()}, PyTorch {torch.__version__}"
    return f"{joblib.cpu_count()} cores {has.get('cpu_name') or platform.machine()} ({sets}){gpu}; {versions}"


if __name__ == "__main__":
    main()
