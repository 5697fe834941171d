"""Classify video files with a run bundle: `kinema predict data/runs/ucf101 holiday.mp4 --json`."""

import json
from pathlib import Path
from typing import Any

from pipeline.base.errors import ConfigError, KinemaError, printable
from pipeline.inference.predictor import Predictor
from pipeline.video.workers import Failure


def predict(run: Path, videos: list[Path], top: int, as_json: bool, overrides: dict[str, str]) -> None:
    """Print the `top` classes of each video, as text or as JSON lines; raise at the end if some cannot be read."""
    if top < 1:
        raise ConfigError(f"--top must be at least 1, got {top}")
    if folders := [printable(video) for video in videos if video.is_dir()]:
        raise ConfigError(f"{folders[0]} is a folder; pass files, such as {folders[0]}/*")
    predictor, unreadable = Predictor(run, overrides), []
    for video, outcome in predictor(videos):
        if isinstance(outcome, Failure):
            unreadable.append(f"{printable(video)}: cannot be read: {outcome.reason}")
            answer: dict[str, Any] = {"error": outcome.reason}
        else:
            answer = {"frames": outcome.frames, "planned": outcome.planned, "top": predictor.best(outcome, top)}
        if as_json:
            print(json.dumps({"path": str(video), **answer}), flush=True)
        elif "top" in answer:
            partial = f" (damaged: {answer['frames']} of {answer['planned']} frames)"
            name = printable(video) + (partial if answer["frames"] < answer["planned"] else "")
            lines = [f"  {guess['probability']:6.1%}  {printable(guess['label'])}" for guess in answer["top"]]
            print(name, *lines, sep="\n", flush=True)
    if unreadable:
        raise KinemaError("\n".join(unreadable))
