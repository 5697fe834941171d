"""Classify videos with a run bundle, through the code of extraction."""

import os
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from pipeline.base.device import resolve_device
from pipeline.base.errors import KinemaError
from pipeline.config import OVERRIDABLE
from pipeline.data.clip import Clip
from pipeline.features.backbone import Backbone
from pipeline.features.entry import ClipFeatures
from pipeline.features.extraction import clip_features
from pipeline.features.manifest import fingerprint
from pipeline.runs.bundle import Bundle
from pipeline.video.workers import Failure


class Prediction(NamedTuple):
    """`logits` float32 [C], from `frames` of `planned` frames; fewer where the file is damaged."""

    logits: torch.Tensor
    frames: int
    planned: int


class Predictor:
    """A loaded bundle, for any number of files."""

    def __init__(self, run: str | Path, overrides: dict[str, Any] | None = None):
        """Load the bundle.

        Args:
            run: the bundle's folder.
            overrides: settings by dotted name, such as {"device": "cpu"}.

        Raises:
            ConfigError: a setting is unknown, or fixed by the run.
            KinemaError: the bundle is incomplete, damaged, or made by another version of Kinema.
        """
        bundle = Bundle(Path(run))
        bundle.require_complete()
        self.config = bundle.config(overrides or {}, OVERRIDABLE["predict"])
        self.device = resolve_device(self.config.device)
        self.classes = bundle.classes
        self.classifier = next(iter(bundle.load_models(self.config, self.device).values()))
        self.backbone = Backbone(self.config.backbone, self.device, bundle.backbone_file)
        trained = bundle.config({})
        if fingerprint(trained, self.backbone) != bundle.metadata()["fingerprint"]:
            raise KinemaError(
                f"{run}: trained on features that another version of Kinema or timm made; extract and train again"
            )

    def __call__(self, videos: str | Path | Iterable[str | Path]) -> Iterator[tuple[Path, Prediction | Failure]]:
        """Yield (video, prediction or failure) in the given order, each video once."""
        waiting = deque(dict.fromkeys(map(Path, [videos] if isinstance(videos, str | Path) else videos)))
        clips = [Clip(id=os.fspath(video), path=video, label="", group="") for video in waiting]
        done: dict[Path, Prediction | Failure] = {}
        for clip, outcome in clip_features(clips, self.backbone, self.config.sampling, self.config.decode):
            done[clip.path] = outcome if isinstance(outcome, Failure) else self._classify(outcome)
            while waiting and waiting[0] in done:
                video = waiting.popleft()
                yield video, done.pop(video)

    def best(self, prediction: Prediction, top: int = 5) -> list[dict[str, Any]]:
        """Return the most likely classes: [{"label": "Archery", "probability": 0.9312}, ...]."""
        values, order = prediction.logits.softmax(0).topk(min(top, len(self.classes)))
        return [
            {"label": self.classes[position], "probability": round(value, 4)}
            for value, position in zip(values.tolist(), order.tolist(), strict=True)
        ]

    @torch.inference_mode()
    def _classify(self, clip: ClipFeatures) -> Prediction:
        frames = len(clip.features)
        features_1TD = torch.from_numpy(clip.features)[None].to(self.device, torch.float32)
        logits_1C = self.classifier(features_1TD, torch.tensor([frames]))
        return Prediction(logits_1C[0].cpu(), frames, clip.planned)
