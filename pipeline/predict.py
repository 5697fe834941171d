"""Classify video files with a run bundle.

kinema predict data/runs/ucf101 holiday.mp4 --json
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

from pipeline.base.errors import ConfigError, KinemaError, printable
from pipeline.inference.predictor import Prediction, Predictor
from pipeline.video.workers import Failure


def predict(run: Path, videos: list[Path], top: int, as_json: bool, overrides: dict[str, str]) -> None:
    """Print the `top` most likely classes of each video, as text or as one JSON object per line.

    Raises:
        ConfigError: a folder is among the videos.
        KinemaError: the bundle cannot be used, or a video could not be read (the others are printed).
    """
    if folders := [printable(video) for video in videos if video.is_dir()]:
        raise ConfigError(f"{folders[0]}: a folder; name the files in it, such as {folders[0]}/*")
    unreadable = []
    predictor = Predictor(run, overrides)
    for video, outcome in predictor(videos):
        if isinstance(outcome, Failure):
            unreadable.append(f"{printable(video)}: cannot be read: {outcome.reason}")
            fields: dict[str, Any] = {"error": outcome.reason}
        else:
            fields = {"frames": outcome.frames, "planned": outcome.planned, "top": predictor.best(outcome, top)}
        if as_json:
            print(json.dumps({"path": os.fspath(video), **fields}), flush=True)
        elif isinstance(outcome, Prediction):
            partial = f" (damaged: {outcome.frames} of {outcome.planned} frames)"
            print(printable(video) + (partial if outcome.frames < outcome.planned else ""))
            for guess in fields["top"]:
                print(f"  {guess['probability']:6.1%}  {printable(guess['label'])}")
            sys.stdout.flush()
    if unreadable:
        raise KinemaError("\n".join(unreadable))
