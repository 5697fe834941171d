"""Answers on standard output: a table, JSON lines or CSV, each line as soon as it is known."""

import csv
import json
import sys
from collections.abc import Callable
from typing import Any

from pipeline.base.errors import printable
from pipeline.inference.live import LiveAnswer
from pipeline.inference.predictor import Prediction
from pipeline.models.segmenter import Segment
from pipeline.video.workers import Failure

Answer = Prediction | Segment | LiveAnswer | Failure
Printer = Callable[[str, Answer], None]
CSV_COLUMNS = "path", "start", "end", "label", "probability", "error"


def printer(style: str, top: int, classes: list[str]) -> Printer:
    """Return a function that prints the answer for a source; `style` is table, json or csv."""
    width = max(len(printable(label)) for label in classes)
    writer = csv.DictWriter(sys.stdout, CSV_COLUMNS, restval="", extrasaction="ignore", lineterminator="\n")
    if style == "csv":
        writer.writeheader()

    def show(source: str, answer: Answer) -> None:
        if style == "json":
            print(json.dumps({"path": source, **as_dict(answer, top)}))
        elif style == "csv":
            best = as_dict(answer, 1)
            writer.writerow({"path": source, **dict(*best.get("top", ())), **best})
        elif not isinstance(answer, Failure):  # Those are listed at the end.
            print(as_row(answer, top, width) + printable(source) + _damage(answer))
        sys.stdout.flush()

    return show


def as_dict(answer: Answer, top: int) -> dict[str, Any]:
    match answer:
        case Failure(reason):
            return {"error": reason}
        case Segment(start, end, label, probability):
            edges = {"start": round(start, 3), "end": round(end, 3)}
            return {**edges, "label": label, "probability": round(probability, 4)}
        case LiveAnswer(segment, is_finished, age, dropped):
            fresh = {"finished": is_finished, "age": round(age, 2), "dropped": dropped}
            return as_dict(segment, top) | fresh
    label = {"label": "unknown"} if answer.is_unknown else {}
    return {"frames": answer.frames, "planned": answer.planned, **label, "top": answer.top(top)}


def as_row(answer: Prediction | Segment | LiveAnswer, top: int, width: int) -> str:
    """Return the columns before the source, which comes last because it may be long."""
    if isinstance(answer, LiveAnswer):
        state = "        " if answer.is_finished else "goes on "
        dropped = f"{answer.dropped} frames dropped  " if answer.dropped else ""
        return f"{as_row(answer.segment, top, width)}{state} {answer.age:.1f} s ago  {dropped}"
    if isinstance(answer, Segment):
        times = f"{clock(answer.start):>12} {clock(answer.end):>12}"
        return f"{times}  {printable(answer.label):{width}} {answer.probability:6.1%}  "
    guesses = (f"{printable(guess['label']):{width}} {guess['probability']:6.1%}  " for guess in answer.top(top))
    return "unknown: " * answer.is_unknown + "".join(guesses)


def clock(seconds: float) -> str:
    """Return a time as 1:02:03.45, or 2:03.45 within the first hour."""
    hundredths = round(seconds * 100)
    hours, rest = divmod(hundredths, 360_000)
    minutes = f"{rest // 6000:02}" if hours else f"{rest // 6000}"
    return (f"{hours}:" if hours else "") + f"{minutes}:{rest % 6000 / 100:05.2f}"


def _damage(answer: Prediction | Segment | LiveAnswer) -> str:
    if not isinstance(answer, Prediction) or answer.frames == answer.planned:
        return ""
    return f" (damaged: {answer.frames} of {answer.planned} frames)"
