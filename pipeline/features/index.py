"""Cache of file contents, one per machine: path -> SHA-256, valid for the same size and time of change."""

import hashlib
import json
import os
import socket
import stat
from contextlib import suppress
from pathlib import Path


def read_content(path: Path) -> tuple[int, int, str]:
    """Return a file's size in bytes, time of change in ns, and SHA-256; raises OSError if it is not a regular file or
    changes meanwhile."""
    if not stat.S_ISREG(path.stat().st_mode):  # Reading a pipe would never end.
        raise OSError(0, "not a regular file")
    with path.open("rb") as stream:
        before, digest, after = os.fstat(stream.fileno()), hashlib.file_digest(stream, "sha256"), path.stat()
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise OSError(0, "the file changes while it is read")
    return after.st_size, after.st_mtime_ns, digest.hexdigest()


class ContentIndex:
    """The files that this machine has hashed."""

    def __init__(self, store: Path):
        self.path = store / "index" / f"{socket.gethostname()}.jsonl"
        self._known: dict[str, tuple[int, int, str]] = {}
        with suppress(OSError):
            for line in self.path.read_text(errors="replace").splitlines():
                with suppress(ValueError, TypeError):  # Cut off by a kill or a full disk.
                    name, *content = json.loads(line)
                    self._known[name] = tuple(content)

    def find(self, path: Path) -> str | None:
        """Return the SHA-256 of a file if it is known in its present state."""
        with suppress(OSError, LookupError, ValueError):
            *state, sha256 = self._known[os.path.abspath(path)]
            now = path.stat()
            return sha256 if state == [now.st_size, now.st_mtime_ns] else None
        return None

    def add(self, path: Path, content: tuple[int, int, str]) -> str:
        """Remember the content of a file, on disk too if the store can be written; return the SHA-256."""
        name = os.path.abspath(path)
        self._known[name] = content
        with suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a") as stream:  # The line break comes first, because the line before may be cut off.
                stream.write("\n" + json.dumps([name, *content]))
        return content[2]

    def sha256(self, path: Path) -> str:
        """Return the SHA-256 of a file; read it if it is not known."""
        return self.find(path) or self.add(path, read_content(path))
