"""Stored features -> clips in memory, reduced for the heads."""

import itertools
import math
import os
import random
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from pipeline.base.errors import KinemaError, summarize
from pipeline.base.progress import progress
from pipeline.config import Config
from pipeline.data.clip import Clip, segment_of
from pipeline.data.splits import Dataset
from pipeline.features.entry import Header
from pipeline.features.store import FeatureStore
from pipeline.models.reduction import Reduction

FRAMES_TO_REDUCE = 20_000
"""Frames to fit the reduction on: 0.4 GB in float32 with 5,120 features."""


class ClipSet(NamedTuple):
    """Clips in memory: reduced frames float32 [N,T,2K+M], padded with zeros; lengths and labels int64 [N]; the numbers
    of classes, components K and motion components M. `windows_NTF` are the same clips as windows of a recording."""

    frames_NTF: torch.Tensor
    lengths_N: torch.Tensor
    labels_N: torch.Tensor
    classes: int
    widths: tuple[int, int]
    windows_NTF: torch.Tensor | None = None

    def where(self, mask_N: torch.Tensor) -> "ClipSet":
        """Return the clips of a mask."""
        frames_NTF, lengths_N, labels_N = (values[mask_N] for values in self[:3])
        windows_NTF = None if self.windows_NTF is None else self.windows_NTF[mask_N]
        return ClipSet(frames_NTF, lengths_N, labels_N, self.classes, self.widths, windows_NTF)


def find_clips(store: FeatureStore, dataset: Dataset, split: str, max_missing: float) -> dict[Clip, Header]:
    """Find the clips of a split that have features; print how many are missing or partial.

    Raises:
        KinemaError: features were never computed, or more than the fraction `max_missing` (rounded up) is missing."""
    headers = {clip: store.find(clip) for clip in dataset.of(split)}
    absent = [clip for clip, header in headers.items() if not header]
    gone = [clip for clip in absent if not os.path.lexists(clip.path)]
    if gone and len(gone) == len(headers):
        raise KinemaError(f"{gone[0].path}: no such file, nor any other clip of the {split} split; check data.root")
    failures = store.failures(absent)
    if never := [clip for clip in absent if clip not in failures]:
        raise _without_features(store, never)
    if absent:
        counts = ", ".join(f"{label} {count}" for label, count in Counter(clip.label for clip in absent).most_common())
        message = f"{split}: {len(absent)} of {len(headers)} clips could not be read ({counts})"
        if gone:
            message += f"; {len(gone)} no longer exist, such as {gone[0].path}"
        if len(absent) > (allowed := math.ceil(round(max_missing * len(headers), 6))):
            raise KinemaError(
                f"{message}; --max-missing {max_missing:g} allows {allowed}. Run `kinema failures` with the same "
                "settings for the reasons; repair or remove these files, or raise --max-missing"
            )
        print(message)
    found = {clip: header for clip, header in headers.items() if header}
    if partial := sum(header.frames < header.planned for header in found.values()):
        print(f"{split}: {partial} of {len(headers)} clips are partial: fewer frames could be read than planned")
    if not found:
        raise KinemaError(f"no clip of the {split} split has features")
    return found


def warn_of_conflicts(found: dict[Clip, Header]) -> None:
    """Print which clips have the same content and different classes."""
    same: dict[tuple[str, str], list[Clip]] = defaultdict(list)
    for clip, header in found.items():
        same[header.sha256, segment_of(clip)].append(clip)
    pairs = [" and ".join(clip.id for clip in clips) for clips in same.values() if len({c.label for c in clips}) > 1]
    if pairs:
        print(f"warning: the same video has two labels: {summarize(pairs, 8)}")


def fit_reduction(config: Config, store: FeatureStore, clips: list[Clip]) -> Reduction:
    """Fit the reduction on training clips; on a random sample of them if they have more than `FRAMES_TO_REDUCE`."""
    number = max(config.head.pca_components, FRAMES_TO_REDUCE // config.sampling.frames)
    sample = random.Random(0).sample(clips, min(number, len(clips)))
    features_NTD, lengths_N = padded([values for batch in read_batches(store, sample) for values in batch])
    return Reduction.fit(features_NTD, lengths_N, config.head.pca_components, config.head.motion_components)


@torch.inference_mode()
def load_clips(
    store: FeatureStore, clips: list[Clip], classes: list[str], reduction: Reduction, others: list[Clip] | None = None
) -> ClipSet:
    """Load clips that have features, and reduce them; raise a KinemaError if some are damaged.

    With `others`, also make a window of each clip, which shows a part of one of these before or after it."""
    rng, reduced, lengths = np.random.default_rng(0), ([], []), []
    beside = read_batches(store, random.Random(0).choices(others, k=len(clips))) if others else itertools.repeat([])
    with progress("load features", len(clips), "clips") as bar:
        for batch, neighbours in zip(read_batches(store, clips), beside, strict=False):
            windows = [reach_into(*pair, rng) for pair in zip(batch, neighbours, strict=False)]
            for kept, features in zip(reduced, (batch, windows), strict=True):
                if features:
                    features_NTD, lengths_N = padded(features)
                    kept += reduction(features_NTD, lengths_N).unbind(0)
            lengths += map(len, batch)
            bar.update(len(batch))
    frames_NTF, windows_NTF = (nn.utils.rnn.pad_sequence(kept, True) if kept else None for kept in reduced)
    labels_N = torch.tensor([classes.index(clip.label) for clip in clips])
    return ClipSet(frames_NTF, torch.tensor(lengths), labels_N, len(classes), reduction.widths, windows_NTF)


def reach_into(clip_TD: np.ndarray, neighbour_TD: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a window of the clip's length over the clip and a neighbour, at least half of it the clip."""
    shift = min(int(rng.integers(0, len(clip_TD) // 2 + 1)), len(neighbour_TD))
    if rng.integers(2):
        return np.concatenate([clip_TD[shift:], neighbour_TD[:shift]])
    return np.concatenate([neighbour_TD[len(neighbour_TD) - shift :], clip_TD[: len(clip_TD) - shift]])


@torch.no_grad()
def classify(head: nn.Module, clips: ClipSet, device: torch.device) -> torch.Tensor:
    """Return logits float32 [N,C] on the CPU."""
    batches = zip(clips.frames_NTF.split(1024), clips.lengths_N.split(1024), strict=True)
    return torch.cat([head(frames.to(device), lengths).cpu() for frames, lengths in batches])


def read_batches(store: FeatureStore, clips: list[Clip], size: int = 256) -> Iterator[list[np.ndarray]]:
    """Yield the features [T,D] of clips in batches; raise a KinemaError at the end if some are damaged."""
    damaged = []
    for first in range(0, len(clips), size):
        batch = clips[first : first + size]
        entries = [store.read(clip) for clip in batch]
        damaged += [clip for clip, entry in zip(batch, entries, strict=True) if not entry]
        yield [entry.features for entry in entries if entry]
    if damaged:
        raise _without_features(store, damaged)


def padded(features: list[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return features [N,T,D], padded with zeros, and their lengths int64 [N]."""
    tensors = [torch.from_numpy(values) for values in features]
    return nn.utils.rnn.pad_sequence(tensors, batch_first=True), torch.tensor([len(values) for values in features])


def _without_features(store: FeatureStore, clips: list[Clip]) -> KinemaError:
    return KinemaError(
        f"{len(clips)} {clips[0].split} clips have no valid features in {store.folder} (first: {clips[0].id}); "
        "run `kinema extract` with the same settings, it computes only what is missing"
    )
