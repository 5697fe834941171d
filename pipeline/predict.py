"""Classify videos with a run bundle: `kinema predict data/runs/ucf101 holiday.mp4 clips/ --json`."""

import itertools
import sys
from collections.abc import Iterator
from pathlib import Path

from pipeline.base.errors import ConfigError, KinemaError, printable
from pipeline.inference.formats import Answered, check_formats, save, unused_name
from pipeline.inference.predictor import Prediction, Predictor
from pipeline.inference.printing import printer
from pipeline.inference.sources import DOWNLOADED, expand, fetched
from pipeline.models.segmenter import Segment
from pipeline.runs.recordings import actions
from pipeline.video.recording import Recording
from pipeline.video.workers import Failure

LONG = 3
"""A video of more windows than this is answered as segments."""
BATCH = 256
"""Videos whose lengths are read before the first of them is classified."""


def predict(
    run: Path,
    sources: list[str],
    top: int,
    style: str,
    mode: str,
    formats: list[str],
    out: Path,
    unknown: bool,
    overrides: dict[str, str],
) -> None:
    """Print the answer for each source as it is ready; raise at the end if some cannot be read.

    `style` is table, json or csv; `mode` is whole, segments, or auto: by the length of each video. With
    `unknown`, whole videos below the run's threshold are 'unknown'."""
    if top < 1:
        raise ConfigError(f"--top must be at least 1, got {top}")
    check_formats(formats)
    predictor, unreadable, saved = Predictor(run, overrides), [], []
    show = printer(style, top, predictor.classes)
    for source, answer in _answers(predictor, expand(sources), mode):
        if isinstance(answer, Recording):
            recording, segments = answer, []
            try:
                for segment in _with_gaps(source, predictor.segments_of(recording), recording.duration):
                    segments.append(segment)
                    show(source, segment)
            except KinemaError as error:
                answer = Failure(str(error))
            if formats and segments:
                name = unused_name(source, [video.name for video in saved])
                saved.append(Answered(source, name, recording.frame_rate, actions(segments)))
                save(out, formats, saved, run.name)
        if unknown and isinstance(answer, Prediction):
            answer = answer._replace(is_unknown=predictor.is_unknown(answer))
        if not isinstance(answer, Recording):
            show(source, answer)
        if isinstance(answer, Failure):
            unreadable.append(f"{printable(source)}: cannot be read: {answer.reason}")
    if unreadable:
        raise KinemaError("\n".join(unreadable))


def _answers(
    predictor: Predictor, sources: Iterator[str], mode: str
) -> Iterator[tuple[str, Prediction | Recording | Failure]]:
    """Yield each source once, in order, with its classes, or as a recording to be divided into segments."""
    for is_address, group in itertools.groupby(dict.fromkeys(sources), lambda source: source.startswith(DOWNLOADED)):
        while batch := [*itertools.islice(group, 1 if is_address else BATCH)]:
            with fetched(batch[0]) as first:
                if isinstance(first, Failure):
                    yield batch[0], first
                else:
                    paths = dict(zip([first, *map(Path, batch[1:])], batch, strict=True))
                    yield from _answers_of_files(predictor, paths, mode)


def _answers_of_files(
    predictor: Predictor, paths: dict[Path, str], mode: str
) -> Iterator[tuple[str, Prediction | Recording | Failure]]:
    if mode == "auto" and not predictor.window:
        mode = "whole"
        print(f"{predictor.run}: trained before runs had a window, so every file is one clip.", file=sys.stderr)
    plans = {} if mode == "whole" else predictor.plan([*paths])
    longest = 0 if mode == "segments" else LONG * predictor.window.seconds if predictor.window else 0
    is_long = {path for path, p in plans.items() if isinstance(p, Recording) and p.duration > longest}
    for long, group in itertools.groupby(paths, is_long.__contains__):
        if not long:
            yield from ((paths[path], answer) for path, answer in predictor.predict_many(group))
            continue
        for path in group:
            if mode == "auto":
                length = f"{plans[path].duration:.1f} s, more than {LONG} windows of {predictor.window.seconds:.1f} s"
                print(f"{printable(paths[path])}: {length}: shown as segments (--whole: as one clip)", file=sys.stderr)
            yield paths[path], plans[path]


def _with_gaps(source: str, segments: Iterator[Segment], duration: float) -> Iterator[Segment]:
    """Hand on the segments, and say where there are none, since frames are damaged."""
    end = 0.0
    for segment in segments:
        _say_gap(source, end, segment.start)
        yield segment
        end = segment.end
    _say_gap(source, end, duration)


def _say_gap(source: str, start: float, end: float) -> None:
    if end - start > 1e-6:
        print(f"{printable(source)}: no answer from {start:.2f} to {end:.2f} s: damaged", file=sys.stderr)
