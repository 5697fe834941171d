"""Segments found in recordings, compared with a list of the true ones."""

import csv
import hashlib
import json
from collections import defaultdict
from contextlib import closing
from pathlib import Path
from typing import Any

from pipeline.base.errors import KinemaError, printable, summarize
from pipeline.base.files import read_content
from pipeline.base.progress import progress
from pipeline.base.settings import build, is_among
from pipeline.config import OVERRIDABLE, Config
from pipeline.data.clip import Clip
from pipeline.data.formats import read_clips
from pipeline.features.entry import Header
from pipeline.inference.predictor import Predictor
from pipeline.models.segmenter import Segment
from pipeline.runs.bundle import Bundle
from pipeline.runs.recordings import BACKGROUND, actions
from pipeline.runs.segment_metrics import ACTIVITYNET_OVERLAPS, OVERLAPS, edit_score, f1, mean_average_precision
from pipeline.video.workers import Failure


def evaluate_segments(run: Path, overrides: dict[str, str]) -> None:
    """Divide the recordings of a list into segments, and print how well they agree with the listed ones.

    Write `segments.json`, the metrics, and `segments.csv`, the segments, to a folder of the run."""
    allowed = {name: value for name, value in overrides.items() if is_among(name, OVERRIDABLE["predict"])}
    predictor, bundle = Predictor(run, allowed), Bundle(run)
    config = build(Config, bundle.config_file, overrides, OVERRIDABLE["evaluate"])
    rows = _listed(bundle, config, any(name.startswith("data.") for name in overrides))
    headers = {clip: Header(0, 0, digest) for clip, digest in _digests(rows).items()}
    copies = bundle.copies(headers)  # Raises for files trained on.
    if copies:
        print(f"Warning: {len(copies)} listed segments are of copies of training files; they inflate the results.")
    true: dict[Path, list[Segment]] = defaultdict(list)
    for clip in sorted(rows, key=lambda clip: clip.start):
        true[clip.path].append(Segment(clip.start, clip.end, clip.label, 1.0))
    found, failed, seconds = _find(predictor, [*true])
    if len(failed) > config.max_missing * len(true):
        raise KinemaError(f"{len(failed)} of {len(true)} recordings could not be read: {summarize(failed)}")
    result = {"recordings": len(found), "unreadable": len(failed), "hours": seconds / 3600}
    result |= measure([found[path] for path in found], [true[path] for path in found])
    without = 1 - sum(s.end - s.start for path in found for s in true[path]) / seconds
    _write(run, rows, headers, result, found)
    print("\n".join(f"{name.replace('_', ' '):>14}  {value:.4g}" for name, value in result.items()))
    if without > 0.01 and BACKGROUND not in map(str.casefold, predictor.classes):
        reason = f"{without:.0%} of the time is in no listed segment, and the run has no class '{BACKGROUND}'"
        print(f"{reason}: every answer there counts as wrong.")


def measure(found: list[list[Segment]], true: list[list[Segment]]) -> dict[str, Any]:
    """Return the metrics of recordings; background does not count."""
    found, true = [actions(segments) for segments in found], [actions(segments) for segments in true]
    return {
        "segments": sum(map(len, true)),
        "found": sum(map(len, found)),
        **{f"F1@{100 * overlap:.0f}": f1(found, true, overlap) for overlap in OVERLAPS},
        "edit": edit_score(found, true),
        **{f"mAP@{overlap}": mean_average_precision(found, true, overlap) for overlap in ACTIVITYNET_OVERLAPS},
    }


def _listed(bundle: Bundle, config: Config, is_other: bool) -> list[Clip]:
    """Return the test segments of the run's data set, or of other data."""
    clips = read_clips(config.data)[0] if is_other else bundle.dataset(config.data.root).clips
    clips = [clip for clip in clips if clip.split == "test" or (is_other and not clip.split)]
    if whole := [clip.id for clip in clips if clip.start is None or clip.end is None]:
        remedy = "leave out --segments to evaluate clips"
        raise KinemaError(f"{len(whole)} test clips have no start and end: {summarize(whole)}; {remedy}")
    if unknown := sorted({clip.label for clip in clips} - {*bundle.classes} - {BACKGROUND}):
        raise KinemaError(f"{bundle.folder}: the run has no class {summarize(unknown)}; train a new one")
    return clips


def _digests(clips: list[Clip]) -> dict[Clip, str]:
    of_file = {path: read_content(path)[2] for path in {clip.path for clip in clips}}
    return {clip: of_file[clip.path] for clip in clips}


def _find(predictor: Predictor, paths: list[Path]) -> tuple[dict[Path, list[Segment]], list[str], float]:
    """Return the segments of each recording, those that cannot be read, and the seconds of the others."""
    found, failed, seconds = {}, [], 0.0
    for path, recording in progress("segments", len(paths), "recordings", predictor.plan(paths).items()):
        try:
            if isinstance(recording, Failure):
                raise KinemaError(recording.reason)
            with closing(predictor.segments_of(recording)) as segments:
                found[path] = list(segments)
            seconds += recording.duration
        except KinemaError as error:
            failed.append(f"{printable(path)} ({error})")
    return found, failed, seconds


def _write(run: Path, rows: list[Clip], headers: dict[Clip, Header], result: dict, found: dict) -> None:
    content = "".join(sorted(f"{clip.id}\t{clip.label}\t{headers[clip].sha256}\n" for clip in rows))
    folder = run / "recordings" / hashlib.sha256(content.encode()).hexdigest()[:8]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "segments.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    with (folder / "segments.csv").open("w", newline="", encoding="utf-8", errors="surrogateescape") as stream:
        writer = csv.writer(stream)
        writer.writerow(("path", *Segment._fields))
        writer.writerows((path, *segment) for path, segments in found.items() for segment in segments)
    print(f"segments: {folder / 'segments.csv'}, metrics: {folder / 'segments.json'}")
