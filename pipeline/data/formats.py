"""Data set formats: folders, official lists or a CSV file -> clips, with the splits that they define."""

import csv
import math
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from pipeline.base.errors import ConfigError, KinemaError, printable, summarize
from pipeline.base.settings import nearest
from pipeline.config import DataConfig
from pipeline.data.clip import Clip, clip_id, group_of, path_below
from pipeline.data.folder import read_folder, split_of
from pipeline.data.official import read_hmdb51, read_ucf101

CSV_COLUMNS = "path", "label", "group", "split", "start", "end"
"""Columns of a CSV list. Only the first two are required."""


def read_clips(config: DataConfig) -> tuple[list[Clip], list[str], int | str]:
    """Read the clips of a data set.

    Returns:
        (clips, classes, split): `classes` in the order of the logits; `split` is the number of an official split, else
        'given'. Clips have no split if the data set defines none.

    Raises:
        ConfigError: a folder or list does not exist, or its format is unknown.
        KinemaError: a line of a list is wrong, or a file is missing.
    """
    root, lists = config.root, config.lists
    if not root.is_dir():
        raise ConfigError(f"data.root: no such folder: {root.absolute()}")
    if lists and not lists.exists():
        raise ConfigError(f"data.lists: no such file or folder: {lists.absolute()}")
    classes: list[str] = []
    if lists is None:
        clips = read_folder(root)
    elif not lists.is_dir():
        clips = read_csv(root, lists)
    elif (lists / "classInd.txt").is_file():
        clips, classes = read_ucf101(config)
    elif any(lists.glob("*_test_split?.txt")):
        clips = read_hmdb51(config)
    else:
        raise ConfigError(f"data.lists: {lists} has neither classInd.txt (UCF101) nor *_test_split1.txt (HMDB51)")
    official = bool(lists and lists.is_dir())
    if not clips:
        expected = "the list is empty" if lists else "expected <class>/<clip>, or a list of clips in data.lists"
        raise KinemaError(f"{lists or root}: no clips found; {expected}")
    if lists and (absent := [clip.id for clip in clips if not os.path.exists(clip.path)]):
        subset = ". For a part of UCF101 or HMDB51, leave out data.lists" if official else ""
        raise KinemaError(
            f"{lists}: {len(absent)} of {len(clips)} listed files are not in {root}: {summarize(absent)}; "
            f"check data.root, or remove these lines{subset}"
        )
    if twice := [name for name, count in Counter(clip.id for clip in clips).items() if count > 1]:
        raise KinemaError(f"{lists or root}: listed more than once: {summarize(twice)}")
    return clips, classes or sorted({clip.label for clip in clips}), config.split if official else "given"


def read_csv(root: Path, file: Path) -> list[Clip]:
    """Read a list with the header `path,label[,group,split,start,end]`; times in seconds. A column `sha256`, which the
    list of a run has, is ignored."""
    rows = list(_rows(file))
    for column in ("group", "split"):
        empty = [where for where, row in rows if not row.get(column)]
        if 0 < len(empty) < len(rows):
            raise KinemaError(f"{empty[0]}: empty {column}, which other rows have; fill it or remove the column")
    clips = []
    for where, row in rows:
        name = row["path"]
        if "\\" in name and not os.path.lexists(root / name):  # Written on Windows.
            name = name.replace("\\", "/")
        name, path = path_below(root, name, where)
        label = printable(row["label"])
        start, end = _times(row, where)
        split = split_of(row.get("split") or "")
        if row.get("split") and not split:
            raise KinemaError(f"{where}: unknown split '{row['split']}'; use train, val or test")
        group = row.get("group") or group_of(name, label)
        name = clip_id(name, start, end)
        clips.append(Clip(id=name, path=path, label=label, group=group, split=split, start=start, end=end))
    return clips


def _rows(file: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield ('file:line', row) of a CSV list, with blanks around names and values removed."""
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream, skipinitialspace=True)
            reader.fieldnames = [name.strip().lower() for name in reader.fieldnames or []]
            _check_header(f"{file}:1", reader.fieldnames)
            for row in reader:
                where = f"{file}:{reader.line_num}"
                if not any(row[name] for name in reader.fieldnames):  # Spreadsheets leave empty rows.
                    continue
                if None in row or None in row.values():
                    raise KinemaError(f"{where}: expected {len(reader.fieldnames)} columns")
                row = {name: value.strip() for name, value in row.items()}
                if empty := [name for name in ("path", "label") if not row[name]]:
                    raise KinemaError(f"{where}: empty {empty[0]}")
                yield where, row
    except UnicodeDecodeError:
        raise KinemaError(f"{file}: not in UTF-8; save it as CSV in UTF-8") from None
    except csv.Error as error:
        raise KinemaError(f"{file}: not a CSV file: {error}") from None


def _check_header(where: str, names: list[str]) -> None:
    if missing := [name for name in ("path", "label") if name not in names]:
        hint = "; separate the columns by commas" if ";" in "".join(names) else ""
        hint = "; convert a Kinetics list with scripts/kinetics_csv.py" if "youtube_id" in names else hint
        raise KinemaError(f"{where}: the header lacks {', '.join(missing)}{hint}")
    if unknown := [name for name in names if name not in (*CSV_COLUMNS, "sha256")]:
        hint = nearest(unknown[0], CSV_COLUMNS) or f"; known columns: {', '.join(CSV_COLUMNS)}"
        raise KinemaError(f"{where}: unknown column '{unknown[0]}'{hint}")


def _times(row: dict[str, str], where: str) -> tuple[float | None, float | None]:
    try:
        start, end = (float(row[name]) if row.get(name) else None for name in ("start", "end"))
        if not all(time is None or 0 <= time < math.inf for time in (start, end)):
            raise ValueError
    except ValueError:
        got = f"{row.get('start')!r}, {row.get('end')!r}"
        raise KinemaError(f"{where}: start and end are seconds, got {got}") from None
    if end is not None and end <= (start or 0):
        raise KinemaError(f"{where}: end {end:g} is not after start {start or 0:g}")
    return start, end
