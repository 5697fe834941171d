"""The layouts of data sets: folders, official lists and CSV files -> clips, with the splits that they bring along."""

import csv
import math
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from pipeline.base.errors import ConfigError, KinemaError, printable, summarize
from pipeline.base.settings import nearest
from pipeline.config import DataConfig
from pipeline.data.clip import Clip, clip_id

VIDEO_SUFFIXES = {".avi", ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts"}
VIDEO_SUFFIXES |= {".wmv", ".flv", ".3gp"}
HIDDEN = (".", "__MACOSX")
"""How names begin that are not the user's: macOS leaves `._clip.mp4` beside a clip, which is no video."""
SPLIT_NAMES = {"train": "train", "test": "test", **dict.fromkeys(("val", "valid", "validate", "validation"), "val")}
"""What the splits are called by others."""
CSV_COLUMNS = "path", "label", "group", "split", "start", "end"
"""Of a list in CSV; all but the first two may be left out."""


def read_clips(config: DataConfig) -> tuple[list[Clip], list[str], int | str]:
    """Reads which clips there are.

    Returns:
        (clips, classes, split): the clips of the split that the data set brings along, if any; the classes in the order
        of the logits; which split it is: the number of an official one, else 'given'.

    Raises:
        ConfigError: a folder or list does not exist, or the layout cannot be told.
        KinemaError: a line of a list is wrong, or a file is missing.
    """
    if not config.root.is_dir():
        raise ConfigError(f"data.root: no such folder: {config.root.absolute()}")
    if config.lists and not config.lists.exists():
        raise ConfigError(f"data.lists: no such file or folder: {config.lists.absolute()}")
    layout = _layout_of(config.lists)
    readers = {"ucf101": _read_ucf101, "hmdb51": _read_hmdb51, "folder": _read_folder}
    readers |= {"csv": _read_csv, "kinetics": _read_kinetics}
    clips, classes = readers[layout](config)
    if not clips:
        raise KinemaError(f"{config.lists or config.root}: no clips found (layout '{layout}')")
    listed = layout not in ("folder", "kinetics")  # These look what is there.
    if listed and (absent := [clip.id for clip in clips if not os.path.exists(clip.path)]):
        raise KinemaError(
            f"{config.lists}: {len(absent)} of {len(clips)} listed files are not in {config.root}: "
            f"{summarize(absent)}; check data.root, or take their lines out "
            "(a part of UCF101 or HMDB51 goes without data.lists)"
        )
    twice = [name for name, count in Counter(clip.id for clip in clips).items() if count > 1]
    if twice:
        raise KinemaError(f"{config.lists or config.root}: listed more than once: {summarize(twice)}")
    split = config.split if layout in ("ucf101", "hmdb51") else "given"
    return clips, classes or sorted({clip.label for clip in clips}), split


def group_of(name: str, label: str) -> str:
    """Tells from a file's path, relative to the data root, what it was cut from.

    UCF101: `v_Archery_g07_c02` -> `g07`. HMDB51: `Fellowship_5_climb_f_cm_np1_ba_med_3` -> `climb/Fellowship_5`,
    within the class because the official lists keep the films apart only there. Any other file is its own group.
    """
    stem, _ = os.path.splitext(os.path.basename(name))
    if match := re.search(r"_(g\d+)_c\d+$", stem):
        return match[1]
    if match := re.fullmatch(rf"(.+)_{re.escape(label)}_[a-z]+_[a-z]+_np\d+_[a-z]+_[a-z]+_\d+", stem):
        return f"{label}/{match[1]}"
    return name


def _layout_of(lists: Path | None) -> str:
    if lists is None:
        return "folder"
    if lists.is_file():
        header = lists.open(errors="replace").readline()
        return "kinetics" if "youtube_id" in header else "csv"
    if (lists / "classInd.txt").is_file():
        return "ucf101"
    if any(lists.glob("*_test_split?.txt")):
        return "hmdb51"
    raise ConfigError(f"data.lists: {lists} holds neither classInd.txt (ucf101) nor *_test_split1.txt (hmdb51)")


def _lines(file: Path) -> Iterator[tuple[str, list[str]]]:
    """Yields ('file:line', words) of each non-empty line; only the last blank separates, names may hold others."""
    try:
        for number, line in enumerate(file.read_text(encoding="utf-8-sig").splitlines(), 1):
            if line.strip():
                yield f"{file}:{number}", line.strip().rsplit(maxsplit=1)
    except FileNotFoundError:
        raise ConfigError(f"data.lists: no such list: {file}") from None
    except UnicodeDecodeError:
        raise KinemaError(f"{file}: not a text file") from None


def _below(root: Path, name: str, where: str) -> tuple[str, Path]:
    """Returns the clip's name relative to the root, and its path. Links below the root are the user's own and may lead
    anywhere; what a list says may not."""
    base = os.path.join(os.path.abspath(root), "")
    path = os.path.normpath(os.path.join(base, name))
    if not path.startswith(base):
        raise KinemaError(f"{where}: '{name}' is outside of data.root {root}; lists may only name files below it")
    relative = path.removeprefix(base)
    return printable(relative), root / relative


def _read_ucf101(config: DataConfig) -> tuple[list[Clip], list[str]]:
    """classInd.txt `1 Archery`; trainlist01.txt `Archery/v_Archery_g08_c01.avi 1`; testlist01.txt without a number."""
    classes = {}
    for where, words in _lines(config.lists / "classInd.txt"):
        number, _, name = " ".join(words).partition(" ")
        if not name or not number.isdigit():
            raise KinemaError(f"{where}: expected 'number class', got '{' '.join(words)}'")
        classes[name] = number
    clips = []
    for split in ("train", "test"):
        for where, words in _lines(config.lists / f"{split}list{config.split:02d}.txt"):
            number = words.pop() if words[-1].isdigit() else None
            name = " ".join(words)
            label = name.split("/")[0]
            if "/" not in name:
                raise KinemaError(f"{where}: expected 'Class/file', got '{name}'")
            if label not in classes:
                raise KinemaError(f"{where}: class '{label}' is not in classInd.txt")
            if number is not None and number != classes[label]:
                raise KinemaError(f"{where}: class number {number}, but '{label}' is {classes[label]} in classInd.txt")
            name, path = _below(config.root, name, where)
            clips.append(Clip(id=name, path=path, label=label, group=group_of(name, label), split=split))
    return clips, list(classes)


def _read_hmdb51(config: DataConfig) -> tuple[list[Clip], list[str]]:
    """<class>_test_split1.txt `file.avi 1`: 1 is training, 2 is test, 0 is neither."""
    clips = []
    ending = f"_test_split{config.split}.txt"
    for file in sorted(config.lists.glob(f"*{ending}")):
        label = file.name.removesuffix(ending)
        for where, words in _lines(file):
            if len(words) != 2 or words[1] not in ("0", "1", "2"):
                raise KinemaError(f"{where}: expected 'file 0|1|2', got '{' '.join(words)}'")
            if words[1] != "0":
                name, path = _below(config.root, f"{label}/{words[0]}", where)
                split = "train" if words[1] == "1" else "test"
                clips.append(Clip(id=name, path=path, label=label, group=group_of(name, label), split=split))
    return clips, []


def _read_folder(config: DataConfig) -> tuple[list[Clip], list[str]]:
    """One folder per class, with clips at any depth; or such a tree below each of train/, test/ and perhaps val/."""
    root = config.root
    folders = _folders(root)
    split_of = {path: SPLIT_NAMES[path.name.lower()] for path in folders if path.name.lower() in SPLIT_NAMES}
    given = {"train", "test"} <= {*split_of.values()}
    if split_of and not given and len(split_of) == len(folders):
        names = " and ".join(path.name for path in folders)
        raise KinemaError(f"{root}: has {names} but needs both train and test, or one folder per class")
    if given and len(split_of) < len(folders):
        others = [path.name for path in folders if path not in split_of]
        raise KinemaError(
            f"{root}: has train and test, and beside them {summarize(others)}; move these into one or the other"
        )
    clips, loose = [], []
    for base, split in split_of.items() if given else [(root, "")]:
        filled = set()
        for path in _videos(base):
            relative = path.relative_to(base)
            if len(relative.parts) > 1:
                filled.add(relative.parts[0])
                label, name = printable(relative.parts[0]), printable(path.relative_to(root).as_posix())
                clips.append(Clip(id=name, path=path, label=label, group=group_of(name, label), split=split))
            else:
                loose.append(printable(path.name))
        if bare := [printable(path.name) for path in _folders(base) if path.name not in filled]:
            print(f"{base}: no videos in {summarize(bare)}, so there is no such class")
    if loose:
        print(f"{root}: passed over {len(loose)} videos that are in no folder of a class: {summarize(loose)}")
    return clips, []


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith(HIDDEN))


