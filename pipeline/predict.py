"""A bundle and video files -> their likeliest classes, through the code that extraction uses.

kinema predict data/runs/ucf101 holiday.mp4 --json
"""

import json
import os
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from pipeline.backbone import Backbone
from pipeline.bundle import Bundle
from pipeline.clip import Clip
from pipeline.device import resolve_device
from pipeline.entry import ClipFeatures
from pipeline.errors import ConfigError, KinemaError, printable
from pipeline.extract import clip_features
from pipeline.fit import classify
from pipeline.store import fingerprint
from pipeline.workers import Failure


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


def predict(run: Path, videos: list[Path], top: int, as_json: bool, overrides: dict[str, str]) -> None:
    """Prints the `top` likeliest classes of each video, as text or as one JSON object per line.

    Raises:
        ConfigError: a folder is among the videos.
        KinemaError: the bundle cannot be used, or a video could not be read (the others are printed).
    """
    if folders := [printable(video) for video in videos if video.is_dir()]:
        raise ConfigError(f"{folders[0]}: a folder; name the files in it, such as {folders[0]}/*")
    unreadable = []
    predictor = Predictor(run, overrides)
    for video, outcome in predictor(videos):
        answer: dict[str, Any] = {"path": os.fspath(video)}
        name = printable(video)
        if isinstance(outcome, Failure):
            answer["error"] = outcome.reason
            unreadable.append(f"{name}: cannot be read: {outcome.reason}")
        else:
            answer |= {"frames": outcome.frames, "planned": outcome.planned}
            partial = f" (damaged: {outcome.frames} of {outcome.planned} frames)"
            name += partial if outcome.frames < outcome.planned else ""
            values, order = outcome.logits.softmax(0).topk(min(top, len(predictor.classes)))
            answer["top"] = [
                {"label": predictor.classes[position], "probability": round(value, 4)}
                for value, position in zip(values.tolist(), order.tolist(), strict=True)
            ]
        if as_json:
            print(json.dumps(answer), flush=True)
        elif "top" in answer:
            print(name)
            for guess in answer["top"]:
                print(f"  {guess['probability']:6.1%}  {printable(guess['label'])}")
            sys.stdout.flush()
    if unreadable:
        raise KinemaError("\n".join(unreadable))
