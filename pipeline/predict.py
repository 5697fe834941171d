"""Classify videos with a run bundle: `kinema predict data/runs/ucf101 holiday.mp4 clips/ --json`."""

import itertools
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from pipeline.base.errors import ConfigError, KinemaError, printable
from pipeline.inference.extras import Extras
from pipeline.inference.live import LiveAnswer, is_live
from pipeline.inference.predictor import Prediction, Predictor
from pipeline.inference.printing import printer
from pipeline.inference.sources import expand, fetched, is_local
from pipeline.models.segmenter import Segment
from pipeline.runs.tracking import download_model
from pipeline.video.recording import Recording
from pipeline.video.workers import Failure

Answer = Prediction | Recording | Iterator[LiveAnswer] | Failure
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
    unknown: bool,
    overrides: dict[str, str],
    **files: Any,
) -> None:
    """Print the answer for each source as it is ready; raise at the end if some cannot be read.

    `style` is table, json or csv; `mode` is whole, segments, or auto: by the length of each video. With
    `unknown`, whole videos below the run's threshold are 'unknown'. `files` are the arguments of `Extras`."""
    if top < 1:
        raise ConfigError(f"--top must be at least 1, got {top}")
    extras = Extras(**files)
    if str(run).startswith("wandb:"):
        run = download_model(str(run).removeprefix("wandb:"))
    predictor, unreadable = Predictor(run, overrides), []
    show = printer(style, top, predictor.classes)
    for source, path, answer in _answers(predictor, expand(sources), mode):
        if unknown and isinstance(answer, Prediction):
            answer = answer._replace(is_unknown=predictor.is_unknown(answer))
        try:
            if isinstance(answer, Failure):
                raise KinemaError(answer.reason)
            if isinstance(answer, Recording):
                segments, cells = [], []
                found = predictor.segments_of(answer, cells if extras.plot else None)
                for segment in _with_gaps(source, found, answer.duration):
                    segments.append(segment)
                    show(source, segment)
                extras.add_recording(source, answer, segments, cells, predictor)
            elif isinstance(answer, Iterator):
                with closing(answer):
                    for part in answer:
                        show(source, part)
            else:
                show(source, answer)
                extras.add_clip(source, path, answer)
        except ConfigError:
            raise
        except KinemaError as error:
            show(source, Failure(str(error)))
            unreadable.append(f"{printable(source)}: cannot be read: {error}")
    extras.finish(predictor)
    if unreadable:
        raise KinemaError("\n".join(unreadable))


def _answers(predictor: Predictor, sources: Iterator[str], mode: str) -> Iterator[tuple[str, Path, Answer]]:
    """Yield each source once, in order, with its file and its answer; a recording is still to be divided."""
    for is_file, group in itertools.groupby(dict.fromkeys(sources), is_local):
        while batch := [*itertools.islice(group, BATCH if is_file else 1)]:
            if is_live(batch[0]):
                yield batch[0], Path(), predictor.stream(batch[0], lambda line: print(printable(line), file=sys.stderr))
                continue
            with fetched(batch[0]) as first:
                if isinstance(first, Failure):
                    yield batch[0], Path(), first
                    continue
                paths = dict(zip([first, *map(Path, batch[1:])], batch, strict=True))
                for path, answer in _answers_of_files(predictor, paths, mode):
                    yield paths[path], path, answer


def _answers_of_files(predictor: Predictor, paths: dict[Path, str], mode: str) -> Iterator[tuple[Path, Answer]]:
    if mode == "auto" and not predictor.window:
        mode = "whole"
        print(f"{predictor.run}: trained before runs had a window, so every file is one clip.", file=sys.stderr)
    plans = {} if mode == "whole" else predictor.plan([*paths])
    longest = LONG * predictor.window.seconds if mode == "auto" else 0.0
    is_long = {path for path, plan in plans.items() if isinstance(plan, Recording) and plan.duration > longest}
    for long, group in itertools.groupby(paths, is_long.__contains__):
        if not long:
            yield from predictor.predict_many(group)
            continue
        for path in group:
            if mode == "auto":
                length = f"{plans[path].duration:.1f} s, more than {LONG} windows of {predictor.window.seconds:.1f} s"
                print(f"{printable(paths[path])}: {length}: shown as segments (--whole: as one clip)", file=sys.stderr)
            yield path, plans[path]


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