def _videos(root: Path) -> list[Path]:
    """Finds the video files at any depth, below links too; says how many files have other endings. A folder by the name
    of a video is given instead of what is in it, so that it is told of as one that cannot be read."""
    found: list[Path] = []
    others: Counter[str] = Counter()
    way_to = {os.fspath(root): [os.path.join(os.path.realpath(root), "")]}  # The real folders that lead to each.
    for folder, below, files in os.walk(root, onerror=_refuse, followlinks=True):
        below[:] = [name for name in below if not name.startswith(HIDDEN)]
        for path in (Path(folder, name) for name in below + files if not name.startswith(HIDDEN)):
            if path.suffix.lower() in VIDEO_SUFFIXES:
                found.append(path)
            elif path.name in files:
                others[path.suffix] += 1
        for name in list(below):
            path = os.path.join(folder, name)
            real = os.path.join(os.path.realpath(path), "")
            # A link to a folder on the way to it would lead round and round.
            if Path(name).suffix.lower() in VIDEO_SUFFIXES or any(place.startswith(real) for place in way_to[folder]):
                below.remove(name)
            way_to[path] = [*way_to[folder], real]
    if others:
        kinds = ", ".join(f"{count} x {printable(suffix) or 'no ending'}" for suffix, count in others.most_common(5))
        print(f"{root}: passed over {others.total()} files that are no videos by their ending ({kinds})")
    return sorted(found)


