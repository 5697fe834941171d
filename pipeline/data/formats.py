"""Data set formats: class folders, a CSV list, or the official lists of UCF101 and HMDB51."""

import csv
import io
import math
import os
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from pipeline.base.errors import ConfigError, KinemaError, printable, summarize
from pipeline.config import DataConfig
from pipeline.data.clip import Clip, clip_id, group_of
from pipeline.data.folder import read_folder, split_of

CSV_COLUMNS = "path", "label", "group", "split", "start", "end"  # The first two are required.


def read_clips(config: DataConfig) -> tuple[list[Clip], list[str], int | str]:
    """Return clips, classes in the order of the logits, and the number of the official split, else 'predefined'."""
    root, lists = config.root, config.lists
    if not root.is_dir():
        raise ConfigError(f"data.root: no such folder: {root.absolute()}")
    official = bool(lists and lists.is_dir())
    classes: list[str] = []
    if not lists:
        clips = read_folder(root)
    elif not official:
        clips = read_csv(root, lists)
    elif (lists / "classInd.txt").is_file():
        clips, classes = read_ucf101(root, lists, config.split)
    else:
        clips = read_hmdb51(root, lists, config.split)
    if not clips:
        expected = "the list is empty" if lists else "expected <class>/<clip>, or a list of clips in data.lists"
        raise KinemaError(f"{lists or root}: no clips found; {expected}")
    if lists and (absent := [clip.id for clip in clips if not os.path.exists(clip.path)]):
        remedy = "check data.root, remove these lines, or leave out data.lists to use a part of UCF101 or HMDB51"
        listed = f"{len(absent)} of {len(clips)} listed files are not in {root}"
        raise KinemaError(f"{lists}: {listed}: {summarize(absent)}; {remedy}")
    if twice := [name for name, count in Counter(clip.id for clip in clips).items() if count > 1]:
        raise KinemaError(f"{lists or root}: listed more than once: {summarize(twice)}")
    return clips, classes or sorted({clip.label for clip in clips}), config.split if official else "predefined"


def read_csv(root: Path, file: Path) -> list[Clip]:
    """Read a list with the header `path,label[,group,split,start,end]`, times in seconds. `sha256` is ignored."""
    rows = list(_rows(file))
    for column in ("group", "split"):
        empty = [where for where, row in rows if not row[column]]
        if 0 < len(empty) < len(rows):
            raise KinemaError(f"{empty[0]}: empty {column}, which other rows have; fill it or remove the column")
    clips = []
    for where, row in rows:
        name, split = row["path"], split_of(row["split"])
        if row["split"] and not split:
            raise KinemaError(f"{where}: unknown split '{row['split']}'; use train, val or test")
        if "\\" in name and not os.path.lexists(root / name):  # Written on Windows.
            name = name.replace("\\", "/")
        clips.append(_clip(root, where, name, printable(row["label"]), split, row["group"], *_times(where, row)))
    return clips


