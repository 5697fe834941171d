"""Atomic writes, and checksums that reveal damage."""

import hashlib
import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.base.errors import KinemaError


@contextmanager
def atomic_write(path: Path, folder: Path | None = None) -> Iterator[Path]:
    """Yield a temporary path, beside `path` or in `folder` on the same disk, that replaces `path` if all went well.

    Nothing is forced to the disk, so a power failure may leave a damaged file. Readers check for that.
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
    """Read a file that only this program writes."""
    try:
        return json.loads(path.read_text())
    except ValueError:
        raise KinemaError(f"{path}: damaged; delete {path.parent} and run again the command that made it") from None
