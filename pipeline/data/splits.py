"""A data set divided into train, val and test by whole groups, so that no recording is in two splits."""

import unicodedata
import warnings
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pipeline.base.errors import KinemaError, printable, summarize
from pipeline.config import DataConfig
from pipeline.data.clip import Clip
from pipeline.data.formats import read_clips

NEEDED = "A class needs at least three recordings: one each for train, validation and test."


@dataclass(frozen=True)
class Dataset:
    """Clips, classes in the order of the logits, and the split: the number of an official one, 'given' by the data set,
    or 'by group, seed 0'."""

    clips: list[Clip]
    classes: list[str]
    split: int | str

    def of(self, split: str) -> list[Clip]:
        """Return the clips of one split."""
        return [clip for clip in self.clips if clip.split == split]


def load_dataset(config: DataConfig) -> Dataset:
    """Read a data set and make the splits that it does not define.

    Raises:
        ConfigError: a folder or list does not exist, or its format is unknown.
        KinemaError: a line of a list is wrong, a file is missing, a group is in two splits, or there are too few clips.
    """
    clips, classes, split = read_clips(config)
    given = {clip.split for clip in clips}
    if given == {""}:
        split = f"by group, seed {config.split_seed}"
    clips = _make_missing_splits(clips, config)
    check_leaks(clips)
    _warn_about_names(classes)
    _check_classes(clips, classes, made={clip.split for clip in clips} - given)
    return Dataset(clips, classes, split)


def check_leaks(clips: list[Clip]) -> None:
    """Check that no group and no file has clips in two splits.

    Raises:
        KinemaError: with the clips.
    """
    kinds = [
        ("groups", lambda clip: clip.group, "Put all clips of a group into one split"),
        ("files", lambda clip: clip.path, "Give all clips of a file the same group and split"),
    ]
    for kind, key_of, remedy in kinds:
        splits_of = defaultdict(set)
        for clip in clips:
            splits_of[key_of(clip)].add(clip.split)
        leaking = {key for key, splits in splits_of.items() if len(splits) > 1}
        if leaking:
            found = [f"{clip.id} ({clip.group}, {clip.split})" for clip in clips if key_of(clip) in leaking]
            raise KinemaError(f"{len(leaking)} {kind} are in more than one split: {summarize(found, 8)}. {remedy}.")


def hold_out(clips: list[Clip], fraction: float, seed: int) -> np.ndarray:
    """Choose 1 in round(1 / fraction) clips: whole groups, classes in proportion.

    With few or uneven groups this is not exact. Of the possible folds it takes one with the most classes in the rest,
    then with the most classes held out, then with at most half of the clips.

    Returns:
        bool [N], True for clips that are held out.
    """
    labels_N = np.array([clip.label for clip in clips])
    folds = group_folds(labels_N.tolist(), [clip.group for clip in clips], round(1 / fraction), seed)
    return max(folds, key=lambda held_N: (len({*labels_N[~held_N]}), len({*labels_N[held_N]}), held_N.mean() <= 0.5))


def group_folds(labels: list[Any], groups: list[str], most: int, seed: int) -> np.ndarray:
    """Divide clips into at most `most` folds: whole groups, classes in proportion.

    Returns:
        bool [folds,N], True for the clips of each fold.

    Raises:
        KinemaError: there are too few groups or clips for two folds.
    """
    folds = min(most, len(set(groups)), max(Counter(labels).values()))
    if folds < 2:
        raise KinemaError(
            f"Cannot hold out any of {len(labels)} clips ({len(set(labels))} classes, {len(set(groups))} groups): "
            "at least one class needs two recordings (groups)."
        )
    from sklearn.model_selection import StratifiedGroupKFold  # Takes half a second to import.

    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # Classes smaller than the number of folds.
        held_out = [held for _, held in splitter.split(labels, labels, groups)]
    return np.stack([np.isin(np.arange(len(labels)), held) for held in held_out])


def _make_missing_splits(clips: list[Clip], config: DataConfig) -> list[Clip]:
    """Assign test from all clips if there are no splits, then val from train if there is none."""
    if not any(clip.split for clip in clips):
        groups = _groups_by_class(clips)
        few = [f"{printable(label)} {count}" for label, count in sorted(groups.items()) if count < 3]
        if len(few) == len(groups):
            classes = "1 class has" if len(few) == 1 else f"{len(few)} classes have"
            listed = summarize(few, 8)
            raise KinemaError(f"{classes} fewer than three recordings (groups): {listed}. {NEEDED}")
        test = hold_out(clips, config.test_fraction, config.split_seed)
        clips = [replace(clip, split="test" if held else "train") for clip, held in zip(clips, test, strict=True)]
    if not any(clip.split == "val" for clip in clips):
        train = [clip for clip in clips if clip.split == "train"]
        if not train:
            raise KinemaError("The data set has no clip of the split train.")
        val = hold_out(train, config.val_fraction, config.split_seed)
        moved = {clip.id for clip, held in zip(train, val, strict=True) if held}
        clips = [replace(clip, split="val") if clip.id in moved else clip for clip in clips]
    return clips


def _groups_by_class(clips: list[Clip]) -> Counter[str]:
    return Counter(label for label, _ in {(clip.label, clip.group) for clip in clips})


def _warn_about_names(classes: list[str]) -> None:
    if len(classes) == 1:
        print(f"Warning: only one class, {printable(classes[0])}. data.root should be the folder of all classes.")
    alike = defaultdict(list)
    for name in classes:
        alike[" ".join(unicodedata.normalize("NFKC", name).casefold().split())].append(repr(name))
    if twins := [" and ".join(names) for names in alike.values() if len(names) > 1]:
        print(f"Warning: class names that differ only in case or spelling: {summarize(twins)}.")


def _check_classes(clips: list[Clip], classes: list[str], made: set[str]) -> None:
    """Warn about classes without clips in val or test; raise if one has none in train. `made`: splits made here."""
    groups = _groups_by_class(clips)
    for split in ("train", "val", "test"):
        absent = sorted({*classes} - {clip.label for clip in clips if clip.split == split})
        if not absent:
            continue
        if split not in made:
            remedy = f"Add some to the {split} split of the data set."
        elif any(groups[name] >= 3 for name in absent):
            remedy = "Try another --data.split_seed."
        else:
            remedy = NEEDED
        counted = summarize([f"{printable(name)} {groups[name]}" for name in absent], 8)
        message = f"The {split} split has no clip of these classes (with their recordings): {counted}. {remedy}"
        if split == "train":
            raise KinemaError(message)
        print(f"Warning: {message}")
