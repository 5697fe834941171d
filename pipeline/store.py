"""The feature store: every frame goes through the CNN once, and a cache never lies.

`<root>/<fingerprint>/` holds one setting: `manifest.json` says in words which, `backbone.safetensors` is the CNN that
made the features, `failures.jsonl` lists the clips that could not be read, and `ab/<hash>.safetensors` is one clip.
An entry is written under a temporary name and moved into place, so that it is there whole or not at all; that makes
resuming, many writers and a kill at any moment safe.
"""

import hashlib
import json
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import safetensors
import safetensors.numpy

from pipeline.atomic import moved_into_place
from pipeline.backbone import Backbone
from pipeline.data import Clip
from pipeline.errors import KinemaError
from pipeline.sampling import SamplingConfig
from pipeline.workers import Failure


class ClipFeatures(NamedTuple):
    """What the CNN saw in one clip: `features` float16 [T,D]; `pts` float32 [T], seconds from the first frame of the
    file; `indices` int64 [T], in presentation order; `decoder` 'decord' or 'pyav'."""

    features: np.ndarray
    pts: np.ndarray
    indices: np.ndarray
    decoder: str


class FeatureStore:
    """The entries of one fingerprint."""

    def __init__(self, root: Path, backbone: Backbone, sampling: SamplingConfig):
        """Names the folder of the setting; nothing is written before `prepare`."""
        self.setting = {"format": 1, "backbone": backbone.description, "sampling": {"frames": sampling.frames}}
        canonical = json.dumps(self.setting, sort_keys=True).encode()
        self.fingerprint = hashlib.sha256(canonical).hexdigest()[:16]
        self.folder = root / self.fingerprint
        self.backbone_file = self.folder / "backbone.safetensors"
        self.ledger = self.folder / "failures.jsonl"
        self.backbone = backbone

    def prepare(self) -> None:
        """Creates the folder with its manifest and the weights of the CNN.

        Raises:
            KinemaError: the folder cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not self.backbone_file.exists():
                with moved_into_place(self.backbone_file) as temporary:
                    self.backbone.save(temporary)
            manifest = self.folder / "manifest.json"
            if not manifest.exists():
                with moved_into_place(manifest) as temporary:
                    temporary.write_text(json.dumps(self.setting, indent=2) + "\n")
        except OSError as error:
            raise KinemaError(f"{self.folder}: cannot write the feature store: {error.strerror}") from None

    def write(self, clip: Clip, entry: ClipFeatures) -> None:
        """Writes one entry, whole or not at all.

        Raises:
            KinemaError: the disk is full or cannot be written.
        """
        source = clip.path.stat()
        arrays = {"features": entry.features, "pts": entry.pts, "indices": entry.indices}
        metadata = {
            "clip": clip.id,
            "source_size": str(source.st_size),
            "source_mtime_ns": str(source.st_mtime_ns),
            "decoder": entry.decoder,
            "engine": self.backbone.engine,
            "fingerprint": self.fingerprint,
            "checksum": _checksum(arrays),
        }
        path = self._path(clip)
        try:
            path.parent.mkdir(exist_ok=True)
            with moved_into_place(path) as temporary:
                temporary.write_bytes(safetensors.numpy.save(arrays, metadata))
        except OSError as error:
            raise KinemaError(f"{path}: cannot write features: {error.strerror}; what is done is kept") from None

    def read(self, clip: Clip) -> ClipFeatures | None:
        """Reads one entry; None if there is none, or it is damaged or of another state of the source file."""
        try:
            with safetensors.safe_open(self._path(clip), framework="np") as file:
                metadata = file.metadata() or {}
                arrays = {name: file.get_tensor(name) for name in ("features", "pts", "indices")}
            source = clip.path.stat()
        except (OSError, safetensors.SafetensorError):
            return None
        expected = {
            "clip": clip.id,
            "source_size": str(source.st_size),
            "source_mtime_ns": str(source.st_mtime_ns),
            "fingerprint": self.fingerprint,
            "checksum": _checksum(arrays),
        }
        if any(metadata.get(key) != value for key, value in expected.items()):
            return None
        return ClipFeatures(**arrays, decoder=metadata.get("decoder", ""))

    def record_failure(self, clip: Clip, failure: Failure) -> None:
        """Appends to the ledger; the last line of a clip counts, and none once the clip has an entry."""
        line = {"clip": clip.id, "path": str(clip.path), "reason": failure.reason, "time": time.time()}
        with self.ledger.open("a") as stream:
            stream.write(json.dumps(line) + "\n")

    def failures(self) -> dict[str, str]:
        """Returns the reason of each clip in the ledger, by clip id."""
        if not self.ledger.exists():
            return {}
        lines = (json.loads(line) for line in self.ledger.read_text().splitlines() if line.endswith("}"))
        return {line["clip"]: line["reason"] for line in lines}

    def _path(self, clip: Clip) -> Path:
        name = hashlib.sha256(clip.id.encode()).hexdigest()
        return self.folder / name[:2] / f"{name}.safetensors"


def _checksum(arrays: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(np.ascontiguousarray(arrays[name]))
    return digest.hexdigest()
