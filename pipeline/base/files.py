"""Atomic writes, digests of files, and checksums that reveal damage."""

import hashlib
import os
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np


@contextmanager
def atomic_write(path: Path, folder: Path | None = None) -> Iterator[Path]:
    """Yield a temporary path, beside `path` or in `folder` on the same disk, that replaces `path` if all went well.
    Nothing is forced to the disk, so a power failure may leave a damaged file. Readers check for that."""
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


def read_content(path: Path) -> tuple[int, int, str]:
    """Return a file's size in bytes, modification time in ns, and SHA-256; raises OSError if it is no regular file or
    changes meanwhile."""
    if not stat.S_ISREG(path.stat().st_mode):  # Reading a pipe would never end.
        raise OSError(0, "not a regular file")
    with path.open("rb") as stream:
        before, digest, after = os.fstat(stream.fileno()), hashlib.file_digest(stream, "sha256"), path.stat()
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise OSError(0, "the file changes while it is read")
    return after.st_size, after.st_mtime_ns, digest.hexdigest()
