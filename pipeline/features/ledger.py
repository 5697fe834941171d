"""The ledger of clips that could not be read: a line of JSON for each try."""

import functools
import json
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.data.clip import Clip
from pipeline.video.workers import Failure


class Ledger:
    """A file that is only ever appended to; the last line of a clip counts, and none once the clip has an entry."""

    def __init__(self, path: Path):
        self.path = path

    def record(self, clip: Clip, failure: Failure) -> None:
        """Appends a line.

        Raises:
            OSError: the file cannot be written.
        """
        self._attempts[clip.id] += 1
        line = {"clip": clip.id, "path": str(clip.path.resolve()), **asdict(failure)}
        line |= {"attempt": self._attempts[clip.id], "time": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
        with self.path.open("a") as stream:
            stream.write(json.dumps(line | {"state": _state(clip.path)}) + "\n")

    def lines(self) -> dict[str, dict[str, Any]]:
        """Returns the last line of each clip, by clip id."""
        found = {}
        with suppress(FileNotFoundError):
            for text in self.path.read_text(errors="replace").splitlines():
                with suppress(ValueError, KeyError, TypeError):  # A line that a full disk or a kill cut off.
                    line = json.loads(text)
                    found[line["clip"]] = line
        return found

    def failures(self, clips: Iterable[Clip]) -> dict[str, dict[str, Any]]:
        """Returns the last lines of those clips that could not be read, by clip id, if their files are still the same,
        wherever these were then."""
        lines = self.lines()
        return {
            clip.id: lines[clip.id]
            for clip in clips
            if clip.id in lines and lines[clip.id]["state"] == _state(clip.path)
        }

    def given_up(self, clips: Iterable[Clip]) -> set[str]:
        """Returns the ids of those that ended two processes and whose file is still the same."""
        return {clip_id for clip_id, line in self.failures(clips).items() if line["deadly"]}

    def close_line(self) -> None:
        """Ends a last line that a full disk or a kill cut off, so that the next is one of its own.

        Raises:
            OSError: the file cannot be read or written.
        """
        if self.path.exists() and not self.path.read_bytes().endswith(b"\n"):
            with self.path.open("a") as stream:
                stream.write("\n")

    @functools.cached_property
    def _attempts(self) -> Counter[str]:
        return Counter({clip_id: line["attempt"] for clip_id, line in self.lines().items()})


def _state(path: Path) -> list[int] | None:
    """Size and time of change of a file, by which a failure is known to be of its present state; None if gone."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return [stat.st_size, stat.st_mtime_ns]
