"""Show what a prediction rests on: `kinema explain data/runs/ucf101 holiday.mp4`."""

import json
from pathlib import Path
from typing import Any

from pipeline.base.errors import KinemaError, printable
from pipeline.data.clip import Clip
from pipeline.features.extraction import decode_clips
from pipeline.inference.drawing import draw
from pipeline.inference.explanation import CELLS, Explanation, explain_clip
from pipeline.inference.occlusion import Evidence
from pipeline.inference.predictor import Predictor
from pipeline.video.decode import DecodedClip
from pipeline.video.workers import Failure


def explain(run: Path, video: Path, out: Path, overrides: dict[str, Any]) -> None:
    """Write `<out>/<name>_explained.png` and `.json` for the most likely class of a video as a whole."""
    predictor = Predictor(run, overrides)
    clip = Clip(id=str(video), path=video, label="", group="")
    config = predictor.config
    [(_, decoded)] = decode_clips([clip], predictor.backbone.transform, config.sampling, config.decode)
    if isinstance(decoded, Failure):
        raise KinemaError(f"{printable(video)}: cannot be read: {decoded.reason}")
    if len(decoded.frames) == 1:
        raise KinemaError(f"{printable(video)}: has one sampled frame, so there are no moments to compare")
    explanation = explain_clip(predictor, decoded)
    out.mkdir(parents=True, exist_ok=True)
    picture, numbers = (out / f"{video.stem}_explained.{ending}" for ending in ("png", "json"))
    draw(explanation, decoded).savefig(picture, dpi=100)
    numbers.write_text(json.dumps({"path": str(video), **as_dict(explanation, decoded)}, indent=1) + "\n")
    print(f"{printable(video)}: {printable(explanation.label)} {explanation.probability:.1%}")
    print(f"moments: {explanation.moments.verdict}; most at {decoded.pts[explanation.moments.order[0]]:.2f} s")
    print(f"cells: {explanation.cells.verdict}")
    print(f"Saved {picture} and {numbers}")


def as_dict(explanation: Explanation, clip: DecodedClip) -> dict[str, Any]:
    """Return an explanation for JSON, with moments by their time in seconds, and cells by row and column."""
    times = [round(float(time), 3) for time in clip.pts]
    cells = [list(divmod(place, CELLS)) for place in range(CELLS**2)]
    return {
        "label": explanation.label,
        "probability": explanation.probability,
        "moments": _evidence(explanation.moments, "time", times),
        "cells": _evidence(explanation.cells, "cell", cells),
        "gates": explanation.gates and {**explanation.gates._asdict(), "times": times},
    }


def _evidence(evidence: Evidence, name: str, places: list) -> dict[str, Any]:
    removed = zip(evidence.order, evidence.drops, strict=True)
    return {
        "removed": [{name: places[part], "fall": drop} for part, drop in removed],
        "area": evidence.area,
        "random_areas": evidence.random_areas,
        "verdict": evidence.verdict,
    }
