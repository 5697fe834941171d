"""The feature store: features of each clip, keyed by the content of its file.

`<store>/<fingerprint>/` holds one set of settings: `manifest.json` lists them, `backbone.safetensors` is the CNN,
`ab/<key>.safetensors` is one clip, `failed/<key>.json` is one that could not be read. The key is the SHA-256 of the
file, followed by `@start-end` for a segment. So moved, renamed and copied files keep their features, and several data
sets and machines can share a store. Files are written to `tmp/` and moved, so that an entry is complete or absent.
"""

import errno
import json
import os
import shutil
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.base.errors import ConfigError, KinemaError
from pipeline.base.files import atomic_write
from pipeline.config import Config
from pipeline.data.clip import Clip, segment_of
from pipeline.features.claims import Claims
from pipeline.features.entry import ClipFeatures, DamagedEntry, Header, encode_entry, read_entry, read_header
from pipeline.features.index import ContentIndex, read_content
from pipeline.features.manifest import fingerprint, read_manifest, require_new_layout, settings_of
from pipeline.video.workers import Failure

if TYPE_CHECKING:  # Reading features needs no CNN, whose libraries take seconds to import.
    from pipeline.features.backbone import Backbone

A_DAY = 86400


class FeatureStore:
    """The entries of one fingerprint."""

    def __init__(self, folder: Path, min_readable: float):
        self.folder = folder
        self.fingerprint = folder.name
        self.backbone_file = folder / "backbone.safetensors"
        self.index = ContentIndex(folder.parent)
        self.claims = Claims(folder / "claims")
        self.min_readable = min_readable

    @classmethod
    def of(cls, config: Config, fingerprint: str) -> "FeatureStore":
        """Return the store of a fingerprint, for readers."""
        return cls(config.store / fingerprint, config.decode.min_readable)

    @classmethod
    def last(cls, config: Config) -> "FeatureStore":
        """Find the folder of the last extraction with these settings, without loading the CNN.

        Raises:
            ConfigError: there is no such weight file.
            KinemaError: there was no such extraction.
        """
        require_new_layout(config.store)
        wanted, weights = settings_of(config), _digest(config.backbone.weights)
        found = []
        for path in config.store.glob("*/manifest.json"):
            manifest = read_manifest(path)
            if wanted.items() <= manifest.items() and weights in manifest.get("weights_files", []):
                found.append((path.stat().st_mtime_ns, path.parent.name))
        if not found:
            raise KinemaError(f"{config.store}: no features with these settings; run kinema extract with them")
        return cls.of(config, max(found)[1])

    @classmethod
    def prepare(cls, config: Config, backbone: "Backbone") -> "FeatureStore":
        """Create the folder with its manifest and the CNN, for writers; remove temporary files of killed processes.

        Raises:
            KinemaError: the folder cannot be written.
        """
        require_new_layout(config.store)
        store = cls.of(config, fingerprint(config, backbone))
        path = store.folder / "manifest.json"
        old = read_manifest(path)
        manifest = settings_of(config) | backbone.identity
        manifest["cosine_to_fp32"] = {**old.get("cosine_to_fp32", {})}
        if backbone.engine not in manifest["cosine_to_fp32"]:
            manifest["cosine_to_fp32"][backbone.engine] = round(backbone.cosine_to_fp32(), 5)
        weights = _digest(config.backbone.weights)
        manifest["weights_files"] = list(dict.fromkeys([*old.get("weights_files", []), weights]))
        try:
            for name in ("failed", "tmp"):
                (store.folder / name).mkdir(parents=True, exist_ok=True)
            for leftover in (store.folder / "tmp").iterdir():
                with suppress(OSError):
                    if time.time() - leftover.stat().st_mtime > A_DAY:
                        leftover.unlink()
            if not backbone.is_saved_in(store.backbone_file):
                store._write(store.backbone_file, backbone.saved())
            if manifest != old:
                store._write(path, json.dumps(manifest, indent=2).encode())
        except OSError as error:
            raise store._write_error(store.folder, error) from None
        with suppress(OSError):  # A read-only store can still be read.
            os.utime(path, ns=(time.time_ns(),) * 2)  # `last` finds the newest.
        return store

    def key(self, clip: Clip) -> str:
        """Return a clip's key; reads the file if the index does not know it.

        Raises:
            OSError: it cannot be read.
        """
        return self.index.sha256(clip.path) + segment_of(clip)

    def path(self, key: str) -> Path:
        """Return the path of an entry."""
        return self.folder / key[:2] / f"{key}.safetensors"

    def find(self, clip: Clip) -> Header | None:
        """Read the header of an entry; None if there is none, or it is damaged or too partial. Damage to the numbers
        is only noticed by `read`."""
        try:
            header = read_header(self.path(self.key(clip)))
        except (OSError, DamagedEntry):
            return None
        return header if header.frames >= self.min_readable * header.planned else None

    def read(self, clip: Clip) -> ClipFeatures | None:
        """Read an entry; None if there is none, or it is damaged. A damaged entry is removed, so that the next
        extraction computes it again."""
        try:
            return read_entry(path := self.path(self.key(clip)))
        except OSError:
            return None
        except DamagedEntry:
            with suppress(OSError):  # A read-only store can still be read.
                path.unlink()
            return None

    def failures(self, clips: Iterable[Clip]) -> dict[Clip, Failure]:
        """Return the recorded failures of clips, and of those whose file cannot be read now."""
        found = {}
        for clip in clips:
            try:
                path = self._failure_path(self.key(clip))
                if path.exists():
                    found[clip] = _read_failure(path)
            except OSError as error:
                found[clip] = Failure(error.strerror or str(error), "file")
        return found

    def write(self, key: str, entry: ClipFeatures, engine: str, left: int = 1) -> None:
        """Write one entry, completely or not at all, and remove a recorded failure.

        Args:
            key: of the clip.
            entry: its features.
            engine: engine in words.
            left: number of entries still to be written, for the message if the disk is full.

        Raises:
            KinemaError: the disk is full or cannot be written.
        """
        content = encode_entry(key, entry, engine, self.fingerprint)
        try:
            self.path(key).parent.mkdir(exist_ok=True)
            self._write(self.path(key), content)
            self._failure_path(key).unlink(missing_ok=True)
        except OSError as error:
            raise self._write_error(self.path(key), error, left * len(content)) from None

    def record_failure(self, key: str, clip: Clip, failure: Failure) -> None:
        """Record that a clip could not be read.

        Raises:
            KinemaError: the disk is full or cannot be written.
        """
        record = {"clip": clip.id, "reason": failure.reason, "decoder": failure.decoder}
        try:
            self._write(self._failure_path(key), json.dumps(record).encode())
        except OSError as error:
            raise self._write_error(self._failure_path(key), error) from None

    def _failure_path(self, key: str) -> Path:
        return self.folder / "failed" / f"{key}.json"

    def _write(self, path: Path, content: bytes) -> None:
        with atomic_write(path, self.folder / "tmp") as temporary:
            temporary.write_bytes(content)

    def _write_error(self, path: Path, error: OSError, needed: int = 0) -> KinemaError:
        reason = error.strerror or str(error)
        if needed and error.errno in (errno.ENOSPC, errno.EDQUOT):
            missing = max(needed - shutil.disk_usage(self.folder.parent).free, 0)
            reason = f"{reason}: about {missing / 1e6:.1f} MB are missing"
        return KinemaError(f"{path}: cannot write the feature store: {reason}; run the same command again to resume")


def _read_failure(path: Path) -> Failure:
    try:
        record = json.loads(path.read_text())
        return Failure(str(record["reason"] or "unknown reason"), str(record.get("decoder") or ""))
    except (ValueError, KeyError, TypeError, AttributeError):
        return Failure("unknown reason (the record of the failure is damaged)")


def _digest(weights: Path | None) -> str | None:
    try:
        return read_content(weights)[2] if weights else None
    except OSError as error:
        raise ConfigError(f"{weights}: cannot read the weight file: {error.strerror}") from None
