"""Claims on clips, so that processes that share a store do not compute the same clip at the same time."""

import fcntl
import hashlib
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO


class Claims:
    """Locks on bytes of one file, a byte per key. The kernel releases the locks of a process that ends.

    Without a writable file or without locks on its disk, every claim succeeds: clips may be computed twice.
    """

    def __init__(self, path: Path):
        self.path = path
        self._file: BinaryIO | None = None

    def claim(self, key: str) -> bool:
        """Lock a key; False if another process holds it."""
        with suppress(OSError):
            self._file = self._file or self.path.open("ab")
            try:
                fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _offset(key))
            except (BlockingIOError, PermissionError):
                return False
        return True

    def release(self, key: str) -> None:
        """Unlock a key."""
        if self._file:
            with suppress(OSError):
                fcntl.lockf(self._file, fcntl.LOCK_UN, 1, _offset(key))


def _offset(key: str) -> int:
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:7], "big")