def _refuse(error: OSError) -> NoReturn:
    raise KinemaError(f"{error.filename}: {error.strerror}; make the folder readable, or take it out of data.root")


def _rows(
    config: DataConfig, filled: tuple[str, ...], others: tuple[str, ...] = (), known: tuple[str, ...] | None = None
) -> Iterator[tuple[str, dict[str, str]]]:
    """Yields ('file:line', row) of a CSV file with a header, without blanks around names and values; of the columns
    that it must have, those that are `filled` in each row, and others."""
    try:
        with config.lists.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream, skipinitialspace=True)
            reader.fieldnames = [name.strip().lower() for name in reader.fieldnames or []]
            if missing := [name for name in filled + others if name not in reader.fieldnames]:
                hint = "; columns are separated by commas" if ";" in "".join(reader.fieldnames) else ""
                raise KinemaError(f"{config.lists}:1: the header lacks {', '.join(missing)}{hint}")
            if known and (unknown := [name for name in reader.fieldnames if name not in known]):
                raise KinemaError(
                    f"{config.lists}:1: unknown column '{unknown[0]}'{nearest(unknown[0], known)}; "
                    f"there are {', '.join(known)}"
                )
            for row in reader:
                where = f"{config.lists}:{reader.line_num}"
                if not any(row[name] for name in reader.fieldnames):  # Spreadsheets leave such rows behind.
                    continue
                if None in row or None in row.values():
                    raise KinemaError(f"{where}: expected {len(reader.fieldnames)} columns")
                row = {name: value.strip() for name, value in row.items()}
                for name in filled:
                    if not row[name]:
                        raise KinemaError(f"{where}: empty {name}")
                yield where, row
    except UnicodeDecodeError:
        raise KinemaError(f"{config.lists}: not in UTF-8; save it as CSV in UTF-8") from None
    except (csv.Error, IsADirectoryError) as error:
        raise KinemaError(f"{config.lists}: not a CSV file: {error}") from None


