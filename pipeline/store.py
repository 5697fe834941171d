"""List, verify or prune the cached features.

kinema store --config configs/ucf101.yaml
kinema store verify --repair --config configs/ucf101.yaml
"""

import os
import shutil
import time
from pathlib import Path

from pipeline.base.errors import ConfigError, KinemaError, printable
from pipeline.base.progress import progress
from pipeline.features.entry import DamagedEntry, read_entry
from pipeline.features.manifest import read_manifest, require_new_layout

ENTRIES = "??/*.safetensors"


def list_store(root: Path) -> None:
    """Print a line for each fingerprint."""
    row = "{:16}  {:24}  {:4}  {:6}  {:>6}  {:9}  {:>6}  {:>6}  {:>9}  {}".format
    headings = "fingerprint", "model", "crop", "view", "frames", "precision", "clips", "failed", "size", "last written"
    folders = _folders(root)
    print(row(*headings))
    for folder in folders:
        try:
            manifest = read_manifest(folder / "manifest.json")
            settings = [manifest["model"], manifest["crop"], manifest["view"], manifest["sampling"]["frames"]]
            settings = [str(value) for value in (*settings, manifest["precision"])]
        except (KeyError, TypeError):
            print(f"{folder.name}  manifest.json is damaged; kinema extract with the same settings writes it again")
            continue
        clips, failed = (len(list(folder.glob(files))) for files in (ENTRIES, "failed/*.json"))
        files = [file.stat() for file in folder.rglob("*") if file.is_file()]
        size = f"{sum(file.st_size for file in files) / 1e6:.1f} MB"
        written = time.strftime("%Y-%m-%d %H:%M", time.localtime(max(file.st_mtime for file in files)))
        print(row(folder.name, *settings, clips, failed, size, written))


def verify_store(root: Path, repair: bool) -> None:
    """Compare every entry with its checksum.

    Args:
        root: folder of the store.
        repair: remove damaged entries, so that the next extraction computes them again.

    Raises:
        KinemaError: entries are damaged and were not removed.
    """
    checked = damaged = 0
    for folder in _folders(root):
        files = list(folder.glob(ENTRIES))
        checked += len(files)
        with progress(f"verify {folder.name}", len(files), "entries") as bar:
            for file in files:
                try:
                    read_entry(file)
                except (DamagedEntry, OSError) as error:
                    damaged += 1
                    print(f"{os.path.relpath(file)}: {printable(error)}")
                    if repair:
                        file.unlink(missing_ok=True)
                bar.update()
    print(f"verify: {checked} entries, {damaged} damaged" + (" and removed" if damaged and repair else ""))
    if damaged and not repair:
        raise KinemaError(f"{root}: {damaged} entries are damaged; kinema store verify --repair removes them")


def prune_store(root: Path, fingerprints: list[str]) -> None:
    """Remove all features of fingerprints.

    Raises:
        ConfigError: there is no such fingerprint.
    """
    known = {folder.name: folder for folder in _folders(root)}
    if not fingerprints:
        raise ConfigError("name the fingerprints to remove; kinema store lists them")
    for name in fingerprints:
        if name not in known:
            raise ConfigError(f"{root}: no fingerprint {printable(name)}; kinema store lists them")
    for name in fingerprints:
        shutil.rmtree(known[name])
        print(f"removed {known[name]}")


def _folders(root: Path) -> list[Path]:
    if not root.is_dir():
        raise ConfigError(f"store: no such folder: {root}")
    require_new_layout(root)
    return sorted(file.parent for file in root.glob("*/manifest.json"))