def _rows(file: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield ('file:line', row) of a CSV list, without blanks around names and values. Absent columns are empty."""
    reader = csv.reader(io.StringIO(_text(file), newline=""), skipinitialspace=True)
    try:
        names = [name.strip().lower() for name in next(reader, [])]
        if missing := [name for name in ("path", "label") if name not in names]:
            hint = "; separate the columns by commas" if ";" in "".join(names) else ""
            hint = "; convert a Kinetics list with scripts/kinetics_csv.py" if "youtube_id" in names else hint
            raise KinemaError(f"{file}:1: the header lacks {', '.join(missing)}{hint}")
        if unknown := [name for name in names if name not in (*CSV_COLUMNS, "sha256")]:
            raise KinemaError(f"{file}:1: unknown column '{unknown[0]}'; the columns are {', '.join(CSV_COLUMNS)}")
        for values in reader:
            where = f"{file}:{reader.line_num}"
            if not any(values):  # Spreadsheets leave empty rows.
                continue
            if len(values) != len(names):
                raise KinemaError(f"{where}: expected {len(names)} columns, got {len(values)}")
            row = dict.fromkeys(CSV_COLUMNS, "") | dict(zip(names, map(str.strip, values), strict=True))
            if empty := [name for name in ("path", "label") if not row[name]]:
                raise KinemaError(f"{where}: empty {empty[0]}")
            yield where, row
    except csv.Error as error:
        raise KinemaError(f"{file}:{reader.line_num}: not CSV: {error}") from None


def _times(where: str, row: dict[str, str]) -> tuple[float | None, float | None]:
    with suppress(ValueError):
        start, end = (float(row[name]) if row[name] else None for name in ("start", "end"))
        if 0 <= (start or 0) < (math.inf if end is None else end) and end != math.inf:
            return start, end
    got = f"{row['start']!r} and {row['end']!r}"
    raise KinemaError(f"{where}: start and end are seconds, end after start; got {got}")


def read_ucf101(root: Path, lists: Path, split: int) -> tuple[list[Clip], list[str]]:
    """Read classInd.txt (`1 Archery`), trainlist01.txt (`Archery/v_Archery_g08_c01.avi 1`) and testlist01.txt."""
    classes = {}
    for where, line in _lines(lists / "classInd.txt"):
        if not (match := re.fullmatch(r"(\d+)\s+(.+)", line)):
            raise KinemaError(f"{where}: expected '<number> <class>', got '{line}'")
        classes[printable(match[2])] = match[1]
    clips = []
    for part in ("train", "test"):
        for where, line in _lines(lists / f"{part}list{split:02d}.txt"):
            name, number = re.fullmatch(r"(.+?)(?:\s+(\d+))?", line).groups()
            label = printable(name.split("/")[0])
            if label not in classes or number not in (None, classes[label]):
                raise KinemaError(f"{where}: expected '<class>/<file> <number>' as in classInd.txt, got '{line}'")
            clips.append(_clip(root, where, name, label, part))
    return clips, list(classes)


def read_hmdb51(root: Path, lists: Path, split: int) -> list[Clip]:
    """Read <class>_test_split1.txt: `file.avi 1`, where 1 is train, 2 is test and 0 is neither."""
    ending = f"_test_split{split}.txt"
    if not (files := sorted(lists.glob(f"*{ending}"))):
        raise ConfigError(f"data.lists: {lists} has neither classInd.txt (UCF101) nor *{ending} (HMDB51)")
    clips = []
    for file in files:
        label = file.name.removesuffix(ending)
        for where, line in _lines(file):
            if not (match := re.fullmatch(r"(.+?)\s+([012])", line)):
                raise KinemaError(f"{where}: expected '<file> 0|1|2', got '{line}'")
            if match[2] != "0":
                clips.append(_clip(root, where, f"{label}/{match[1]}", label, "train" if match[2] == "1" else "test"))
    return clips


def _clip(root: Path, where: str, name: str, label: str, split: str, group: str = "", start=None, end=None) -> Clip:
    """Return the clip of a line. Links may lead out of the root, lists may not."""
    relative = os.path.relpath(os.path.join(root, name), root)
    if relative.startswith(".."):
        raise KinemaError(f"{where}: '{name}' is outside of data.root {root}; list only files below it")
    id, group = clip_id(relative, start, end), group or group_of(printable(relative), label)
    return Clip(id=id, path=root / relative, label=label, group=group, split=split, start=start, end=end)


def _lines(file: Path) -> Iterator[tuple[str, str]]:
    """Yield ('file:line', line) of the lines that are not blank."""
    for number, line in enumerate(_text(file).splitlines(), 1):
        if line.strip():
            yield f"{file}:{number}", line.strip()


def _text(file: Path) -> str:
    try:
        return file.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"data.lists: no such file or folder: {file.absolute()}") from None
    except UnicodeDecodeError:
        raise KinemaError(f"{file}: not in UTF-8; save it as text in UTF-8") from None
