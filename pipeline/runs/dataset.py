"""Stored features -> clips in memory, as the heads see them."""

import itertools
import math
import os
import random
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import nn

from pipeline.base.errors import KinemaError, summarize
from pipeline.base.progress import progress
from pipeline.config import Config
from pipeline.data.clip import Clip, part_of
from pipeline.data.splits import Dataset
from pipeline.features.entry import ClipFeatures, Header
from pipeline.features.store import FeatureStore
from pipeline.models.reduction import Reduction

FRAMES_TO_REDUCE = 20_000
"""Frames, of clips drawn at random, that the reduction is computed from: 0.4 GB in float32, if of 5,120 values."""


class ClipSet(NamedTuple):
    """Clips in memory: `parts_NPK` float32, their temporal pyramids, `labels_N` int64, and the number of classes."""

    parts_NPK: torch.Tensor
    labels_N: torch.Tensor
    classes: int

    def where(self, is_one_N: torch.Tensor) -> "ClipSet":
        """Returns some of the clips."""
        return self._replace(parts_NPK=self.parts_NPK[is_one_N], labels_N=self.labels_N[is_one_N])


def find_clips(store: FeatureStore, dataset: Dataset, split: str, max_missing: float) -> dict[Clip, Header]:
    """Finds the clips of a split that have features.

    Clips in the failure ledger, and those whose file is gone since a run was trained, are left out and counted by class
    on the terminal, as partial ones are.

    Args:
        store: where the features are.
        dataset: all clips.
        split: which of them.
        max_missing: share of the split that may be missing, rounded up.

    Raises:
        KinemaError: features were never computed, or are of another state of the file; or too many clips could not be
            read.
    """
    headers = {clip: store.find(clip) for clip in dataset.of(split)}
    gone = [clip for clip, header in headers.items() if not header and not os.path.lexists(clip.path)]
    if gone and len(gone) == len(headers):
        raise KinemaError(f"{gone[0].path} and all other clips of the {split} split are not there; is data.root right?")
    told_of = store.ledger.failures(headers).keys() | {clip.id for clip in gone}
    if never := [clip for clip, header in headers.items() if not header and clip.id not in told_of]:
        raise _without_features(store, never)
    found = {clip: header for clip, header in headers.items() if header}
    if len(found) < len(headers):
        missing = Counter(clip.label for clip in headers if clip not in found)
        by_class = ", ".join(f"{label} {count}" for label, count in missing.most_common())
        told = f"{split}: {missing.total()} of {len(headers)} clips could not be read ({by_class})"
        if gone:
            told += f", {len(gone)} of them for they are not there any more, such as {gone[0].path}"
        if missing.total() > (allowed := math.ceil(round(max_missing * len(headers), 6))):
            raise KinemaError(
                f"{told}, and --max-missing {max_missing:g} allows {allowed}; "
                "kinema failures with the same settings names them: mend or remove these files, or allow more"
            )
        print(f"{told}, see {store.ledger.path}")
    partial = sum(header.frames < header.planned for header in found.values())
    if partial:
        print(f"{split}: {partial} of {len(headers)} clips are partial: damage left fewer frames than planned")
    if not found:
        raise KinemaError(f"the {split} split has no clips with features")
    return found


def warn_of_conflicts(found: dict[Clip, Header]) -> None:
    """Says which clips have the same content and different classes."""
    same: dict[tuple[str, str], list[Clip]] = defaultdict(list)
    for clip, header in found.items():
        same[header.source.sha256, part_of(clip.id)].append(clip)
    pairs = [" and ".join(clip.id for clip in clips) for clips in same.values() if len({c.label for c in clips}) > 1]
    if pairs:
        print(f"the same video stands in two classes, so one is wrong: {summarize(pairs, 8)}")


def load_reduced(
    config: Config, store: FeatureStore, clips: list[Clip], classes: list[str], learns_N: torch.Tensor
) -> tuple[Reduction, ClipSet]:
    """Loads clips as a reduction shows them that is computed from those alone that heads will learn from.

    Args:
        config: of how many frames the features are, and what the head sees of them.
        store: where they are.
        clips: all clips.
        classes: their names in the order of the labels.
        learns_N: bool, which are learned from.

    Raises:
        KinemaError: some features are damaged.
    """
    learned = [clip for clip, learns in zip(clips, learns_N.tolist(), strict=True) if learns]
    number = max(config.head.pca_components, FRAMES_TO_REDUCE // config.sampling.frames)
    sample = random.Random(0).sample(learned, min(number, len(learned)))
    reduction = Reduction.of(*read_features(store, sample), config.head.pca_components, config.head.pyramid_levels)
    return reduction, load_clips(store, clips, classes, reduction)


def load_clips(store: FeatureStore, clips: list[Clip], classes: list[str], reduction: Reduction) -> ClipSet:
    """Reads the features of clips that `find_clips` has found, and keeps in memory what the heads see of them.

    Raises:
        KinemaError: some are damaged.
    """
    parts_NPK = torch.empty(len(clips), *reduction.shape)
    entries = _read(store, clips)
    loaded = 0
    with progress("load features", len(clips), "clips") as bar:
        while taken := list(itertools.islice(entries, 256)):
            parts_NPK[loaded : loaded + len(taken)] = reduction(*_padded(taken))
            loaded += len(taken)
            bar.update(len(taken))
    return ClipSet(parts_NPK, torch.tensor([classes.index(clip.label) for clip in clips]), len(classes))


def read_features(store: FeatureStore, clips: list[Clip]) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns features float16 [N,T,D], padded, and their true lengths int64 [N].

    Raises:
        KinemaError: some are damaged.
    """
    return _padded(list(_read(store, clips)))


def _read(store: FeatureStore, clips: list[Clip]) -> Iterator[ClipFeatures]:
    """Yields all entries that are whole, and only then says which are not."""
    damaged = []
    for clip in clips:
        if entry := store.read(clip):
            yield entry
        else:
            damaged.append(clip)
    if damaged:
        raise _without_features(store, damaged)


def _padded(entries: list[ClipFeatures]) -> tuple[torch.Tensor, torch.Tensor]:
    features = [torch.from_numpy(entry.features) for entry in entries]
    return nn.utils.rnn.pad_sequence(features, batch_first=True), torch.tensor([len(values) for values in features])


def _without_features(store: FeatureStore, clips: list[Clip]) -> KinemaError:
    return KinemaError(
        f"{len(clips)} {clips[0].split} clips have no valid features in {store.folder} (first: {clips[0].id}); "
        "run kinema extract with the same settings, which computes only what is missing"
    )
