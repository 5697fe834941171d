"""Clips in folders: one folder per class, with or without folders for the splits."""

import os
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from pipeline.base.errors import KinemaError, printable, summarize
from pipeline.data.clip import Clip, group_of

VIDEO_SUFFIXES = {".avi", ".divx", ".mp4", ".m4v", ".mov", ".qt", ".3gp", ".3g2", ".mkv", ".webm", ".flv", ".f4v"}
VIDEO_SUFFIXES |= {".wmv", ".asf", ".mpg", ".mpeg", ".mpe", ".m1v", ".m2v", ".vob", ".ts", ".mts", ".m2ts", ".m2t"}
VIDEO_SUFFIXES |= {".trp", ".ogv", ".ogm", ".ivf", ".gif", ".mxf", ".rm", ".rmvb", ".dv", ".h264", ".264", ".avc"}
VIDEO_SUFFIXES |= {".h265", ".265", ".hevc"}
"""Extensions of the containers that the decoder opens."""
HIDDEN = (".", "__MACOSX")
"""Prefixes of names that are skipped. macOS leaves `._clip.mp4`, which is no video, beside a clip."""
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training", "trn"), "train"),
    **dict.fromkeys(("test", "testing", "tst", "eval", "evaluation"), "test"),
    **dict.fromkeys(("val", "valid", "validate", "validation", "dev", "development"), "val"),
}


def split_of(name: str) -> str:
    """Return the split that a name stands for (`Training`, `test_set`, `val-videos`), or an empty string."""
    return SPLIT_NAMES.get(re.sub(r"[-_ ]*(set|split|data|videos|clips)$", "", name.lower()), "")


def read_folder(root: Path) -> list[Clip]:
    """Read `<class>/<clip>`, `<split>/<class>/<clip>` or `<class>/<split>/<clip>`, with clips at any depth.

    Raises:
        KinemaError: a folder cannot be read, or only some of the folders are splits.
    """
    folders = _folders(root)
    splits = _split_folders(root, folders)
    clips, loose = [], []
    for base, split in splits.items() or [(root, "")]:
        filled = set()
        for path in _videos(base):
            relative = path.relative_to(base)
            if len(relative.parts) > 1:
                filled.add(relative.parts[0])
                label, name = printable(relative.parts[0]), printable(path.relative_to(root).as_posix())
                clips.append(Clip(id=name, path=path, label=label, group=group_of(name, label), split=split))
            else:
                loose.append(printable(path.name))
        if empty := [printable(path.name) for path in _folders(base) if path.name not in filled]:
            print(f"{base}: Skipped folders without videos: {summarize(empty)}.")
    if loose:
        print(f"{root}: Skipped {len(loose)} videos outside of class folders: {summarize(loose)}.")
    return clips if splits else _splits_inside_classes(root, clips)


def _split_folders(root: Path, folders: list[Path]) -> dict[Path, str]:
    """Return the split of each top-level folder, or nothing if the top level holds classes.

    Folders are splits if there are one for train and one for test that have a class folder in common.
    """
    splits = {path: split for path in folders if (split := split_of(path.name))}
    names = summarize([printable(path.name) for path in splits], 6)
    classes = {
        split: {path.name for base in splits if splits[base] == split for path in _folders(base)}
        for split in splits.values()
    }
    if {"train", "test"} <= {*classes} and classes["train"] & classes["test"]:
        if len(splits) > len({*splits.values()}):
            raise KinemaError(f"{root}: {names} name a split twice; merge the folders, or list the clips in a CSV file")
        if others := [printable(path.name) for path in folders if path not in splits]:
            raise KinemaError(f"{root}: has splits ({names}) and other folders ({summarize(others)}); move the latter")
        return splits
    if splits and len(splits) == len(folders) and not {"train", "test"} <= {*classes}:
        raise KinemaError(f"{root}: has {names} but needs both train and test, or one folder per class")
    if alike := [printable(path.name) for path in folders if split_of(path.name.rstrip("0123456789-_ "))]:
        print(
            f"{root}: Warning: {summarize(alike, 6)} read as classes, not as splits. Splits need folders train and "
            "test that hold the same class folders."
        )
    return {}


def _splits_inside_classes(root: Path, clips: list[Clip]) -> list[Clip]:
    """Assign the splits of `<class>/train/<clip>` and so on, if all clips are in such folders."""
    parts = [clip.path.relative_to(root).parts for clip in clips]
    splits = [split_of(names[1]) if len(names) > 2 else "" for names in parts]
    if all(splits) and {"train", "test"} <= {*splits}:
        return [replace(clip, split=split) for clip, split in zip(clips, splits, strict=True)]
    if any(splits):
        names = sorted({printable("/".join(names[:2])) for names, split in zip(parts, splits, strict=True) if split})
        print(
            f"{root}: Warning: {summarize(names)} not read as splits. All clips must be in <class>/train or "
            "<class>/test."
        )
    return clips


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith(HIDDEN))


def _videos(root: Path) -> list[Path]:
    """Find the video files at any depth, following links. A folder with the name of a video is returned itself, so that
    it is reported as unreadable."""
    found: list[Path] = []
    others: Counter[str] = Counter()
    parents_of = {os.fspath(root): [os.path.join(os.path.realpath(root), "")]}  # The real folders above each.
    for folder, below, files in os.walk(root, onerror=_raise, followlinks=True):
        below[:] = [name for name in below if not name.startswith(HIDDEN)]
        for path in (Path(folder, name) for name in below + files if not name.startswith(HIDDEN)):
            if path.suffix.lower() in VIDEO_SUFFIXES:
                found.append(path)
            elif path.name in files:
                others[path.suffix] += 1
        for name in list(below):
            path = os.path.join(folder, name)
            real = os.path.join(os.path.realpath(path), "")
            # A link to a folder above itself would be followed for ever.
            if Path(name).suffix.lower() in VIDEO_SUFFIXES or any(one.startswith(real) for one in parents_of[folder]):
                below.remove(name)
            parents_of[path] = [*parents_of[folder], real]
    if others:
        kinds = ", ".join(f"{count} x {printable(suffix) or 'no extension'}" for suffix, count in others.most_common(5))
        print(
            f"{root}: Skipped {others.total()} files without a video extension ({kinds}). "
            "A CSV list (data.lists) can name files with any extension."
        )
    return sorted(found)


def _raise(error: OSError) -> NoReturn:
    raise KinemaError(f"{error.filename}: {error.strerror}; make the folder readable or move it out of data.root")
