"""The official lists of UCF101 and HMDB51."""

from collections.abc import Iterator
from pathlib import Path

from pipeline.base.errors import ConfigError, KinemaError
from pipeline.config import DataConfig
from pipeline.data.clip import Clip, group_of, path_below


def read_ucf101(config: DataConfig) -> tuple[list[Clip], list[str]]:
    """Read classInd.txt (`1 Archery`), trainlist01.txt (`Archery/v_Archery_g08_c01.avi 1`) and testlist01.txt.

    Returns:
        (clips, classes in the order of classInd.txt).
    """
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
            clips.append(_clip(config.root, name, label, split, where))
    return clips, list(classes)


def read_hmdb51(config: DataConfig) -> list[Clip]:
    """Read <class>_test_split1.txt: `file.avi 1`, where 1 is train, 2 is test and 0 is neither."""
    clips = []
    ending = f"_test_split{config.split}.txt"
    for file in sorted(config.lists.glob(f"*{ending}")):
        label = file.name.removesuffix(ending)
        for where, words in _lines(file):
            if len(words) != 2 or words[1] not in ("0", "1", "2"):
                raise KinemaError(f"{where}: expected 'file 0|1|2', got '{' '.join(words)}'")
            if words[1] != "0":
                split = "train" if words[1] == "1" else "test"
                clips.append(_clip(config.root, f"{label}/{words[0]}", label, split, where))
    return clips


def _clip(root: Path, name: str, label: str, split: str, where: str) -> Clip:
    name, path = path_below(root, name, where)
    return Clip(id=name, path=path, label=label, group=group_of(name, label), split=split)


def _lines(file: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield ('file:line', [name, number]) of each non-empty line; the name may hold blanks."""
    try:
        for number, line in enumerate(file.read_text(encoding="utf-8-sig").splitlines(), 1):
            if line.strip():
                yield f"{file}:{number}", line.strip().rsplit(maxsplit=1)
    except FileNotFoundError:
        raise ConfigError(f"data.lists: no such list: {file}") from None
    except UnicodeDecodeError:
        raise KinemaError(f"{file}: not a text file") from None
