"""Segments -> files for other programs: subtitles, ELAN, ActivityNet and Label Studio."""

import importlib.util
import json
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.base.errors import ConfigError, printable
from pipeline.base.files import atomic_write
from pipeline.models.segmenter import Segment

FOR_EACH = {"srt": "pysubs2", "vtt": "pysubs2", "eaf": "pympi"}
FORMATS = (*FOR_EACH, "activitynet", "labelstudio")
"""Those of `FOR_EACH` give a file for each video and need that library; the others give one for all."""


class Answered(NamedTuple):
    source: str  # A path or an address, as it was given.
    name: str  # Of the files that are written, without a suffix.
    frame_rate: float
    segments: list[Segment]  # Without background.


def check_formats(formats: list[str]) -> None:
    """Raise a ConfigError for a format that is unknown, or whose library is not installed."""
    for name in formats:
        if name not in FORMATS:
            raise ConfigError(f"--save: unknown format '{name}'; the formats are {', '.join(FORMATS)}")
        if name in FOR_EACH and not importlib.util.find_spec(FOR_EACH[name]):
            raise ConfigError(f"--save: {name} needs {FOR_EACH[name]}; pip install 'kinema[formats]'")


def unused_name(source: str, used: list[str]) -> str:
    """Return the source's name without its suffix, with a number if it is used already."""
    stem = Path(source).stem
    names = (f"{stem}_{number}" if number > 1 else stem for number in range(1, len(used) + 2))
    return next(name for name in names if name not in used)


def save(folder: Path, formats: list[str], videos: list[Answered], model: str) -> None:
    """Write the files of the last video, and those of all."""
    folder.mkdir(parents=True, exist_ok=True)
    video = videos[-1]
    for kind in formats:
        with atomic_write(folder / (f"{video.name}.{kind}" if kind in FOR_EACH else f"{kind}.json")) as temporary:
            match kind:
                case "eaf":
                    elan(video).to_file(temporary)
                case "activitynet":
                    temporary.write_text(json.dumps(activitynet(videos, model), indent=1) + "\n", encoding="utf-8")
                case "labelstudio":
                    tasks = [labelstudio_task(video, model) for video in videos]
                    temporary.write_text(json.dumps(tasks, indent=1) + "\n", encoding="utf-8")
                case _:
                    temporary.write_text(subtitles(video, kind), encoding="utf-8")


def subtitles(video: Answered, kind: str) -> str:
    """Return subtitles: "Archery 93 %" from the start to the end of each segment."""
    import pysubs2

    lines = pysubs2.SSAFile()
    for start, end, label, probability in video.segments:
        line = pysubs2.SSAEvent(round(start * 1000), round(end * 1000))
        line.plaintext = f"{printable(label)} {probability:.0%}".replace("%", " %")
        lines.append(line)
    return lines.to_string(kind)


def elan(video: Answered) -> Any:
    """Return an ELAN document with the tiers `label` and, below it, `probability`."""
    import pympi

    document = pympi.Elan.Eaf(author="Kinema")
    document.remove_tier("default")
    path = Path(video.source).absolute()
    document.add_linked_file(path.as_uri(), relpath=path.name, mimetype="video/mp4")
    document.add_linguistic_type("probability", "Symbolic_Association")
    document.add_tier("label")
    document.add_tier("probability", "probability", parent="label")
    for start, end, label, probability in video.segments:
        document.add_annotation("label", round(start * 1000), round(end * 1000), printable(label))
        document.add_ref_annotation("probability", "label", round((start + end) * 500), f"{probability:.4f}")
    return document


def activitynet(videos: list[Answered], model: str) -> dict[str, Any]:
    """Return the form of detection results that ActivityNet's evaluation reads."""
    results = {
        video.name: [{"label": s.label, "score": s.probability, "segment": [s.start, s.end]} for s in video.segments]
        for video in videos
    }
    return {"version": "VERSION 1.3", "results": results, "external_data": {"model": model}}


def labelstudio_task(video: Answered, model: str) -> dict[str, Any]:
    """Return a task with predictions for the tags `<Video name="video" value="$video" frameRate="$fps"/>` and
    `<TimelineLabels name="label" toName="video">`, which count frames from 1."""
    result = [
        {
            "id": f"segment{number}",
            "type": "timelinelabels",
            "from_name": "label",
            "to_name": "video",
            "score": segment.probability,
            "value": {
                "ranges": [{"start": round(s * video.frame_rate) + 1, "end": max(round(e * video.frame_rate), 1)}],
                "timelinelabels": [segment.label],
            },
        }
        for number, segment in enumerate(video.segments)
        for s, e in [segment[:2]]
    ]
    data = {"video": video.source, "fps": video.frame_rate}
    return {"data": data, "predictions": [{"model_version": model, "result": result}]}
