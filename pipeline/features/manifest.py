"""The manifest of a fingerprint: everything that decides the numbers of its features."""

import dataclasses
import hashlib
import json
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.base.errors import KinemaError
from pipeline.config import Config

if TYPE_CHECKING:
    from pipeline.features.backbone import Backbone

FORMAT = 4  # Counts up when the same settings begin to give other numbers.


def settings_of(config: Config) -> dict[str, Any]:
    """Return the settings that decide the numbers. `Backbone.identity` is what the loaded CNN adds."""
    backbone = {name: getattr(config.backbone, name) for name in ("model", "crop", "view", "precision")}
    return {"format": FORMAT, "extractor": "frame-cnn", **backbone, "sampling": dataclasses.asdict(config.sampling)}


def fingerprint(config: Config, backbone: "Backbone") -> str:
    """Return the digest of everything that decides the numbers, the name of the folder."""
    text = json.dumps(settings_of(config) | backbone.identity, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_manifest(path: Path) -> dict[str, Any]:
    """Return a manifest; an empty one if it is missing or damaged."""
    with suppress(OSError, ValueError):
        if isinstance(manifest := json.loads(path.read_text()), dict):
            return manifest
    return {}


def require_new_layout(root: Path) -> None:
    """Check that a store does not hold only folders of an earlier version."""
    formats = {read_manifest(path).get("format") for path in root.glob("*/manifest.json")}
    if formats and formats <= {1, 2, 3}:
        raise KinemaError(f"{root}: a feature store of an earlier version; delete it, or name another with --store")
