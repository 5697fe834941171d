"""The feature store: features of each clip, keyed by the content of its file.

`<store>/<fingerprint>/` holds one set of settings: `manifest.json` lists them, `backbone.safetensors` is the CNN,
`ab/<key>.safetensors` is one clip, `failed/<key>.json` is one that could not be read. The key is the SHA-256 of the
file, followed by `@start-end` for a segment. So moved, renamed and copied files keep their features, and several data
sets and machines can share a store. Files are written to `tmp/` and moved, so that an entry is complete or absent."""

import dataclasses
import fcntl
import hashlib
import json
import os
import socket
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from pipeline.base.errors import KinemaError
from pipeline.base.files import atomic_write, read_content
from pipeline.config import Config
from pipeline.data.clip import Clip, segment_of
from pipeline.features.entry import ClipFeatures, DamagedEntry, Header, encode_entry, read_entry, read_header
from pipeline.video.workers import Failure

FORMAT = 4  # Increment when the same settings give other features.


def settings_of(config: Config) -> dict[str, Any]:
    """Return the settings that determine the features. `Backbone.identity` is what the loaded CNN adds."""
    backbone = {name: getattr(config.backbone, name) for name in ("model", "crop", "view", "precision")}
    return {"format": FORMAT, "extractor": "frame-cnn", **backbone, "sampling": dataclasses.asdict(config.sampling)}


