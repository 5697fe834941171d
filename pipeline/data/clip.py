"""One labelled clip: a video file or a segment of it."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from pipeline.base.errors import printable


@dataclass(frozen=True, kw_only=True)
class Clip:
    id: str  # The path relative to the data root, plus `@start-end` for a segment.
    path: Path
    label: str
    group: str  # The recording that the clip was cut from.
    split: str = ""  # 'train', 'val', 'test', or '' if not assigned yet.
    start: float | None = None  # Seconds; None is the start of the file.
    end: float | None = None


def clip_id(name: str, start: float | None = None, end: float | None = None) -> str:
    segment = "" if start is None and end is None else f"@{start or 0}-{'' if end is None else end}"
    return printable(name) + segment


def segment_of(clip: Clip) -> str:
    """Return `@start-end`, or an empty string for a whole file."""
    return clip_id("", clip.start, clip.end)


def group_of(name: str, label: str) -> str:
    """Derive the recording from a file's path relative to the data root.

    UCF101: `v_Archery_g07_c02` -> `g07`. HMDB51: `Fellowship_5_climb_f_cm_np1_ba_med_3` -> `climb/Fellowship_5`, since
    the official lists separate films only within a class. Any other file is its own group."""
    stem, _ = os.path.splitext(os.path.basename(name))
    if match := re.search(r"_(g\d+)_c\d+$", stem):
        return match[1]
    if match := re.fullmatch(rf"(.+)_{re.escape(label)}_[a-z]+_[a-z]+_np\d+_[a-z]+_[a-z]+_\d+", stem):
        return f"{label}/{match[1]}"
    return name
