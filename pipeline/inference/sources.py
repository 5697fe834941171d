"""Arguments of `kinema predict` -> files: folders, globs, lists and URLs."""

import contextlib
import glob
import http.client
import shutil
import sys
import urllib.request
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from pipeline.data.folder import VIDEO_SUFFIXES, files_in
from pipeline.inference.live import is_live
from pipeline.video.workers import Failure

DOWNLOADED = ("http://", "https://")
TIMEOUT = 30
"""Seconds without an answer after which a server counts as unreachable."""


def expand(sources: Iterable[str]) -> Iterator[str]:
    """Yield the files and addresses that the sources stand for; those that stand for none as they are.

    A folder stands for its videos at any depth, a glob for what it matches, a `.txt` file and `-` (standard input) for
    the sources that they list, one a line."""
    for source in sources:
        path = Path(source)
        if source == "-":
            yield from expand(_lines(sys.stdin))
        elif not is_local(source):
            yield source
        elif path.is_dir():
            files = [str(file) for file in files_in(path) if file.suffix.lower() in VIDEO_SUFFIXES]
            yield from files or [str(path)]
        elif path.suffix.lower() == ".txt" and path.is_file():
            with path.open(encoding="utf-8", errors="surrogateescape") as stream:
                yield from expand(_lines(stream))
        elif glob.has_magic(source) and not path.exists():
            yield from map(str, map(Path, sorted(glob.glob(source, recursive=True)) or [source]))
        else:
            yield str(path)


def is_local(source: str) -> bool:
    """Whether a source is a file, neither an address nor live."""
    return not source.startswith(DOWNLOADED) and not is_live(source)


def _lines(stream: Iterable[str]) -> list[str]:
    return [line.strip() for line in stream if line.strip() not in ("", "-")]


@contextlib.contextmanager
def fetched(source: str) -> Iterator[Path | Failure]:
    """Yield the file of a source. An address is downloaded, and its file removed afterwards."""
    if not source.startswith(DOWNLOADED):
        yield Path(source)
        return
    with TemporaryDirectory(prefix="kinema-") as folder:
        path: Path | Failure = Path(folder) / "video"
        try:
            with urllib.request.urlopen(source, timeout=TIMEOUT) as answer, path.open("wb") as file:
                shutil.copyfileobj(answer, file)
        except (OSError, ValueError, http.client.HTTPException) as error:
            path = Failure(f"cannot be downloaded: {getattr(error, 'reason', None) or error}")
        yield path
