"""Videos -> features: decode in worker processes, transform, CNN in batches across clips, feature store.

kinema extract --config configs/ucf101.yaml
"""

import functools
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import joblib
import numpy as np
from PIL import Image

from pipeline.backbone import Backbone, resolve_device
from pipeline.config import Config
from pipeline.data import Clip, load_dataset
from pipeline.decode import DecodeConfig, DecodedClip, decode_clip
from pipeline.errors import KinemaError
from pipeline.progress import progress
from pipeline.sampling import SamplingConfig
from pipeline.store import ClipFeatures, FeatureStore
from pipeline.workers import Failure, run_isolated


def decode_and_transform(clip: Clip, sampling: SamplingConfig, transform: Callable) -> DecodedClip:
    """Reads a clip's planned frames, resized and cropped for the CNN: `frames` is uint8 [T,3,H,W].

    Raises:
        DecodeError: the clip cannot be read.
    """
    decoded = decode_clip(clip.path, sampling.frames, clip.start, clip.end)
    images = [np.asarray(transform(Image.fromarray(frame))) for frame in decoded.frames]
    return decoded._replace(frames=np.stack(images).transpose(0, 3, 1, 2))


def clip_features(
    clips: Iterable[Clip], backbone: Backbone, sampling: SamplingConfig, decode: DecodeConfig
) -> Iterator[tuple[Clip, ClipFeatures | Failure]]:
    """Turns clips into features; the one way for extraction and prediction.

    Frames of several clips go through the CNN together, so that its batches are full.

    Yields:
        (clip, features or failure), failures as they come, features in batches.
    """
    load = functools.partial(decode_and_transform, sampling=sampling, transform=backbone.transform)
    waiting: list[tuple[Clip, DecodedClip]] = []

    def run_cnn() -> Iterator[tuple[Clip, ClipFeatures | Failure]]:
        features = backbone(np.concatenate([decoded.frames for _, decoded in waiting]))
        bounds = np.cumsum([len(decoded.frames) for _, decoded in waiting])[:-1]
        for (clip, decoded), features_TD in zip(waiting, np.split(features, bounds), strict=True):
            if np.isfinite(features_TD).all():
                yield clip, ClipFeatures(features_TD, decoded.pts, decoded.indices, decoded.decoder)
            else:
                yield clip, Failure(f"features overflow in {backbone.engine}; use --backbone.precision fp32")
        waiting.clear()

    for clip, outcome in run_isolated(load, clips, decode.workers or joblib.cpu_count(), decode.deadline):
        if isinstance(outcome, Failure):
            yield clip, outcome
            continue
        waiting.append((clip, outcome))
        if sum(len(decoded.frames) for _, decoded in waiting) >= backbone.batch:
            yield from run_cnn()
    if waiting:
        yield from run_cnn()


def extract(config: Config) -> None:
    """Computes and stores the features of every clip of a data set that are not there yet.

    Raises:
        KinemaError: the data set or the store cannot be used, or no clip at all could be read.
    """
    began = time.monotonic()
    device = resolve_device(config.device)
    clips = load_dataset(config.data).clips
    backbone = Backbone(config.backbone, device)
    store = FeatureStore(config.store, backbone, config.sampling)
    store.prepare()
    todo = [clip for clip in clips if store.read(clip) is None]
    skipped = len(clips) - len(todo)
    print(f"{len(clips)} clips, {skipped} already in {store.folder}, {len(todo)} to do; {backbone.engine}")

    done = frames = 0
    failed: list[Path] = []
    with progress("extract", len(clips), "clips", start=skipped) as bar:
        for clip, outcome in clip_features(todo, backbone, config.sampling, config.decode):
            if isinstance(outcome, Failure):
                store.record_failure(clip, outcome)
                failed.append(clip.path)
            else:
                store.write(clip, outcome)
                done += 1
                frames += len(outcome.features)
            bar.set_postfix_str(f"{frames / bar.format_dict['elapsed']:.0f} frames/s", refresh=False)
            bar.update()
        elapsed = bar.format_dict["elapsed"]
    rate = f", {frames / elapsed:.0f} frames/s" if done else ""
    print(f"extract: {done} done, {skipped} skipped, {len(failed)} failed{rate}, {time.monotonic() - began:.0f} s")
    if failed:
        print(f"failures: {os.path.relpath(store.ledger)}")
    if failed and not done and not skipped:
        raise KinemaError(f"none of {len(clips)} clips could be read; the reasons are in {store.ledger}")
