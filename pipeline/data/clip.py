"""One labelled clip, and the state of the file that it is in."""

import functools
import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from pipeline.base.errors import printable


@dataclass(frozen=True, kw_only=True)
class Clip:
    """One labelled clip: a file, or the part of it from `start` to `end` (seconds, None: from the beginning, to the
    end). `id` is the path relative to the data root, with `@start-end` where a part is meant; `split` is 'train',
    'val', 'test', or '' before the cut."""

    id: str
    path: Path
    label: str
    group: str
    split: str = ""
    start: float | None = None
    end: float | None = None


def clip_id(name: str, start: float | None = None, end: float | None = None) -> str:
    """Returns the id of a file, by its name below the data root, or of a part of it."""
    part = "" if start is None and end is None else f"@{start or 0}-{'' if end is None else end}"
    return printable(name) + part


SECONDS = r"\d[\d.]*(?:e[+-]?\d+)?"


def part_of(name: str) -> str:
    """Returns the `@start-end` of a clip's id; nothing where the whole file is meant."""
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
