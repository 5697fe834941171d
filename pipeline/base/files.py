"""Atomic writes, checksums that reveal damage, and files without a name, which vanish with their process."""

import hashlib
import json
import os
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.base.errors import KinemaError


@contextmanager
def atomic_write(path: Path, folder: Path | None = None) -> Iterator[Path]:
    """Yield a temporary path, which replaces `path` at the end if there was no error.

    Nothing is forced to the disk, so a power failure may leave a damaged file. Readers check for that.

    Args:
        path: final path.
        folder: folder of the temporary file, on the same disk (default: that of `path`).
    """
    temporary = (folder or path.parent) / f".{path.name}.{uuid.uuid4().hex}.tmp"
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def checksum(arrays: dict[str, np.ndarray], metadata_text: str) -> str:
    """Return the SHA-256 of arrays, with their names, types and shapes, and their metadata."""
    digest = hashlib.sha256(metadata_text.encode())
    for name in sorted(arrays):
        digest.update(f"{arrays[name].dtype} {arrays[name].shape}".encode())
        digest.update(np.ascontiguousarray(arrays[name]))
    return digest.hexdigest()


def read_json(path: Path) -> Any:
    """Read a file that only this program writes.

    Raises:
        KinemaError: it is damaged.
    """
    try:
        return json.loads(path.read_text())
    except ValueError:
        raise KinemaError(f"{path}: damaged; delete {path.parent} and run again the command that made it") from None


def nameless_file() -> int:
    """Open an empty file without a name and return its descriptor; in memory where the system has such files."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("kinema")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
