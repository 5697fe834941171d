"""List, verify or prune the cached features: `kinema store verify --repair --config configs/ucf101.yaml`."""

import os
import shutil
import time
from pathlib import Path

from pipeline.base.errors import ConfigError, KinemaError, printable
from pipeline.base.progress import progress
from pipeline.config import Config
from pipeline.features.entry import DamagedEntry, read_entry
from pipeline.features.store import check_store_format, read_manifest

ENTRIES = "??/*.safetensors"
COLUMNS = "fingerprint", "model", "crop", "view", "frames", "precision", "clips", "failed", "size", "last written"


def store(config: Config, action: str, fingerprints: list[str], repair: bool) -> None:
    root = config.store
    if (fingerprints and action != "prune") or (repair and action != "verify"):
        raise ConfigError(f"store {action}: FINGERPRINT is for prune and --repair for verify")
    if not root.is_dir():
        raise ConfigError(f"store: no such folder: {root}")
    check_store_format(root)
    folders = {file.parent.name: file.parent for file in sorted(root.glob("*/manifest.json"))}
    if not folders:
        others = [str(file.parents[1]) for file in sorted(root.glob("*/*/manifest.json"))]
        hint = f"; some are in {', '.join(dict.fromkeys(others))}" if others else ""
        raise ConfigError(f"{root}: no features here{hint}; give --config as for kinema extract, or --store")
    if action == "list":
        _list([*folders.values()])
    elif action == "verify":
        _verify([file for folder in folders.values() for file in folder.glob(ENTRIES)], repair, root)
    else:
        unknown = [name for name in fingerprints if name not in folders]
        if unknown or not fingerprints:
            raise ConfigError(f"{root}: no fingerprint {' '.join(unknown) or 'given'}; kinema store lists them")
        for name in {*fingerprints}:
            shutil.rmtree(folders[name])
            print(f"removed {folders[name]}")


def _list(folders: list[Path]) -> None:
    row = "{:16}  {:24}  {:4}  {:6}  {:>6}  {:9}  {:>6}  {:>6}  {:>9}  {}".format
    print(row(*COLUMNS))
    for folder in folders:
        manifest = read_manifest(folder / "manifest.json")
        try:
            settings = [str((manifest | manifest["sampling"])[name]) for name in COLUMNS[1:6]]
        except (KeyError, TypeError):
            print(f"{folder.name}  manifest.json is damaged; kinema extract with the same settings writes it again")
            continue
        clips, failed = (len(list(folder.glob(files))) for files in (ENTRIES, "failed/*.json"))
        files = [file.stat() for file in folder.rglob("*") if file.is_file()]
        size, latest = sum(file.st_size for file in files) / 1e6, max(file.st_mtime for file in files)
        written = time.strftime("%Y-%m-%d %H:%M", time.localtime(latest))
        print(row(folder.name, *settings, clips, failed, f"{size:.1f} MB", written))


def _verify(files: list[Path], repair: bool, root: Path) -> None:
    """Compare every entry with its checksum. `repair` removes damaged ones, so that they are computed again."""
    damaged = 0
    for file in progress("verify", len(files), "entries", files):
        try:
            read_entry(file)
        except (DamagedEntry, OSError) as error:
            damaged += 1
            print(f"{os.path.relpath(file)}: {printable(error)}")
            if repair:
                file.unlink(missing_ok=True)
    print(f"verify: {len(files)} entries, {damaged} damaged" + (" and removed" if damaged and repair else ""))
    if damaged and not repair:
        raise KinemaError(f"{root}: {damaged} entries are damaged; kinema store verify --repair removes them")
