"""Classify videos with a run bundle: `kinema predict data/runs/ucf101 holiday.mp4 clips/ --json`."""

import csv
import itertools
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from pipeline.base.errors import ConfigError, KinemaError, printable
from pipeline.inference.predictor import Prediction, Predictor
from pipeline.inference.sources import DOWNLOADED, expand, fetched
from pipeline.video.workers import Failure


def predict(run: Path, sources: list[str], top: int, as_json: bool, as_csv: bool, overrides: dict[str, str]) -> None:
    """Print the `top` classes of each video as a table, as JSON lines or as CSV; raise at the end if some cannot be
    read."""
    if top < 1:
        raise ConfigError(f"--top must be at least 1, got {top}")
    if as_json and as_csv:
        raise ConfigError("--json and --csv exclude each other")
    predictor, unreadable = Predictor(run, overrides), []
    show = _json(top) if as_json else _csv() if as_csv else _table(top, predictor.classes)
    for name, answer in _answers(predictor, expand(sources)):
        if isinstance(answer, Failure):
            unreadable.append(f"{printable(name)}: cannot be read: {answer.reason}")
        show(name, answer)
    if unreadable:
        raise KinemaError("\n".join(unreadable))


def _answers(predictor: Predictor, names: Iterator[str]) -> Iterator[tuple[str, Prediction | Failure]]:
    """Yield the answer for each source, in order and once; downloads only when it is their turn."""
    for is_file, group in itertools.groupby(dict.fromkeys(names), lambda name: not name.startswith(DOWNLOADED)):
        for batch in [[*group]] if is_file else ([name] for name in group):
            with fetched(batch[0]) as first:
                if isinstance(first, Failure):
                    yield batch[0], first
                    continue
                answers = predictor.predict_many([first, *batch[1:]])
                yield from zip(batch, (answer for _, answer in answers), strict=True)


Show = Callable[[str, Prediction | Failure], None]


def _json(top: int) -> Show:
    def show(name: str, answer: Prediction | Failure) -> None:
        if isinstance(answer, Failure):
            content = {"error": answer.reason}
        else:
            content = {"frames": answer.frames, "planned": answer.planned, "top": answer.top(top)}
        print(json.dumps({"path": name, **content}), flush=True)

    return show


def _csv() -> Show:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(("path", "label", "probability", "error"))

    def show(name: str, answer: Prediction | Failure) -> None:
        if isinstance(answer, Failure):
            writer.writerow((name, "", "", answer.reason))
        else:
            writer.writerow((name, answer.label, answer.probability, ""))
        sys.stdout.flush()

    return show


def _table(top: int, classes: list[str]) -> Show:
    """Show a row per video that can be read. Names come last, because they may be long."""
    width = max(len(printable(label)) for label in classes)

    def show(name: str, answer: Prediction | Failure) -> None:
        if isinstance(answer, Failure):
            return
        guesses = [f"{printable(guess['label']):{width}} {guess['probability']:6.1%}" for guess in answer.top(top)]
        partial = f" (damaged: {answer.frames} of {answer.planned} frames)"
        note = partial if answer.frames < answer.planned else ""
        print("  ".join([*guesses, printable(name) + note]), flush=True)

    return show
