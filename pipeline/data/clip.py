"""One labelled clip: a video file or a segment of it."""

import functools
import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from pipeline.base.errors import KinemaError, printable


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A labelled video file, or its segment from `start` to `end`.

    `id` is the path relative to the data root, plus `@start-end` for a segment. `start` and `end` are seconds; None is
    the start or end of the file. `group` is the recording that the clip was cut from. `split` is 'train', 'val',
    'test', or '' if not assigned yet.
    """

    id: str
    path: Path
    label: str
    group: str
    split: str = ""
    start: float | None = None
    end: float | None = None


def clip_id(name: str, start: float | None = None, end: float | None = None) -> str:
    """Return the id of a file, given by its path relative to the data root, or of a segment of it."""
    return printable(name) + _segment(start, end)


def segment_of(clip: Clip) -> str:
    """Return `@start-end`, or an empty string for a whole file."""
    return _segment(clip.start, clip.end)


def _segment(start: float | None, end: float | None) -> str:
    return "" if start is None and end is None else f"@{start or 0}-{'' if end is None else end}"


def group_of(name: str, label: str) -> str:
    """Derive the recording from a file's path relative to the data root.

    UCF101: `v_Archery_g07_c02` -> `g07`. HMDB51: `Fellowship_5_climb_f_cm_np1_ba_med_3` -> `climb/Fellowship_5`, since
    the official lists separate films only within a class. Any other file is its own group.
    """
    stem, _ = os.path.splitext(os.path.basename(name))
    if match := re.search(r"_(g\d+)_c\d+$", stem):
        return match[1]
    if match := re.fullmatch(rf"(.+)_{re.escape(label)}_[a-z]+_[a-z]+_np\d+_[a-z]+_[a-z]+_\d+", stem):
        return f"{label}/{match[1]}"
    return name


def path_below(root: Path, name: str, where: str) -> tuple[str, Path]:
    """Return a listed file's name relative to the root and its path.

    Raises:
        KinemaError: the file is outside of the root. Links may lead out of it, lists may not.
    """
    base = os.path.join(os.path.abspath(root), "")
    path = os.path.normpath(os.path.join(base, name))
    if not path.startswith(base):
        raise KinemaError(f"{where}: '{name}' is outside of data.root {root}; list only files below it")
    relative = path.removeprefix(base)
    return printable(relative), root / relative


# ---- Moves to the feature store: content digests. Delete with the last import of `Source` and `part_of`. ----
SECONDS = r"\d[\d.]*(?:e[+-]?\d+)?"


def part_of(name: str) -> str:
    """Return the `@start-end` of a clip's id."""
    return re.search(f"(@{SECONDS}-({SECONDS})?)?$", name)[0]


@dataclass(frozen=True)
class Source:
    """The state of a file when it was read: where it was, bytes, time of change in ns, digest of its content."""

    path: str
    size: int
    mtime_ns: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> "Source":
        """Looks at a file as it is now."""
        with path.open("rb") as stream:
            stat = os.fstat(stream.fileno())
        return cls(str(path.resolve()), stat.st_size, stat.st_mtime_ns, _sha256(path, stat.st_size, stat.st_mtime_ns))

    def is_at(self, path: Path) -> bool:
        """Whether the file is still where it was read."""
        try:
            return os.path.samefile(self.path, path)
        except OSError:
            return False

    def unchanged(self, path: Path) -> bool:
        """Whether size and time of change are still the same; the content is not looked at."""
        stat = path.stat()
        return (self.size, self.mtime_ns) == (stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=16)  # Many clips may be parts of one file.
def _sha256(path: Path, size: int, mtime_ns: int) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
