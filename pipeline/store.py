"""What a feature store holds, and whether it is true: for people, on demand.

kinema store --config configs/ucf101.yaml
kinema store verify --config configs/ucf101.yaml --deep --mend
"""

import os
import shutil
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from pipeline.base.errors import ConfigError, KinemaError, printable
from pipeline.base.files import abandoned, atomic_write
from pipeline.base.progress import progress
from pipeline.data.clip import Source
from pipeline.features.entry import DamagedEntry, decode_entry, encode_entry, entry_files, entry_path
from pipeline.features.store import FeatureStore, read_manifest


def list_store(root: Path) -> None:
    """Prints a line for each setting that the store has features of."""
    folders = _settings(root)
    row = "{:16}  {:24}  {:4}  {:6}  {:>6}  {:9}  {:>6}  {:>6}  {:>9}  {}".format
    headings = "fingerprint", "model", "crop", "view", "frames", "precision", "clips", "unread", "size", "last written"
    print(row(*headings))
    for folder in folders:
        try:
            setting = read_manifest(folder / "manifest.json")
            backbone, frames = setting["backbone"], setting["sampling"]["frames"]
            of = [backbone[name] for name in ("model", "crop", "view")]
            precision = backbone["precision"]
        except (KeyError, TypeError):
            print(f"{folder.name}  its manifest.json is damaged; kinema extract with the same config writes it anew")
            continue
        files = list(entry_files(folder))
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        newest = max((file.stat().st_mtime for file in files), default=folder.stat().st_mtime)
        tried = FeatureStore(folder, partial=0).ledger.lines()
        unread = sum(
            os.path.lexists(line["path"]) and not entry_path(folder, name).exists() for name, line in tried.items()
        )
        written = time.strftime("%Y-%m-%d %H:%M", time.localtime(newest))
        counts = precision, len(files), unread, f"{size / 1e6:.1f} MB"
        print(row(folder.name, *of, frames, *counts, written))


def verify_store(root: Path, deep: bool, mend: bool) -> None:
    """Reads every entry and compares it with its checksum and its source file.

    Args:
        root: folder of all settings.
        deep: compare the content of the source files too, not only size and time of change.
        mend: remove damaged entries, outdated ones and what killed writers left, so that the next extraction makes them
            anew; an entry whose file has another time but the same content is kept and its time noted.

    Raises:
        KinemaError: something is wrong and was not mended.
    """
    found: Counter[str] = Counter()
    for folder in _settings(root):
        files = list(entry_files(folder))
        with progress(f"verify {folder.name}", len(files), "entries") as bar:
            for file in files:
                if problem := _problem(file, deep):
                    found[problem.kind] += 1
                    print(f"{os.path.relpath(file)}: {problem.kind}: {printable(problem.detail)}")
                    if mend and problem.renewed:
                        with atomic_write(file) as temporary:
                            temporary.write_bytes(problem.renewed)
                    elif mend and problem.kind in ("damaged", "outdated"):
                        file.unlink(missing_ok=True)
                bar.update()
        for leftover in abandoned(folder):
            found["left-over temporary file"] += 1
            print(f"{os.path.relpath(leftover)}: left over from a killed process")
            if mend:
                leftover.unlink(missing_ok=True)
    print(f"verify: {', '.join(f'{count} {kind}' for kind, count in found.items()) or 'nothing wrong'}")
    beyond = found["orphan"] + found["unreadable"]
    if mend and found.total() > beyond:
        print(f"mended: {found.total() - beyond}")
    if unmended := beyond if mend else found.total():
        advice = [] if mend or unmended == beyond else ["verify --mend mends all but orphans and unreadable ones"]
        if found["orphan"]:
            advice.append(
                "where videos were moved or renamed, kinema extract takes them over; then prune --orphans removes the "
                "rest"
            )
        raise KinemaError("; ".join([f"{root}: {unmended} entries are not right", *advice]))


def prune_store(root: Path, fingerprints: list[str], orphans: bool) -> None:
    """Removes all features of the named settings, or entries whose source file is no longer there.

    Raises:
        ConfigError: there is no such setting.
        KinemaError: all source files are gone, as if a disk were missing.
    """
    known = {folder.name: folder for folder in _settings(root)}
    unknown = [name for name in fingerprints if name not in known]
    if unknown:
        raise ConfigError(f"{root}: no setting {printable(unknown[0])}; kinema store lists what is there")
    for name in fingerprints:
        shutil.rmtree(known[name])
        print(f"removed {known[name]}")
    if orphans:
        files = [file for folder in _settings(root) for file in entry_files(folder)]
        gone = [file for file in files if (problem := _problem(file, deep=False)) and problem.kind == "orphan"]
        if gone and len(gone) == len(files):
            raise KinemaError(
                f"{root}: the videos of all {len(files)} entries are gone, so nothing was removed: if they have moved, "
                "kinema extract finds them again; to remove everything, name the fingerprints"
            )
        for file in gone:
            file.unlink()
        print(f"removed {len(gone)} entries whose source file is gone")
    if not fingerprints and not orphans:
        raise ConfigError("name the fingerprints to remove (kinema store lists them), or --orphans")


class _Problem(NamedTuple):
    """What is wrong with an entry, in a word and in detail, and the bytes that make it right, if that is possible."""

    kind: str
    detail: str
    renewed: bytes = b""


def _problem(file: Path, deep: bool) -> _Problem | None:
    try:
        clip_id, entry, engine = decode_entry(file)
    except DamagedEntry as error:
        return _Problem("damaged", str(error))
    except OSError as error:
        return _Problem("unreadable", str(error.strerror))
    source = Path(entry.source.path)
    try:
        unchanged = entry.source.unchanged(source)
        if unchanged and not deep:
            return None
        now = Source.of(source)
    except FileNotFoundError:
        return _Problem("orphan", f"its source {source} is gone")
    except OSError as error:
        return _Problem("unreadable", f"its source {source}: {error.strerror}")
    if now.sha256 != entry.source.sha256:
        return _Problem("outdated", f"its source {source} has changed")
    if unchanged:
        return None
    renewed = encode_entry(clip_id, entry._replace(source=now), engine, file.parent.parent.name)
    return _Problem("touched", f"its source {source} has another time, but the same content", renewed)


def _settings(root: Path) -> list[Path]:
    """Lists the folders of a store, a fingerprint each."""
    if not root.is_dir():
        raise ConfigError(f"store: no such folder: {root}")
    return sorted(file.parent for file in root.glob("*/manifest.json"))
