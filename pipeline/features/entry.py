"""The file of one clip's features, with a checksum that reveals damage."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import safetensors
import safetensors.numpy

from pipeline.base.files import checksum

ARRAYS = ("features", "pts", "indices")


class ClipFeatures(NamedTuple):
    features: np.ndarray  # float16 [T,D].
    pts: np.ndarray  # float32 [T], seconds from the first frame of the file.
    indices: np.ndarray  # int64 [T], in presentation order.
    planned: int  # Frames asked for, more than T in a partial entry.
    decoder: str  # 'decord' or 'pyav'.
    sha256: str = ""  # Of the file, '' if not from a store.


class Header(NamedTuple):
    frames: int
    planned: int  # Frames asked for.
    sha256: str
    seconds: float = 0.0  # Length of the clip, as its sampled frames are spaced; 0 for one frame.


class DamagedEntry(Exception):
    """The file is not what was written."""


def encode_entry(key: str, entry: ClipFeatures, engine: str, fingerprint: str) -> bytes:
    arrays = {name: getattr(entry, name) for name in ARRAYS}
    metadata = {"key": key, "fingerprint": fingerprint, "planned": entry.planned, "decoder": entry.decoder}
    text = json.dumps(metadata | {"engine": engine})
    return safetensors.numpy.save(arrays, {"metadata": text, "checksum": checksum(arrays, text)})


def read_entry(path: Path) -> ClipFeatures:
    """Read an entry; raises OSError or DamagedEntry."""
    with _opened(path) as (file, metadata):
        arrays = {name: file.get_tensor(name) for name in ARRAYS}
        if file.metadata()["checksum"] != checksum(arrays, file.metadata()["metadata"]):
            raise DamagedEntry("checksum does not match")
        return ClipFeatures(**arrays, planned=metadata["planned"], decoder=metadata["decoder"], sha256=path.stem[:64])


def read_header(path: Path) -> Header:
    """Read an entry without its numbers, in a third of the time; damage to them is not noticed."""
    with _opened(path) as (file, metadata):
        pts = file.get_tensor("pts")
        seconds = float(pts[-1] - pts[0]) * len(pts) / max(len(pts) - 1, 1)
        return Header(len(pts), int(metadata["planned"]), path.stem[:64], seconds)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[safetensors.safe_open, dict]]:
    try:
        with safetensors.safe_open(path, framework="np") as file:
            metadata = json.loads(file.metadata()["metadata"])
            if (metadata["key"], metadata["fingerprint"]) != (path.stem, path.parent.parent.name):
                raise DamagedEntry("is of another clip or fingerprint")
            yield file, metadata
    except (safetensors.SafetensorError, ValueError, LookupError, TypeError):
        raise DamagedEntry("not a complete safetensors file of features") from None
