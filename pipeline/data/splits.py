"""The clips of a data set, each in one split; and the guarantee that no group leaks.

A group is what was cut from one source video. Clips of one group look alike, so a group that stands on both sides of a
split makes the accuracy a measure of memory. No layout gets around `check_leaks`.
"""

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


@dataclass(frozen=True)
class Dataset:
    """All clips of a data set, its classes in the order of the logits, and which split it is: the number of an
    official one, 'given' by the data set, or the seed of the cut by group."""

    clips: list[Clip]
    classes: list[str]
    split: int | str

    def of(self, split: str) -> list[Clip]:
        """Returns the clips of one split."""
        return [clip for clip in self.clips if clip.split == split]


def load_dataset(config: DataConfig) -> Dataset:
    """Reads a data set and cuts the splits that it does not bring along, by group.

    Raises:
        ConfigError: a folder or list does not exist, or the layout cannot be told.
        KinemaError: a line of a list is wrong, a file is missing, or groups leak between splits.
    """
    clips, classes, split = read_clips(config)
    given = {clip.split for clip in clips}
    if given == {""}:
        split = f"by group, seed {config.split_seed}"
    clips = _cut_missing_splits(clips, config)
    check_leaks(clips)
    _check_classes(clips, classes, cut={clip.split for clip in clips} - given)
    return Dataset(clips, classes, split)


def check_leaks(clips: list[Clip]) -> None:
    """Stops where one group, or one file, has clips in two splits.

    Raises:
        KinemaError: with the groups and clips.
    """
    kinds = [
        ("groups", lambda clip: clip.group, "put all clips of a group into one split, or give each its own group"),
        ("files", lambda clip: clip.path, "give all clips of a file the same group and split"),
    ]
    for kind, shared, remedy in kinds:
        splits_of = defaultdict(set)
        for clip in clips:
            splits_of[shared(clip)].add(clip.split)
        leaking = {key for key, splits in splits_of.items() if len(splits) > 1}
        if leaking:
            found = [f"{clip.id} ({clip.group}, {clip.split})" for clip in clips if shared(clip) in leaking]
            raise KinemaError(
                f"{len(leaking)} {kind} stand in more than one split, so the test would measure memory: "
                f"{summarize(found, 8)}; {remedy}"
            )


def _check_classes(clips: list[Clip], classes: list[str], cut: set[str]) -> None:
    """Stops where a class has no clip to learn from; says which cannot be validated or tested, which go by almost the
    same name, and if there is one alone.

    `cut` are the splits that were made here.
    """
    if len(classes) == 1:
        print(f"there is one class alone, {printable(classes[0])}; is data.root the folder of all classes?")
    alike = defaultdict(list)
    for name in classes:
        alike[" ".join(unicodedata.normalize("NFKC", name).casefold().split())].append(repr(name))
    if twins := [" and ".join(names) for names in alike.values() if len(names) > 1]:
        print(f"classes by almost the same name: {summarize(twins)}; if they are one, rename the folder or the label")
    groups = {name: len({clip.group for clip in clips if clip.label == name}) for name in classes}
    consequences = {
        "train": "there is nothing to learn it from",
        "val": "training is not watched on it",
        "test": "nothing is known of it",
    }
    for split, consequence in consequences.items():
        absent = sorted({*classes} - {clip.label for clip in clips if clip.split == split})
        if not absent:
            continue
        remedy = "a class needs clips of three groups (recordings) or more"
        if split not in cut:
            remedy += ", in the splits that the data set brings"
        elif any(groups[name] >= 3 for name in absent):
            remedy += "; another --data.split_seed may cut better"
        counted = summarize([f"{name} (groups: {groups[name]})" for name in absent], 8)
        told = f"the {split} split has no clip of {counted}, so {consequence}; {remedy}"
        if split == "train":
            raise KinemaError(told)
        print(told)


def hold_out(clips: list[Clip], fraction: float, seed: int) -> np.ndarray:
    """Chooses one in round(1 / fraction) of the clips, whole groups, with the classes in proportion; where groups are
    few or of uneven size, so that the fewest classes are missing from what is left, and then from what is held out, and
    no more than half of the clips are.

    Returns:
        bool [len(clips)], True for those held out.
    """
    labels_N = np.array([clip.label for clip in clips])
    folds = group_folds(labels_N.tolist(), [clip.group for clip in clips], round(1 / fraction), seed)
    return max(folds, key=lambda held_N: (len({*labels_N[~held_N]}), len({*labels_N[held_N]}), held_N.mean() <= 0.5))


def group_folds(labels: list[Any], groups: list[str], most: int, seed: int) -> np.ndarray:
    """Cuts clips into folds, whole groups, with the classes in proportion.

    Returns:
        bool [folds,N], True where a clip is held out; at most `most` folds, fewer where there are few groups or clips.

    Raises:
        KinemaError: not even two folds can be made.
    """
    folds = min(most, len(set(groups)), max(Counter(labels).values()))
    if folds < 2:
        raise KinemaError(
            f"{len(labels)} clips in {len(set(groups))} groups are too few to hold some of them out: "
            "clips of three groups (recordings) or more are needed"
        )
    from sklearn.model_selection import StratifiedGroupKFold  # Late, for it takes half a second.

    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # Classes smaller than the number of folds.
        held_out = [held for _, held in splitter.split(labels, labels, groups)]
    return np.stack([np.isin(np.arange(len(labels)), held) for held in held_out])


def _cut_missing_splits(clips: list[Clip], config: DataConfig) -> list[Clip]:
    """Gives every clip a split: test from the whole if the data set names none, validation from the rest."""
    if not any(clip.split for clip in clips):
        if (groups := len({clip.group for clip in clips})) < 3:
            raise KinemaError(
                f"{len(clips)} clips in {groups} groups (recordings) are too few: training, validation and test need "
                "one each; data/README.md tells how groups are known"
            )
        test = hold_out(clips, config.test_fraction, config.split_seed)
        clips = [replace(clip, split="test" if held else "train") for clip, held in zip(clips, test, strict=True)]
    if not any(clip.split == "val" for clip in clips):
        train = [clip for clip in clips if clip.split == "train"]
        if not train:
            raise KinemaError("no clip is of the training split")
        val = hold_out(train, config.val_fraction, config.split_seed)
        moved = {clip.id for clip, held in zip(train, val, strict=True) if held}
        clips = [replace(clip, split="val") if clip.id in moved else clip for clip in clips]
    return clips
