"""A data set divided into train, val and test by whole groups, so that no recording is in two splits."""

import unicodedata
import warnings
from collections import Counter, defaultdict
from dataclasses import dataclass, replace

import numpy as np

from pipeline.base.errors import KinemaError, summarize
from pipeline.config import DataConfig
from pipeline.data.clip import Clip
from pipeline.data.formats import read_clips


@dataclass(frozen=True)
class Dataset:
    clips: list[Clip]
    classes: list[str]  # In the order of the logits.
    split: int | str  # An official number, 'predefined', or 'by group, seed 0'.

    def of(self, split: str) -> list[Clip]:
        return [clip for clip in self.clips if clip.split == split]


def load_dataset(config: DataConfig) -> Dataset:
    """Read a data set, make the splits that it does not define, and check them."""
    clips, classes, split = read_clips(config)
    given = {clip.split for clip in clips}
    groups = Counter(label for label, _ in {(clip.label, clip.group) for clip in clips})
    if given == {""}:
        split = f"by group, seed {config.split_seed}"
        if max(groups.values()) < 3:
            counts = summarize([f"{name} {groups[name]}" for name in classes], 8)
            rule = "add recordings (files named *_g01_c02 are of one) or give groups in a CSV file"
            raise KinemaError(f"No class has three recordings for train, validation and test: {counts}; {rule}")
        clips = [replace(clip, split="train") for clip in clips]
        clips = _split_off("test", clips, config.test_fraction, config.split_seed)
    if "val" not in given:
        clips = _split_off("val", clips, config.val_fraction, config.split_seed)
    check_leaks(clips)
    _check_classes(clips, classes, groups, made={clip.split for clip in clips} - given)
    return Dataset(clips, classes, split)


def check_leaks(clips: list[Clip]) -> None:
    """Raise if a group or a file has clips in two splits."""
    for kind, attribute in (("groups", "group"), ("files", "path")):
        pairs = {(getattr(clip, attribute), clip.split) for clip in clips}
        leaking = {key for key, count in Counter(key for key, _ in pairs).items() if count > 1}
        if leaking:
            found = [f"{clip.id} ({clip.group}, {clip.split})" for clip in clips if getattr(clip, attribute) in leaking]
            raise KinemaError(f"{len(leaking)} {kind} are in several splits; keep each in one: {summarize(found, 8)}")


def hold_out(clips: list[Clip], fraction: float, seed: int) -> np.ndarray:
    """Choose 1 in round(1 / fraction) clips: whole groups, classes in proportion. Return bool [N], True if held out.

    With few or uneven groups this is not exact. Of the possible folds it takes one with the most classes in the rest,
    then with the most classes held out, then with at most half of the clips."""
    labels_N, groups = np.array([clip.label for clip in clips]), [clip.group for clip in clips]
    folds = min(round(1 / fraction), len({*groups}), max(Counter(labels_N).values(), default=0))
    if folds < 2:
        raise KinemaError(f"Cannot hold out any of {len(clips)} training clips: no class has two recordings (groups)")
    from sklearn.model_selection import StratifiedGroupKFold  # Takes half a second to import.

    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # Classes smaller than the number of folds.
        held_out = [np.isin(np.arange(len(clips)), held) for _, held in splitter.split(labels_N, labels_N, groups)]
    return max(held_out, key=lambda held_N: (len({*labels_N[~held_N]}), len({*labels_N[held_N]}), held_N.mean() <= 0.5))


def _split_off(split: str, clips: list[Clip], fraction: float, seed: int) -> list[Clip]:
    train = [clip for clip in clips if clip.split == "train"]
    moved = {clip.id for clip, held in zip(train, hold_out(train, fraction, seed), strict=True) if held}
    return [replace(clip, split=split) if clip.id in moved else clip for clip in clips]


def _check_classes(clips: list[Clip], classes: list[str], groups: Counter[str], made: set[str]) -> None:
    """Warn about class names, and about splits without some class; raise for train. `made` are those made here."""
    if len(classes) == 1:
        print(f"Warning: only one class, {classes[0]}. data.root should be the folder of all classes.")
    alike = defaultdict(list)
    for name in classes:
        alike[" ".join(unicodedata.normalize("NFKC", name).casefold().split())].append(repr(name))
    if twins := [" and ".join(names) for names in alike.values() if len(names) > 1]:
        print(f"Warning: class names that differ only in case or spelling: {summarize(twins)}.")
    for split in ("train", "val", "test"):
        absent = sorted({*classes} - {clip.label for clip in clips if clip.split == split})
        counts = summarize([f"{name} {groups[name]}" for name in absent], 8)
        remedy = "Add recordings (three per class), or try another --data.split_seed" if split in made else "Add clips"
        message = f"Classes without {split} clips (number of recordings): {counts}. {remedy}."
        if absent and split == "train":
            raise KinemaError(message)
        if absent:
            print(f"Warning: {message}")
