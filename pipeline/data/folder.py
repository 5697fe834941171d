"""Clips in folders: one folder per class, with or without folders for the splits."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

from pipeline.base.errors import KinemaError, printable, summarize
from pipeline.data.clip import Clip, group_of

# Extensions of the containers that the decoder opens.
VIDEO_SUFFIXES = {".avi", ".divx", ".mp4", ".m4v", ".mov", ".qt", ".3gp", ".3g2", ".mkv", ".webm", ".flv", ".f4v"}
VIDEO_SUFFIXES |= {".wmv", ".asf", ".mpg", ".mpeg", ".mpe", ".m1v", ".m2v", ".vob", ".ts", ".mts", ".m2ts", ".m2t"}
VIDEO_SUFFIXES |= {".trp", ".ogv", ".ogm", ".ivf", ".gif", ".mxf", ".rm", ".rmvb", ".dv", ".h264", ".264", ".avc"}
VIDEO_SUFFIXES |= {".h265", ".265", ".hevc"}
HIDDEN = (".", "__MACOSX")  # Prefixes. macOS leaves `._clip.mp4`, which is no video, beside a clip.
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training", "trn"), "train"),
    **dict.fromkeys(("test", "testing", "tst", "eval", "evaluation"), "test"),
    **dict.fromkeys(("val", "valid", "validate", "validation", "dev", "development"), "val"),
}


def split_of(name: str) -> str:
    """Return the split that a name stands for (`Training`, `test_set`, `val-videos`), or an empty string."""
    return SPLIT_NAMES.get(re.sub(r"[-_ ]*(set|split|data|videos|clips)$", "", name.lower()), "")


def read_folder(root: Path) -> list[Clip]:
    """Read `<class>/<clip>`, `<split>/<class>/<clip>` or `<class>/<split>/<clip>`, with clips at any depth."""
    paths = list(files_in(root))
    found = [path.relative_to(root).parts for path in paths if path.suffix.lower() in VIDEO_SUFFIXES]
    others = Counter(path.suffix for path in paths if path.suffix.lower() not in VIDEO_SUFFIXES)
    of_split = _split_level(root, [parts[:-1] for parts in found if len(parts) > 1])
    of_class = 1 if of_split == 0 else 0
    clips, loose = [], []
    for parts in found:
        name = printable("/".join(parts))
        if len(parts) < of_class + 2:
            loose.append(name)
            continue
        label, split = printable(parts[of_class]), "" if of_split is None else split_of(parts[of_split])
        clips.append(Clip(id=name, path=root.joinpath(*parts), label=label, group=group_of(name, label), split=split))
    folders = (path for path in root.glob("*/*" if of_class else "*") if not path.name.startswith(HIDDEN))
    filled = {parts[: of_class + 1] for parts in found}
    empty = [path.name for path in folders if path.is_dir() and path.relative_to(root).parts not in filled]
    if empty:
        print(f"{root}: Skipped folders without videos: {printable(summarize(sorted(empty)))}.")
    if loose:
        print(f"{root}: Skipped {len(loose)} videos outside of class folders: {summarize(loose)}.")
    if others:
        kinds = printable(", ".join(f"{count} x {kind or 'no extension'}" for kind, count in others.most_common(5)))
        print(f"{root}: Skipped {others.total()} files without a video extension ({kinds}). A CSV list can name them.")
    return clips


def _split_level(root: Path, folders: list[tuple[str, ...]]) -> int | None:
    """Return which folder above each video is its split: 0 in `train/run`, if train and test have a class in common;
    1 in `run/train`, if that is so for all videos; else None."""
    splits = {names[0]: split_of(names[0]) for names in folders}
    classes = defaultdict(set)
    for names in folders:
        classes[splits[names[0]]].update(names[1:2])
    listed = summarize([printable(name) for name in splits], 6)
    if classes["train"] & classes["test"]:
        if len(splits) > len({*splits.values()} - {""}):
            raise KinemaError(f"{root}: has {listed}; keep one folder per split and move the others away")
        return 0
    if splits and all(splits.values()) and not {"train", "test"} <= {*splits.values()}:
        raise KinemaError(f"{root}: has {listed} but needs both train and test, or one folder per class")
    inner = {"/".join(names[:2]): split_of(names[1]) if len(names) > 1 else "" for names in folders}
    if all(inner.values()) and {"train", "test"} <= {*inner.values()}:
        return 1
    alike = [name for name in splits if split_of(name.rstrip("0123456789-_ "))]
    if alike := [printable(name) for name in (*alike, *filter(inner.get, inner))]:
        hint = "Expected the same classes in train/ and test/, or train/ and test/ in all classes."
        print(f"{root}: Warning: {summarize(alike, 6)} not read as splits. {hint}")
    return None


def files_in(folder: Path, above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """Yield files at any depth, following links, and folders named like videos, to be reported as unreadable."""
    real = folder.resolve()
    if any(parent.is_relative_to(real) for parent in above):  # A link upwards would be followed for ever.
        return
    try:
        paths = sorted(path for path in folder.iterdir() if not path.name.startswith(HIDDEN))
    except OSError as error:
        raise KinemaError(f"{folder}: {error.strerror}; make it readable or move it out of data.root") from None
    for path in paths:
        if path.suffix.lower() not in VIDEO_SUFFIXES and path.is_dir():
            yield from files_in(path, (*above, real))
        else:
            yield path
