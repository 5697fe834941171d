"""A bundle and video files -> logits, through the code that extraction uses."""

import os
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from pipeline.base.device import resolve_device
from pipeline.base.errors import KinemaError
from pipeline.data.clip import Clip
from pipeline.features.backbone import Backbone
from pipeline.features.entry import ClipFeatures
from pipeline.features.extraction import clip_features
from pipeline.features.store import fingerprint
from pipeline.runs.bundle import Bundle
from pipeline.runs.trainer import classify
from pipeline.video.workers import Failure


class Prediction(NamedTuple):
    """What a video shows: `logits` float32 [C], from `frames` frames of `planned`; fewer where the file is damaged."""

    logits: torch.Tensor
    frames: int
    planned: int


class Predictor:
    """A loaded bundle, for any number of files."""

    def __init__(self, run: str | Path, overrides: dict[str, str] | None = None):
        """Loads the bundle.

        Args:
            run: the bundle's folder.
            overrides: settings by dotted name, such as {"device": "cpu"}.

        Raises:
            KinemaError: the bundle is incomplete or damaged, or its features are made in another way now.
        """
        bundle = Bundle(Path(run))
        bundle.require_complete()
        self.config = bundle.config(overrides or {})
        self.device = resolve_device(self.config.device)
        self.classes = bundle.classes
        self.reduction, heads = bundle.load(self.config, self.device)
        self.heads = heads[self.config.head.kind]
        self.backbone = Backbone(self.config.backbone, self.device, bundle.backbone_file)
        trained = bundle.config({})
        as_trained = self.backbone.description | {"precision": trained.backbone.precision}
        if fingerprint(as_trained, trained.sampling) != bundle.trained()["fingerprint"]:
            raise KinemaError(
                f"{run}: trained on features that another version of Kinema or timm made; extract and train again"
            )

    def __call__(self, videos: str | Path | Iterable[str | Path]) -> Iterator[tuple[Path, Prediction | Failure]]:
        """Yields (video, prediction or failure) in the order in which they were asked for, each once."""
        asked = deque(dict.fromkeys(map(Path, [videos] if isinstance(videos, str | Path) else videos)))
        clips = [Clip(id=os.fspath(video), path=video, label="", group="") for video in asked]
        answers: dict[Path, Prediction | Failure] = {}
        for clip, outcome in clip_features(clips, self.backbone, self.config.sampling, self.config.decode):
            answers[clip.path] = outcome if isinstance(outcome, Failure) else self._answer(outcome)
            while asked and asked[0] in answers:
                video = asked.popleft()
                yield video, answers.pop(video)

    def _answer(self, seen: ClipFeatures) -> Prediction:
        frames = len(seen.features)
        parts_1PK = self.reduction(torch.from_numpy(seen.features)[None], torch.tensor([frames]))
        return Prediction(classify(self.heads, parts_1PK, self.device).mean(0)[0], frames, seen.planned)
