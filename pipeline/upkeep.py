"""What a feature store holds, whether it is true, and what could not be read: for people, on demand.

kinema store --config configs/ucf101.yaml
kinema store verify --config configs/ucf101.yaml --deep --mend
kinema failures configs/ucf101.yaml
"""

import functools
import json
import os
import re
import shlex
import shutil
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from pipeline.atomic import abandoned, moved_into_place
from pipeline.backbone import Backbone, resolve_device
from pipeline.config import Config
from pipeline.data import Clip, load_dataset
from pipeline.decode import DecodeConfig, decode_clip
from pipeline.errors import ConfigError, KinemaError, printable
from pipeline.frames import Source
from pipeline.progress import progress
from pipeline.store import DamagedEntry, FeatureStore, decode_entry, encode_entry, entry_path, read_ledger
from pipeline.timeline import read_timeline
from pipeline.workers import Failure, run_isolated


def list_store(root: Path) -> None:
    """Prints a line for each setting that the store has features of."""
    print("fingerprint       model                     frames  precision   clips  unread      size  last written")
    for folder in _settings(root):
        try:
            setting = json.loads((folder / "manifest.json").read_text())
        except ValueError:
            print(f"{folder.name}  its manifest.json is damaged; kinema extract with the same config writes it anew")
            continue
        files = list(_entries(folder))
        size = sum(file.stat().st_size for file in files)
        newest = max((file.stat().st_mtime for file in files), default=folder.stat().st_mtime)
        backbone = setting["backbone"]
        unread = sum(not entry_path(folder, clip_id).exists() for clip_id in read_ledger(folder))
        print(
            f"{folder.name}  {backbone['model']:24}  {setting['sampling']['frames']:6}  {backbone['precision']:9} "
            f"{len(files):7} {unread:7} {size / 1e6:6.1f} MB  "
            f"{time.strftime('%Y-%m-%d %H:%M', time.localtime(newest))}"
        )


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
        files = list(_entries(folder))
        with progress(f"verify {folder.name}", len(files), "entries") as bar:
            for file in files:
                if problem := _problem(file, deep):
                    found[problem.kind] += 1
                    print(f"{os.path.relpath(file)}: {problem.kind}: {printable(problem.detail)}")
                    if mend and problem.renewed:
                        with moved_into_place(file) as temporary:
                            temporary.write_bytes(problem.renewed)
                    elif mend and problem.kind in ("damaged", "outdated"):
                        file.unlink(missing_ok=True)
                bar.update()
        for leftover in abandoned(folder):
            found["left-over temporary file"] += 1
            print(f"{os.path.relpath(leftover)}: left over from a killed process")
            if mend:
                leftover.unlink(missing_ok=True)
    total = ", ".join(f"{count} {kind}" for kind, count in found.items()) or "nothing wrong"
    print(f"verify: {total}{' (mended)' if mend and found else ''}")
    unmended = found["orphan"] + found["unreadable"] if mend else found.total()
    if unmended:
        advice = "kinema store prune --orphans removes orphans" if mend else "kinema store verify --mend mends them"
        raise KinemaError(f"{root}: {unmended} entries are not right; {advice}")


def prune_store(root: Path, fingerprints: list[str], orphans: bool) -> None:
    """Removes all features of the named settings, or entries whose source file is no longer there.

    Raises:
        ConfigError: there is no such setting.
    """
    known = {folder.name: folder for folder in _settings(root)}
    unknown = [name for name in fingerprints if name not in known]
    if unknown:
        raise ConfigError(f"{root}: no setting {printable(unknown[0])}; kinema store lists what is there")
    for name in fingerprints:
        shutil.rmtree(known[name])
        print(f"removed {known[name]}")
    if orphans:
        removed = 0
        for file in (file for folder in _settings(root) for file in _entries(folder)):
            problem = _problem(file, deep=False)
            if problem and problem.kind == "orphan":
                file.unlink()
                removed += 1
        print(f"removed {removed} entries whose source file is gone")
    if not fingerprints and not orphans:
        raise ConfigError("name the fingerprints to remove (kinema store lists them), or --orphans")


def show_failures(config: Config, config_file: Path, clip_id: str | None) -> None:
    """Prints the clips that could not be read, grouped by reason; or what each decoder says of one clip.

    Raises:
        ConfigError: the data set has no such clip.
    """
    clips = {clip.id: clip for clip in load_dataset(config.data).clips}
    if clip_id is not None:
        if clip_id not in clips:
            raise ConfigError(f"{printable(clip_id)}: no such clip in {config.data.lists or config.data.root}")
        _examine(clips[clip_id], config.decode)
        return
    device = resolve_device(config.device)
    store = FeatureStore(config.store, Backbone(config.backbone, device), config.sampling, config.decode.partial)
    failures = {name: line for name, line in store.failures().items() if name in clips and not store.read(clips[name])}
    if not failures:
        print(f"no failures among {len(clips)} clips")
        return
    groups = defaultdict(list)
    for line in failures.values():
        groups[re.sub(r"\d+(\.\d+)?", "#", line["reason"])].append(line)
    print(f"{len(failures)} of {len(clips)} clips could not be read, see {store.ledger}")
    for lines in sorted(groups.values(), key=len, reverse=True):
        tried = max(line["attempt"] for line in lines)
        reason, last = printable(lines[0]["reason"]), lines[-1]["time"]
        print(f"\n{len(lines)} x {reason} (tried {tried} times at most, last {last})")
        for line in lines[:3]:
            print(f"    {printable(line['clip'])}")
        if len(lines) > 3:
            print(f"    and {len(lines) - 3} more")
        print(f"  look at one: kinema failures {shlex.quote(str(config_file))} --clip {shlex.quote(lines[0]['clip'])}")


def _examine(clip: Clip, config: DecodeConfig) -> None:
    print(f"{printable(clip.path)}: {clip.path.stat().st_size} bytes")
    looks = {
        "container": functools.partial(_look_at_container, config=config),
        "decord": functools.partial(_look_at_frames, config=config, decoder="decord"),
        "pyav": functools.partial(_look_at_frames, config=config, decoder="pyav"),
    }
    for name, look in looks.items():
        for _, outcome in run_isolated(look, [clip], 1, config.deadline, config.memory):
            print(f"  {name}: {printable(outcome.reason if isinstance(outcome, Failure) else outcome)}")


def _look_at_container(clip: Clip, config: DecodeConfig) -> str:
    timeline = read_timeline(clip.path, config.max_pixels, config.max_duration)
    times_N = timeline.times_N
    counted = ", without presentation times" if timeline.counted else ""
    return f"{timeline.present} of {len(times_N)} frames over {times_N[-1] - times_N[0]:.2f} s{counted}"


def _look_at_frames(clip: Clip, config: DecodeConfig, decoder: str) -> str:
    decoded = decode_clip(clip.path, 16, clip.start, clip.end, config, (decoder,))
    return f"{len(decoded.indices)} of {decoded.planned} frames, {decoded.frames.shape[2]}x{decoded.frames.shape[1]}"


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


def _entries(folder: Path) -> Iterator[Path]:
    return folder.glob("??/[!.]*.safetensors")
