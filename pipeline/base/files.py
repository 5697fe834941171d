"""Atomic writes, checksums that reveal damage, and files without a name, which vanish with their process."""

import hashlib
import json
import os
import socket
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from pipeline.base.errors import KinemaError

A_DAY = 86400


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Gives a temporary path in the folder of `path`, which becomes `path` at the end if nothing went wrong.

    Nothing is forced to the disk: after a power failure the file may be damaged, which is for its reader to notice.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{socket.gethostname()}.{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def checksum(arrays: dict[str, np.ndarray], about: str) -> str:
    """Digests arrays and what is told of them."""
    digest = hashlib.sha256(about.encode())
    for name in sorted(arrays):
        digest.update(f"{arrays[name].dtype} {arrays[name].shape}".encode())
        digest.update(np.ascontiguousarray(arrays[name]))
    return digest.hexdigest()


def read_json(path: Path) -> Any:
    """Reads a file that only this program writes.

    Raises:
        KinemaError: it is damaged.
    """
    try:
        return json.loads(path.read_text())
    except ValueError:
        raise KinemaError(f"{path}: damaged; delete {path.parent} and do again what made it") from None


def abandoned(folder: Path) -> list[Path]:
    """Lists temporary files at any depth whose writer was killed: no longer running here, or elsewhere a day ago."""
    found = []
    for path in folder.rglob(".*.tmp"):
        owner = path.name.rsplit(".", 2)[0]
        here = owner.endswith(f".{socket.gethostname()}")
        pid = owner.removesuffix(f".{socket.gethostname()}").rpartition(".")[2]
        with suppress(FileNotFoundError):
            old = time.time() - path.stat().st_mtime > A_DAY
            if old or (here and pid.isdigit() and not psutil.pid_exists(int(pid))):
                found.append(path)
    return found


def nameless_file() -> int:
    """Opens an empty file without a name and returns its descriptor; in memory where the system has such files."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("kinema")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
