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
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.base.errors import ConfigError, KinemaError
from pipeline.base.files import abandoned, atomic_write
from pipeline.config import BackboneConfig, SamplingConfig
from pipeline.data.clip import Clip, Source, part_of
from pipeline.features.entry import (
    ClipFeatures,
    DamagedEntry,
    Header,
    decode_entry,
    encode_entry,
    entry_files,
    entry_path,
    read_header,
)
from pipeline.features.ledger import Ledger
from pipeline.video.workers import Failure

if TYPE_CHECKING:  # Reading features needs no CNN, nor the seconds in which its libraries are imported.
    from pipeline.features.backbone import Backbone

FORMAT = 3
"""Counts up whenever the same settings begin to give other numbers."""


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
        self.ledger = Ledger(folder / "failures.jsonl")
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
        store = cls(root / fingerprint(backbone.description, sampling), partial)
        manifest = store.folder / "manifest.json"
        try:
            store.folder.mkdir(parents=True, exist_ok=True)
            if not backbone.is_saved_in(store.backbone_file):
                with atomic_write(store.backbone_file) as temporary:
                    backbone.save(temporary)
            before = read_manifest(manifest)
            engines = before.get("cosine_to_fp32", {}) | {backbone.engine: round(backbone.choice.cosine, 5)}
            files = [*before.get("weights_files", []), _digest(backbone.weights_file)]
            about = {"cosine_to_fp32": engines, "weights_files": list(dict.fromkeys(files))}
            text = json.dumps(setting(backbone.description, sampling) | about, indent=2) + "\n"
            if not manifest.exists() or manifest.read_text(errors="replace") != text:
                with atomic_write(manifest) as temporary:
                    temporary.write_text(text)
            with suppress(OSError):  # A store that cannot be written may still be read.
                os.utime(manifest, ns=(time.time_ns(),) * 2)  # Finer than the time that the system would take.
            store.ledger.close_line()
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
        wanted = [FORMAT, *(getattr(backbone, name) for name in names), sampling.frames]
        found = []
        for manifest in root.glob("*/manifest.json"):
            with suppress(OSError, KeyError, TypeError):  # Damaged: the next extraction writes it anew.
                about = read_manifest(manifest)
                has = [about["format"], *(about["backbone"][name] for name in names), about["sampling"]["frames"]]
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
            with atomic_write(path) as temporary:
                temporary.write_bytes(content)
        except OSError as error:
            raise self._refusal(path, error, left * len(content)) from None

    def find(self, clip: Clip) -> Header | None:
        """Reads the header of an entry, in a third of the time of all of it; None if there is none, or it is not whole,
        of another state of the file, or too partial. Damage to the numbers is only seen by `read`."""
        try:
            header = read_header(entry_path(self.folder, clip.id))
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

    def make_way(self, clip: Clip) -> None:
        """Removes the entry of another file by the clip's name, which would count if the clip cannot be read; stops if
        that file is still there, for two data sets that share a store would compute such clips anew by turns.

        Raises:
            KinemaError: it is.
        """
        path = entry_path(self.folder, clip.id)
        try:
            source = read_header(path).source
            if source.is_at(clip.path):
                return
            is_there = os.path.exists(source.path) and source.unchanged(Path(source.path))
            if not is_there:
                path.unlink()
            if not is_there or source.sha256 == Source.of(clip.path).sha256:
                return
        except (OSError, DamagedEntry):
            return
        raise KinemaError(
            f"{self.folder} has features of another file by the name of {clip.id}, {source.path}; "
            "give each data set its own --store"
        )

    def renew(self, clip: Clip) -> bool:
        """Finds the features of a file that was touched, moved or renamed, or copied with its folder, and notes its new
        time and place; False if there are none of its content."""
        try:
            size = clip.path.stat().st_size
            for path in (entry_path(self.folder, clip.id), *self._left_behind[size, part_of(clip.id)]):
                with suppress(FileNotFoundError, DamagedEntry):
                    _, entry, engine = decode_entry(path)
                    if entry.source.size != size or len(entry.indices) < self.partial * entry.planned:
                        continue
                    now = Source.of(clip.path)
                    if now.sha256 == entry.source.sha256:
                        self.write(clip, entry._replace(source=now), engine)
                        return True
        except OSError:
            pass
        return False

    def record_failure(self, clip: Clip, failure: Failure) -> None:
        """Notes a clip that could not be read in the ledger.

        Raises:
            KinemaError: the ledger cannot be written.
        """
        try:
            self.ledger.record(clip, failure)
        except OSError as error:
            raise self._refusal(self.ledger.path, error) from None

    @functools.cached_property
    def _left_behind(self) -> dict[tuple[int, str], list[Path]]:
        """The entries whose file is gone, perhaps to another name, by its size and the part of it that is meant."""
        found = defaultdict(list)
        for path in entry_files(self.folder):
            with suppress(OSError, DamagedEntry):
                header = read_header(path)
                if not os.path.exists(header.source.path):
                    found[header.source.size, part_of(header.clip)].append(path)
        return found

    def _refusal(self, path: Path, error: OSError, needed: int = 0) -> KinemaError:
        reason = error.strerror or str(error)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            missing = max(needed - shutil.disk_usage(self.folder.parent).free, 0)
            reason = f"{reason}: about {missing / 1e6:.1f} MB are missing"
        return KinemaError(
            f"{path}: cannot write the feature store: {reason}; what is done is kept, the same command goes on"
        )


def setting(backbone: dict[str, Any], sampling: SamplingConfig) -> dict[str, Any]:
    """Returns everything that decides the numbers of an entry, as JSON values; `backbone` is its description."""
    return {"format": FORMAT, "backbone": backbone, "sampling": {"frames": sampling.frames}}


def fingerprint(backbone: dict[str, Any], sampling: SamplingConfig) -> str:
    """Returns the digest of a setting, by which its folder is named."""
    return hashlib.sha256(json.dumps(setting(backbone, sampling), sort_keys=True).encode()).hexdigest()[:16]


def read_manifest(manifest: Path) -> dict[str, Any]:
    """Returns the settings of a folder, the engines that have made features, each with its least cosine to fp32, and
    the digests of the files that the weights came from; nothing if it is not there, or damaged."""
    try:
        about = json.loads(manifest.read_text())
    except (OSError, ValueError):
        about = None
    return about if isinstance(about, dict) else {}


def _digest(weights: Path | None) -> str | None:
    return Source.of(weights).sha256 if weights else None
