"""A bundle and video files -> their likeliest classes.

kinema predict data/runs/ucf101 holiday.mp4 --json
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

from pipeline.base.errors import ConfigError, KinemaError, printable
from pipeline.inference.predictor import Predictor
from pipeline.video.workers import Failure


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
