"""Classify videos with a run bundle, through the code of extraction."""

import html
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from pipeline.base.errors import KinemaError, printable
from pipeline.base.settings import build
from pipeline.config import Config
from pipeline.data.clip import Clip
from pipeline.features.backbone import Backbone
from pipeline.features.entry import ClipFeatures
from pipeline.features.extraction import clip_features
from pipeline.features.store import fingerprint
from pipeline.inference.live import LiveAnswer, answer_stream
from pipeline.inference.recordings import plan_recordings, read_recording
from pipeline.models.segmenter import Segment, Segmenter
from pipeline.models.windows import SlidingWindow, Window
from pipeline.runs.bundle import Bundle
from pipeline.video.recording import Recording
from pipeline.video.workers import Failure


class Prediction(NamedTuple):
    classes: list[str]
    logits: torch.Tensor  # float32 [C].
    frames: int  # Fewer than planned where the file is damaged.
    planned: int
    is_unknown: bool = False  # Set by `kinema predict --unknown`.

    def top(self, number: int = 5) -> list[dict[str, Any]]:
        """Return the most likely classes: [{"label": "Archery", "probability": 0.9312}, ...]."""
        values, order = self.logits.softmax(0).topk(min(number, len(self.classes)))
        pairs = zip(values.tolist(), order.tolist(), strict=True)
        return [{"label": self.classes[place], "probability": round(value, 4)} for value, place in pairs]

    @property
    def label(self) -> str:
        return self.top(1)[0]["label"]

    @property
    def probability(self) -> float:
        return self.top(1)[0]["probability"]

    def _repr_html_(self) -> str:
        """Return a table with bars, for notebooks."""
        bar = '<div style="background:#56B4E9;height:0.8em;width:{:.0f}px"></div>'
        rows = (
            f"<tr><td>{html.escape(guess['label'])}</td><td>{guess['probability']:.1%}</td>"
            f"<td>{bar.format(200 * guess['probability'])}</td></tr>"
            for guess in self.top()
        )
        return f"<table>{''.join(rows)}</table>"


class Predictor:
    """The bundle in the folder `run`. `overrides` are settings by dotted name, such as {"device": "cpu"}."""

    def __init__(self, run: str | Path, overrides: dict[str, Any] | None = None):
        self.run = Path(run)
        bundle, self.config, self.device, classifiers = Bundle.load(self.run, overrides or {}, "predict")
        self.classes, self.classifier = bundle.classes, next(iter(classifiers.values()))
        self.window = bundle.window()
        self.backbone = Backbone(self.config.backbone, self.device, bundle.backbone_file)
        if fingerprint(build(Config, bundle.config_file, {}), self.backbone) != bundle.metadata()["fingerprint"]:
            made = "trained on features that another version of Kinema or timm made"
            raise KinemaError(f"{run}: {made}; extract and train again")
        self.unknown_below = float(bundle.metadata().get("unknown_below", "nan"))

    def predict(self, video: str | Path) -> Prediction:
        """Classify one video as a whole; raises a KinemaError if it cannot be read."""
        [(path, answer)] = self.predict_many([video])
        if isinstance(answer, Failure):
            raise KinemaError(f"{printable(path)}: cannot be read: {answer.reason}")
        return answer

    def predict_many(self, videos: str | Path | Iterable[str | Path]) -> Iterator[tuple[Path, Prediction | Failure]]:
        """Yield (video, prediction or failure) in the given order, each video once."""
        paths = list(dict.fromkeys(map(Path, [videos] if isinstance(videos, str | Path) else videos)))
        # The decoding processes may have another current folder.
        clips = [Clip(id=str(path), path=path.absolute(), label="", group="") for path in paths]
        done: dict[Path, Prediction | Failure] = {}
        with closing(clip_features(clips, self.backbone, self.config.sampling, self.config.decode)) as outcomes:
            for path in paths:
                while path not in done:
                    clip, outcome = next(outcomes)
                    done[Path(clip.id)] = outcome if isinstance(outcome, Failure) else self._classify(outcome)
                yield path, done.pop(path)

    __call__ = predict_many

    def segments(self, video: str | Path) -> Iterator[Segment]:
        """Yield what happens in a long video, in order, each segment as soon as no later frame can change it.

        Raises a KinemaError if the video cannot be read, or if the run knows no window."""
        path = Path(video)
        recording = self.plan([path])[path]
        if isinstance(recording, Failure):
            raise KinemaError(f"{printable(path)}: cannot be read: {recording.reason}")
        yield from self.segments_of(recording)

    def plan(self, paths: list[Path]) -> dict[Path, Recording | Failure]:
        """Return how long videos are, and which of their frames are needed."""
        return plan_recordings(paths, self._window().step, self.config.decode)

    def _window(self) -> Window:
        if not self.window:
            raise KinemaError(f"{self.run}: trained before runs had a window for segments; delete it and train again")
        return self.window

    def segments_of(self, recording: Recording, cells: list[np.ndarray | None] | None = None) -> Iterator[Segment]:
        """Yield the segments of a planned recording. `cells` gets the log-probabilities (see `SlidingWindow`)."""
        windows = SlidingWindow(self.classifier, self.window)
        segmenter, left = Segmenter(self.window, self.classes), len(recording.indices_T)
        with closing(read_recording(recording, self.backbone, self.config.decode)) as parts:
            for frames in parts:
                left -= len(frames)
                known = windows.push(frames, ended=not left)
                if cells is not None:
                    cells += known
                yield from segmenter.push(known, None if left else recording.duration)

    def features(self, video: str | Path) -> ClipFeatures:
        """Return the features of the sampled frames of a video; raises a KinemaError if it cannot be read."""
        clip = Clip(id=str(video), path=Path(video).absolute(), label="", group="")
        [(_, outcome)] = clip_features([clip], self.backbone, self.config.sampling, self.config.decode)
        if isinstance(outcome, Failure):
            raise KinemaError(f"{printable(video)}: cannot be read: {outcome.reason}")
        return outcome

    def stream(self, source: str, note: Callable[[str], None] = lambda _: None) -> Iterator[LiveAnswer]:
        """Yield what happens in a live source, such as `rtsp://...`, until the iterator is closed. `note` gets a line
        when the source is lost."""
        window = self._window()
        return answer_stream(source, self.backbone, self.classifier, window, self.classes, note)

    def best(self, prediction: Prediction, top: int = 5) -> list[dict[str, Any]]:
        return prediction.top(top)

    def is_unknown(self, prediction: Prediction) -> bool:
        """Whether the probability of the best class is below the threshold chosen on the validation clips."""
        if math.isnan(self.unknown_below):
            raise KinemaError("the run has no threshold for unknown clips; train it again")
        return float(prediction.logits.softmax(0).max()) < self.unknown_below

    @torch.inference_mode()
    def _classify(self, clip: ClipFeatures) -> Prediction:
        features_1TD = torch.from_numpy(clip.features)[None].to(self.device, torch.float32)
        logits_1C = self.classifier(features_1TD, torch.tensor([len(clip.features)]))
        return Prediction(self.classes, logits_1C[0].cpu(), len(clip.features), clip.planned)
