"""One clip's features in a file: how they are written, and how they are known to be whole and its own."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors
import safetensors.numpy

from pipeline.base.files import checksum
from pipeline.data.clip import Source


class ClipFeatures(NamedTuple):
    """What the CNN saw in one clip: `features` float16 [T,D]; `pts` float32 [T], seconds from the first frame of the
    file; `indices` int64 [T], in presentation order; `planned` how many frames were asked for, more than T in a partial
    entry, where damage left no more to read; `decoder` 'decord' or 'pyav'; `source` the file they are from."""

    features: np.ndarray
    pts: np.ndarray
    indices: np.ndarray
    planned: int
    decoder: str
    source: Source


class Header(NamedTuple):
    """What an entry tells without its numbers: the id of its clip, how many frames it holds, of how many planned, and
    of which file."""

    clip: str
    frames: int
    planned: int
    source: Source


class DamagedEntry(Exception):
    """A file of the store that is not what was written; the message says what is wrong."""


def entry_path(folder: Path, clip_id: str) -> Path:
    """Returns where a clip's entry is, in the folder of a fingerprint."""
    name = _name(clip_id)
    return folder / f"{name[:2]}/{name}.safetensors"


def entry_files(folder: Path) -> Iterator[Path]:
    """Yields the files of all entries in the folder of a fingerprint."""
    return folder.glob("??/[!.]*.safetensors")


def encode_entry(clip_id: str, entry: ClipFeatures, engine: str, fingerprint: str) -> bytes:
    """Turns an entry into the bytes of its file."""
    arrays = {"features": entry.features, "pts": entry.pts, "indices": entry.indices}
    about = {"clip": clip_id, "planned": entry.planned, "decoder": entry.decoder, "source": asdict(entry.source)}
    about |= {"engine": engine, "fingerprint": fingerprint}
    text = json.dumps(about)
    return safetensors.numpy.save(arrays, {"about": text, "checksum": checksum(arrays, text)})


def decode_entry(path: Path) -> tuple[str, ClipFeatures, str]:
    """Reads an entry's file.

    Returns:
        The clip's id, its features, and the engine that made them.

    Raises:
        OSError: the file cannot be read.
        DamagedEntry: its content is not what was written there.
    """
    with _opened(path) as file:
        about = _about(file, path)
        arrays = {name: file.get_tensor(name) for name in ("features", "pts", "indices")}
        if file.metadata().get("checksum") != checksum(arrays, file.metadata()["about"]):
            raise DamagedEntry("checksum does not match")
    entry = ClipFeatures(**arrays, planned=about["planned"], decoder=about["decoder"], source=about["source"])
    return about["clip"], entry, about["engine"]


def read_header(path: Path) -> Header:
    """Reads what an entry tells of itself, in a third of the time of all of it; damage to the numbers is not seen.

    Raises:
        OSError: the file cannot be read.
        DamagedEntry: it is not whole, or of another clip or setting.
    """
    with _opened(path) as file:
        about = _about(file, path)
        frames = file.get_slice("indices").get_shape()[0]
        return Header(about["clip"], frames, about["planned"], about["source"])


@contextmanager
def _opened(path: Path) -> Iterator[safetensors.safe_open]:
    try:
        with safetensors.safe_open(path, framework="np") as file:
            yield file
    except safetensors.SafetensorError:
        raise DamagedEntry("not a whole safetensors file") from None


def _about(file: safetensors.safe_open, path: Path) -> dict[str, Any]:
    """Returns what an entry tells beside its numbers."""
    try:
        about = json.loads(file.metadata()["about"])
        about = {name: about[name] for name in ("clip", "planned", "decoder", "source", "engine", "fingerprint")}
        about["source"] = Source(**about["source"])
        is_of_path = about["fingerprint"] == path.parent.parent.name and path.stem == _name(about["clip"])
    except (ValueError, KeyError, TypeError):
        raise DamagedEntry("its header cannot be read") from None
    if not is_of_path:
        raise DamagedEntry("is of another clip or setting")
    return about


def _name(clip_id: str) -> str:
    return hashlib.sha256(clip_id.encode()).hexdigest()