def fingerprint(config: Config, backbone: Any) -> str:
    """Return the name of the folder: a digest of everything that determines the features."""
    text = json.dumps(settings_of(config) | backbone.identity, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_manifest(path: Path) -> dict[str, Any]:
    """Return a manifest; an empty one if it is missing or damaged."""
    with suppress(OSError, ValueError):
        if isinstance(manifest := json.loads(path.read_text()), dict):
            return manifest
    return {}


def check_store_format(root: Path) -> None:
    """Raise a KinemaError if a store has only folders of earlier versions."""
    formats = {read_manifest(path).get("format") for path in root.glob("*/manifest.json")}
    if formats and formats <= {1, 2, 3}:
        raise KinemaError(f"{root}: store of an earlier version; delete it, or name another with --store")


class ContentIndex:
    """Cache of file contents, one per machine: path -> SHA-256, valid for the same size and modification time."""

    def __init__(self, store: Path):
        self.path = store / "index" / f"{socket.gethostname()}.jsonl"
        self._known: dict[str, tuple[int, int, str]] = {}
        with suppress(OSError):
            for line in self.path.read_text(errors="replace").splitlines():
                with suppress(ValueError, TypeError):  # Cut off by a kill or a full disk.
                    name, *content = json.loads(line)
                    self._known[name] = tuple(content)

    def find(self, path: Path) -> str | None:
        """Return the SHA-256 of a file if it is known in its present state."""
        with suppress(OSError, LookupError, ValueError):
            *state, sha256 = self._known[os.path.abspath(path)]
            now = path.stat()
            return sha256 if state == [now.st_size, now.st_mtime_ns] else None
        return None

    def add(self, path: Path, content: tuple[int, int, str]) -> str:
        """Remember the content of a file, on disk too if the store can be written; return the SHA-256."""
        name = os.path.abspath(path)
        self._known[name] = content
        with suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a") as stream:  # The line break comes first, because the line before may be cut off.
                stream.write("\n" + json.dumps([name, *content]))
        return content[2]

    def sha256(self, path: Path) -> str:
        return self.find(path) or self.add(path, read_content(path))


class FeatureStore:
    def __init__(self, folder: Path, min_readable: float):
        self.folder, self.fingerprint, self.min_readable = folder, folder.name, min_readable
        self.backbone_file, self.index = folder / "backbone.safetensors", ContentIndex(folder.parent)
        self._claims: BinaryIO | None = None

    @classmethod
    def last(cls, config: Config) -> "FeatureStore":
        """Return the store of the last extraction with these settings, without loading the CNN."""
        check_store_format(config.store)
        wanted, weights = settings_of(config), config.backbone.weights and read_content(config.backbone.weights)[2]
        manifests = {path: read_manifest(path) for path in config.store.glob("*/manifest.json")}
        fitting = [path for path, manifest in manifests.items() if wanted.items() <= manifest.items()]
        found = [path for path in fitting if weights in manifests[path].get("weights_files", [])]
        if not found:
            raise KinemaError(f"{config.store}: no features with these settings; run kinema extract with them")
        return cls(max(found, key=os.path.getmtime).parent, config.decode.min_readable)

    @classmethod
    def prepare(cls, config: Config, backbone: Any) -> "FeatureStore":
        """Return the store for writers, with its manifest and its CNN, a `Backbone`, which takes seconds to import."""
        check_store_format(config.store)
        store = cls(config.store / fingerprint(config, backbone), config.decode.min_readable)
        manifest = store.folder / "manifest.json"
        known, weights = read_manifest(manifest), config.backbone.weights and read_content(config.backbone.weights)[2]
        files = dict.fromkeys([*known.get("weights_files", []), weights])
        cosines = known.get("cosine_to_fp32", {})
        if backbone.engine not in cosines:
            cosines[backbone.engine] = backbone.cosine_to_fp32()
        written = settings_of(config) | backbone.identity | {"weights_files": [*files], "cosine_to_fp32": cosines}
        text = json.dumps(written, indent=2).encode()
        for path, content in ((store.backbone_file, backbone.saved()), (manifest, text)):
            if not path.exists() or path.read_bytes() != content:
                store._write(path, content)
        with suppress(OSError):  # A read-only store can still be read.
            os.utime(manifest)  # `last` finds the newest.
            for left in (store.folder / "tmp").iterdir():  # By processes killed a day ago.
                if time.time() - left.stat().st_mtime > 86400:
                    left.unlink()
        return store

    def key(self, clip: Clip) -> str:
        """Return a clip's key; read the file if the index does not know it."""
        return self.index.sha256(clip.path) + segment_of(clip)

    def path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.safetensors"

    def find(self, clip: Clip) -> Header | None:
        """Read the header of an entry; None if it is absent, damaged or too partial. Only `read` notices damage to
        the numbers."""
        with suppress(OSError, DamagedEntry):
            header = read_header(self.path(self.key(clip)))
            return header if header.frames >= self.min_readable * header.planned else None
        return None

    def read(self, clip: Clip) -> ClipFeatures | None:
        """Read an entry; None if it is absent or damaged. Remove a damaged one, so that it is computed again."""
        with suppress(OSError):
            path = self.path(self.key(clip))
            try:
                return read_entry(path)
            except DamagedEntry:
                path.unlink()
        return None

    def failures(self, clips: Iterable[Clip]) -> dict[Clip, Failure]:
        """Return the recorded failures of clips, and of those whose file cannot be read now."""
        found = {}
        for clip in clips:
            try:
                path = self._failure_path(self.key(clip))
                with suppress(ValueError, LookupError, TypeError):  # A damaged record does not count.
                    if path.exists():
                        found[clip] = Failure(str(json.loads(path.read_text())["reason"]))
            except OSError as error:
                found[clip] = Failure(error.strerror or str(error))
        return found

    def claim(self, key: str) -> bool:
        """Lock a key until `release` or the end of this process; False if another process holds it. Where the disk has
        no locks or is read-only, every claim succeeds: clips may be computed twice."""
        with suppress(OSError):
            try:
                self._lock(key, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
        return True

    def release(self, key: str) -> None:
        with suppress(OSError):
            self._lock(key, fcntl.LOCK_UN)

    def _lock(self, key: str, operation: int) -> None:
        self._claims = self._claims or (self.folder / "claims").open("ab")
        fcntl.lockf(self._claims, operation, 1, int.from_bytes(hashlib.sha256(key.encode()).digest()[:7], "big"))

    def write(self, key: str, entry: ClipFeatures, engine: str) -> None:
        """Write one entry, completely or not at all, and remove a recorded failure."""
        self._write(self.path(key), encode_entry(key, entry, engine, self.fingerprint))
        self._failure_path(key).unlink(missing_ok=True)

    def record_failure(self, key: str, clip: Clip, failure: Failure) -> None:
        record = {"clip": clip.id, "reason": failure.reason, "decoder": failure.decoder}
        self._write(self._failure_path(key), json.dumps(record).encode())

    def note_extraction(self, record: dict[str, Any]) -> None:
        """Append the counts of an extraction to `extractions.jsonl`."""
        with suppress(OSError), (self.folder / "extractions.jsonl").open("a") as stream:
            stream.write(json.dumps(record) + "\n")

    def last_extraction(self) -> dict[str, Any]:
        """Return the record of the last extraction that computed features; {} if there is none."""
        with suppress(OSError, ValueError, IndexError):
            return json.loads((self.folder / "extractions.jsonl").read_text().splitlines()[-1])
        return {}

    def _failure_path(self, key: str) -> Path:
        return self.folder / "failed" / f"{key}.json"

    def _write(self, path: Path, content: bytes) -> None:
        try:
            for folder in (self.folder / "tmp", path.parent):
                folder.mkdir(parents=True, exist_ok=True)
            with atomic_write(path, self.folder / "tmp") as temporary:
                temporary.write_bytes(content)
        except OSError as error:
            reason = f"cannot write the feature store: {error.strerror}; run the same command again to resume"
            raise KinemaError(f"{path}: {reason}") from None
