"""The feature store: every frame goes through the CNN once, and a cache never lies.

`<root>/<fingerprint>/` holds one setting: `manifest.json` says in words which, `backbone.safetensors` is the CNN that
made the features, `failures.jsonl` lists the clips that could not be read, and `ab/<hash>.safetensors` is one clip.
An entry is written under a temporary name and moved into place, so that it is there whole or not at all; that makes
resuming, many writers and a kill at any moment safe. Its checksum tells what a failing disk or power made of it.
"""

import errno
import functools
import hashlib
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import safetensors
import safetensors.numpy

from pipeline.atomic import abandoned, checksum, moved_into_place
from pipeline.clip import Clip, Source
from pipeline.config import BackboneConfig, SamplingConfig
from pipeline.errors import ConfigError, KinemaError
from pipeline.workers import Failure

if TYPE_CHECKING:  # Reading features needs no CNN, nor the seconds in which its libraries are imported.
    from pipeline.backbone import Backbone


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
    """What an entry tells without its numbers: how many frames it holds, of how many planned, and of which file."""

    frames: int
    planned: int
    source: Source


class FeatureStore:
    """The entries of one fingerprint."""

    def __init__(self, folder: Path, partial: float):
        """Takes the folder as it is.

        Args:
            folder: of one fingerprint.
            partial: share of the planned frames below which an entry counts as not there.
        """
        self.folder = folder
        self.fingerprint = folder.name
        self.backbone_file = folder / "backbone.safetensors"
        self.ledger = folder / "failures.jsonl"
        self.partial = partial

    @classmethod
    def prepare(cls, root: Path, backbone: "Backbone", sampling: SamplingConfig, partial: float) -> "FeatureStore":
        """Creates the folder with its manifest and the weights of the CNN, and removes what killed writers left.

        Args:
            root: folder of all settings.
            backbone: what will make the features.
            sampling: which frames they will be of.
            partial: share of the planned frames below which an entry counts as not there.

        Raises:
            KinemaError: the folder cannot be written.
        """
        store = cls(root / fingerprint(backbone, sampling), partial)
        manifest = store.folder / "manifest.json"
        try:
            store.folder.mkdir(parents=True, exist_ok=True)
            if not backbone.is_saved_in(store.backbone_file):
                with moved_into_place(store.backbone_file) as temporary:
                    backbone.save(temporary)
            before = read_manifest(manifest)
            engines = before.get("cosine_to_fp32", {}) | {backbone.engine: round(backbone.choice.cosine, 5)}
            files = [*before.get("weights_files", []), _digest(backbone.weights_file)]
            about = {"cosine_to_fp32": engines, "weights_files": list(dict.fromkeys(files))}
            text = json.dumps(setting(backbone, sampling) | about, indent=2) + "\n"
            if not manifest.exists() or manifest.read_text(errors="replace") != text:
                with moved_into_place(manifest) as temporary:
                    temporary.write_text(text)
            with suppress(OSError):  # A store that cannot be written may still be read.
                os.utime(manifest, ns=(time.time_ns(),) * 2)  # Finer than the time that the system would take.
            if store.ledger.exists() and not store.ledger.read_bytes().endswith(b"\n"):
                with store.ledger.open("a") as stream:  # A full disk or a kill cut the last line off.
                    stream.write("\n")
        except OSError as error:
            raise store._refusal(store.folder, error, backbone.bytes) from None
        for leftover in abandoned(store.folder):
            leftover.unlink(missing_ok=True)
        return store

    @classmethod
    def last(cls, root: Path, backbone: BackboneConfig, sampling: SamplingConfig, partial: float) -> "FeatureStore":
        """Finds what the last extraction with these settings has filled, without the CNN.

        Raises:
            ConfigError: there is no such weight file.
            KinemaError: there has been none.
        """
        try:
            weights = _digest(backbone.weights)
        except OSError as error:
            raise ConfigError(f"{backbone.weights}: cannot read the weight file: {error.strerror}") from None
        names = "model", "precision", "crop", "view"
        wanted = [*(getattr(backbone, name) for name in names), sampling.frames]
        found = []
        for manifest in root.glob("*/manifest.json"):
            with suppress(OSError, KeyError, TypeError):  # Damaged: the next extraction writes it anew.
                about = read_manifest(manifest)
                has = [*(about["backbone"][name] for name in names), about["sampling"]["frames"]]
                if has == wanted and weights in about["weights_files"]:
                    found.append((manifest.stat().st_mtime_ns, manifest.parent))
        if not found:
            raise KinemaError(f"{root}: no features with these settings; run kinema extract with the same config")
        return cls(max(found)[1], partial)

    def write(self, clip: Clip, entry: ClipFeatures, engine: str, left: int = 1) -> None:
        """Writes one entry, whole or not at all.

        Args:
            clip: whose it is.
            entry: what to write.
            engine: what made it, in words.
            left: how many entries are still to be written, for the message if the disk is full.

        Raises:
            KinemaError: the disk is full or cannot be written.
        """
        content = encode_entry(clip.id, entry, engine, self.fingerprint)
        path = entry_path(self.folder, clip.id)
        try:
            path.parent.mkdir(exist_ok=True)
            with moved_into_place(path) as temporary:
                temporary.write_bytes(content)
        except OSError as error:
            raise self._refusal(path, error, left * len(content)) from None

    def find(self, clip: Clip) -> Header | None:
        """Reads the header of an entry, in a third of the time of all of it; None if there is none, or it is not whole,
        of another state of the file, or too partial. Damage to the numbers is only seen by `read`."""
        path = entry_path(self.folder, clip.id)
        try:
            with _opened(path) as file:
                about = _about(file, path)
                header = Header(file.get_slice("indices").get_shape()[0], about["planned"], about["source"])
            fresh = header.source.unchanged(clip.path)
        except (OSError, DamagedEntry):
            return None
        return header if fresh and header.frames >= self.partial * header.planned else None

    def read(self, clip: Clip) -> ClipFeatures | None:
        """Reads an entry that `find` has found; None if its numbers are damaged, and then it is removed, so that the
        next extraction makes it anew."""
        path = entry_path(self.folder, clip.id)
        try:
            return decode_entry(path)[1]
        except FileNotFoundError:
            return None
        except DamagedEntry:
            with suppress(OSError):  # A store that cannot be written may still be read.
                path.unlink()
            return None

    def check_owner(self, clip: Clip) -> None:
        """Stops where the entry that a clip would replace is of another file, which is still there: two data sets that
        share a store would compute such clips anew by turns.

        Raises:
            KinemaError: it is.
        """
        path = entry_path(self.folder, clip.id)
        try:
            with _opened(path) as file:
                source = _about(file, path)["source"]
            there = source.unchanged(Path(source.path)) and not source.is_at(clip.path)
            if not there or source.sha256 == Source.of(clip.path).sha256:
                return
        except (OSError, DamagedEntry):
            return
        raise KinemaError(
            f"{self.folder} has features of another file by the name of {clip.id}, {source.path}; "
            "give each data set its own --store"
        )

    def renew(self, clip: Clip) -> bool:
        """Notes the new time and place of a file that was touched, copied or moved; False if its content is another."""
        try:
            _, entry, engine = decode_entry(entry_path(self.folder, clip.id))
            if entry.source.size != clip.path.stat().st_size or len(entry.indices) < self.partial * entry.planned:
                return False
            now = Source.of(clip.path)
        except (OSError, DamagedEntry):
            return False
        if now.sha256 != entry.source.sha256:
            return False
        self.write(clip, entry._replace(source=now), engine)
        return True

    def record_failure(self, clip: Clip, failure: Failure) -> None:
        """Appends to the ledger; the last line of a clip counts, and none once the clip has an entry.

        Raises:
            KinemaError: the ledger cannot be written.
        """
        self._attempts[clip.id] += 1
        line = {"clip": clip.id, "path": str(clip.path.resolve()), **asdict(failure)}
        line |= {"attempt": self._attempts[clip.id], "time": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
        text = json.dumps(line | {"state": _state(clip.path)}) + "\n"
        try:
            with self.ledger.open("a") as stream:
                stream.write(text)
        except OSError as error:
            raise self._refusal(self.ledger, error, len(text)) from None

    def failures(self) -> dict[str, dict[str, Any]]:
        """Returns the last line of each clip in the ledger whose file is still as it was, by clip id."""
        lines = read_ledger(self.folder)
        return {name: line for name, line in lines.items() if line["state"] == _state(Path(line["path"]))}

    def given_up(self) -> set[str]:
        """Returns the ids of clips that ended two processes and whose file is still the same."""
        return {clip_id for clip_id, line in self.failures().items() if line["deadly"]}

    @functools.cached_property
    def _attempts(self) -> Counter[str]:
        return Counter({clip_id: line["attempt"] for clip_id, line in read_ledger(self.folder).items()})

    def _refusal(self, path: Path, error: OSError, needed: int) -> KinemaError:
        reason = error.strerror or str(error)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            missing = max(needed - shutil.disk_usage(self.folder.parent).free, 0)
            reason = f"{reason}: about {missing / 1e6:.1f} MB are missing"
        return KinemaError(
            f"{path}: cannot write the feature store: {reason}; what is done is kept, the same command goes on"
        )


class DamagedEntry(Exception):
    """A file of the store that is not what was written; the message says what is wrong."""


def setting(backbone: "Backbone", sampling: SamplingConfig) -> dict[str, Any]:
    """Returns everything that decides the numbers of an entry, as JSON values."""
    return {"format": 3, "backbone": backbone.description, "sampling": {"frames": sampling.frames}}


def fingerprint(backbone: "Backbone", sampling: SamplingConfig) -> str:
    """Returns the digest of a setting, by which its folder is named."""
    return hashlib.sha256(json.dumps(setting(backbone, sampling), sort_keys=True).encode()).hexdigest()[:16]


def read_ledger(folder: Path) -> dict[str, dict[str, Any]]:
    """Returns the last line of each clip in the ledger of a fingerprint's folder, by clip id."""
    ledger = folder / "failures.jsonl"
    if not ledger.exists():
        return {}
    found = {}
    for text in ledger.read_text(errors="replace").splitlines():
        with suppress(ValueError, KeyError, TypeError):  # A line that a full disk or a kill cut off.
            line = json.loads(text)
            found[line["clip"]] = line
    return found


def entry_path(folder: Path, clip_id: str) -> Path:
    """Returns where a clip's entry is, in the folder of a fingerprint."""
    name = _name(clip_id)
    return folder / f"{name[:2]}/{name}.safetensors"


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


def read_manifest(manifest: Path) -> dict[str, Any]:
    """Returns the settings of a folder, the engines that have made features, each with its least cosine to fp32, and
    the digests of the files that the weights came from; nothing if it is not there, or damaged."""
    try:
        about = json.loads(manifest.read_text())
    except (OSError, ValueError):
        about = None
    return about if isinstance(about, dict) else {}


def _name(clip_id: str) -> str:
    return hashlib.sha256(clip_id.encode()).hexdigest()


def _digest(weights: Path | None) -> str | None:
    return Source.of(weights).sha256 if weights else None


def _state(path: Path) -> list[int] | None:
    """Size and time of change of a file, by which a failure is known to be of its present state; None if gone."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return [stat.st_size, stat.st_mtime_ns]
