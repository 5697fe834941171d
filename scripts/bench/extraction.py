"""Compare the speed of extraction on this machine with a plain loop, and with the limit set by its parts.

    python scripts/bench/extraction.py --videos data/demo/videos --out docs/performance/extraction

The plain loop is what most public code does: decord, timm's transform, the CNN in eager fp32, one video at a time.
`--peer` names a clone of github.com/v-iashin/video_features, whose timm extractor then reads the same files with the
same weights (it needs: pip install opencv-python-headless omegaconf). It computes every frame of a file, Kinema and the
plain loop `sampling.frames` of them.
"""

import argparse
import functools
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import joblib
import numpy as np
import timm
import torch

# isort: split
import decord
from PIL import Image
from rounds import alternate, publish, ratio

from pipeline.base.device import resolve_device
from pipeline.config import BackboneConfig, DecodeConfig, SamplingConfig
from pipeline.data.clip import Clip
from pipeline.features.backbone import Backbone
from pipeline.features.extraction import clip_features
from pipeline.video.transform import read_frames
from pipeline.video.workers import Failure, run_isolated


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--videos", type=Path, default=Path("data/demo/videos"), help="folder, searched at any depth")
    parser.add_argument("--files", type=int, default=16, help="number of files, spread evenly over the folder")
    parser.add_argument("--times", type=int, default=8, help="passes of the pipeline over them per round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peer", type=Path, help="folder of a clone of video_features")
    parser.add_argument("--out", type=Path, help="also write OUT.md and OUT.json")
    args = parser.parse_args()

    found = [path for path in sorted(args.videos.rglob("*.*")) if path.is_file()]
    paths = [found[position] for position in np.linspace(0, len(found) - 1, args.files).astype(int)]
    clips = [Clip(id=f"{n} {path}", path=path, label="", group="") for n in range(args.times) for path in paths]
    device = resolve_device("auto")
    backbone = Backbone(BackboneConfig(), device)
    decode, sampling, workers = DecodeConfig(), SamplingConfig(), joblib.cpu_count()
    load = functools.partial(read_frames, sampling=sampling, decode=decode, transform=backbone.transform)
    loaded = list(run_isolated(load, clips[: args.files], workers, decode.timeout))
    if unreadable := [clip.id for clip, decoded in loaded if isinstance(decoded, Failure)]:
        raise SystemExit(f"{unreadable[0]} cannot be read; give a folder of healthy videos")
    ready = np.concatenate([decoded.frames for _, decoded in loaded])
    ready = np.concatenate([ready] * max(1, 1000 // len(ready)))
    backbones = {backbone.engine: backbone}
    if not backbone.engine.startswith("torch"):
        backbones["torch"] = Backbone(BackboneConfig(engine="torch"), device)

    def decode_alone() -> int:
        return sum(len(decoded.frames) for _, decoded in run_isolated(load, clips, workers, decode.timeout))

    plain, decoding = "plain loop", f"decode and resize alone, {workers} processes"
    ways: dict[str, Callable[[], int]] = {plain: functools.partial(plain_loop, paths, sampling.frames, device)}
    if args.peer:
        for size in (1, sampling.frames):
            ways[f"video_features, batches of {size}"] = functools.partial(peer(args.peer, size, device), paths)
    ways[decoding] = decode_alone
    for engine in backbones.values():
        ways[f"CNN alone, {engine.engine}"] = functools.partial(run_cnn, engine, ready)
        ways[f"pipeline, {engine.engine}"] = functools.partial(run_pipeline, clips, engine, sampling, decode)
    pooled = Backbone(BackboneConfig(view="pooled"), device)
    ways[f"CNN alone, {pooled.engine}, view pooled"] = functools.partial(run_cnn, pooled, ready)
    rates = alternate(ways, args.rounds)

    rows = [("", "frames/s", "vs. plain loop", "share of the limit")]
    for name, values in rates.items():
        share = ""
        if name.startswith("pipeline"):
            parts = list(zip(rates[decoding], rates[name.replace("pipeline", "CNN alone")], strict=True))
            # On a CPU decoding and CNN share the cores, so their times add up. On a GPU the slower is the limit.
            limits = [1 / (1 / a + 1 / b) if device.type == "cpu" else min(a, b) for a, b in parts]
            share = f"{ratio(values, limits):.0%}"
        rows.append((name, f"{statistics.median(values):.0f}", f"{ratio(values, rates[plain]):.1f}", share))
    about = f"{args.files} files of {args.videos}, {sampling.frames} frames each, medians of {args.rounds} rounds"
    publish(rows, about, {"frames_per_second": rates}, args.out)


def plain_loop(paths: list[Path], frames: int, device: torch.device) -> int:
    """Decode, transform and run one video after the other; return the number of frames."""
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
    model = timm.create_model(BackboneConfig().model, num_classes=0).eval()
    model.load_state_dict(Backbone(BackboneConfig(), device).state)
    data = timm.data.resolve_model_data_config(model)
    return model.to(device), timm.data.create_transform(**data, is_training=False)


def peer(folder: Path, batch_size: int, device: torch.device) -> Callable[[list[Path]], int]:
    """Create the peer's extractor, with the weights of `plain_model` instead of a download."""
    sys.path.append(str(folder))
    from models.timm.extract_timm import ExtractTIMM

    create, (model, _) = timm.create_model, plain_model(device)
    timm.create_model = lambda *_, **__: model
    settings = {"feature_type": "timm", "model_name": BackboneConfig().model, "batch_size": batch_size}
    settings |= {"device": str(device), "extraction_fps": None, "extraction_total": None, "show_pred": False}
    settings |= {"on_extraction": "print", "tmp_path": "", "output_path": "", "keep_tmp_files": False}
    extractor = ExtractTIMM(SimpleNamespace(**settings))
    timm.create_model = create
    return lambda paths: sum(len(extractor.extract(str(path))["timm"]) for path in paths)


def run_cnn(backbone: Backbone, frames: np.ndarray) -> int:
    return len(backbone(frames))


def run_pipeline(clips: list[Clip], backbone: Backbone, sampling: SamplingConfig, decode: DecodeConfig) -> int:
    return sum(len(outcome.features) for _, outcome in clip_features(clips, backbone, sampling, decode))


if __name__ == "__main__":
    main()