def _segment(row: dict[str, str], where: str, start: str, end: str) -> tuple[float | None, float | None]:
    try:
        first, last = (float(row[key]) if row.get(key) else None for key in (start, end))
        if not all(time is None or 0 <= time < math.inf for time in (first, last)):
            raise ValueError
    except ValueError:
        raise KinemaError(f"{where}: {start} and {end} are seconds, got {row.get(start)!r}, {row.get(end)!r}") from None
    if last is not None and last <= (first or 0):
        raise KinemaError(f"{where}: {end} {last:g} is not after {start} {first or 0:g}")
    return first, last


def _split(name: str, where: str) -> str:
    if name.lower() not in SPLIT_NAMES:
        raise KinemaError(f"{where}: split '{name}' is none of {', '.join(SPLIT_NAMES)}")
    return SPLIT_NAMES[name.lower()]


def _read_csv(config: DataConfig) -> tuple[list[Clip], list[str]]:
    """Header `path,label[,group,split,start,end]`; paths relative to the root, times in seconds. A column `sha256`, as
    the list of a run has it, is not read."""
    rows = list(_rows(config, ("path", "label"), known=(*CSV_COLUMNS, "sha256")))
    for column in ("group", "split"):
        empty = [where for where, row in rows if not row.get(column)]
        if 0 < len(empty) < len(rows):
            raise KinemaError(f"{empty[0]}: empty {column}, which other rows have; fill it, or leave the column out")
    clips = []
    for where, row in rows:
        name, path = _below(config.root, row["path"], where)
        label = printable(row["label"])
        start, end = _segment(row, where, "start", "end")
        split = _split(row["split"], where) if row.get("split") else ""
        group = row.get("group") or group_of(name, label)
        name = clip_id(name, start, end)
        clips.append(Clip(id=name, path=path, label=label, group=group, split=split, start=start, end=end))
    return clips, []


def _read_kinetics(config: DataConfig) -> tuple[list[Clip], list[str]]:
    """Header `label,youtube_id,time_start,time_end,split`; files `<id>_<start>_<end>.*` or `<id>.*` below the root.

    Videos vanish from the web, so rows without a file are counted and left out; those without a label too. As is the
    custom of the field, the validation list serves as the test where the real test is without labels.
    """
    files = {path.stem: path for path in _videos(config.root)}
    clips, absent, unlabelled = [], [], 0
    for where, row in _rows(config, ("youtube_id", "time_start", "time_end", "split"), ("label",)):
        if not row["label"]:
            unlabelled += 1
            continue
        start, end = _segment(row, where, "time_start", "time_end")
        split = _split(row["split"], where)
        stem = f"{row['youtube_id']}_{start:06.0f}_{end:06.0f}"
        trimmed = stem in files
        path = files.get(stem) or files.get(row["youtube_id"])
        if path is None:
            absent.append(stem)
            continue
        if trimmed:
            start = end = None
        name = clip_id(path.relative_to(config.root).as_posix(), start, end)
        label, group = printable(row["label"]), row["youtube_id"]
        clips.append(Clip(id=name, path=path, label=label, group=group, split=split, start=start, end=end))
    if unlabelled:
        print(f"{config.lists}: {unlabelled} rows have no label and are left out")
    if absent:
        print(
            f"{config.lists}: {len(absent)} rows have no file below {config.root} and are left out: {summarize(absent)}"
        )
    if not any(clip.split == "test" for clip in clips):
        clips = [replace(clip, split="test") if clip.split == "val" else clip for clip in clips]
    return clips, []
