"""Features -> trained heads in a run bundle: the head that the config asks for, and the `mean` baseline beside it.

kinema train --config configs/ucf101.yaml --run ucf101
"""

import dataclasses
import hashlib
import random
import time
from collections import Counter

import torch
from torch import nn

from pipeline.bundle import Bundle
from pipeline.choose import choose, with_settings
from pipeline.config import Config
from pipeline.data import Clip, Dataset, load_dataset
from pipeline.device import resolve_device
from pipeline.errors import ConfigError, KinemaError
from pipeline.fit import ClipSet, fit
from pipeline.head import Heads, Reduction
from pipeline.progress import progress
from pipeline.settings import to_yaml, yaml_differences
from pipeline.store import ClipFeatures, FeatureStore, Header
from pipeline.tracking import Tracker

PLACES = ("runs", "store", "device", "tracking", "decode", "max_missing")
"""Settings that do not change what a run learns."""

FRAMES_TO_REDUCE = 20_000
"""Frames, of training clips drawn at random, that the reduction is computed from: more do not change it visibly."""


def train(config: Config, run: str) -> None:
    """Trains on the stored features and writes the bundle `<runs>/<run>`.

    Raises:
        ConfigError: the bundle exists with other settings.
        KinemaError: features are missing, or the data cannot be used.
    """
    bundle = Bundle(config.runs / run)
    if asked := bundle.asked():
        changed = yaml_differences(asked, to_yaml(config), ignore=PLACES)
        if changed:
            raise ConfigError(
                f"{bundle.folder} holds a run with other settings ({'; '.join(changed)}); "
                "give this one another name with --run, or delete that folder"
            )
    began = time.monotonic()
    device = resolve_device(config.device)
    dataset = load_dataset(config.data)
    store = FeatureStore.last(config.store, config.backbone, config.sampling, config.decode.partial)
    digest = hashlib.sha256(f"{store.fingerprint} {config.head} {config.train} {dataset.classes}".encode())
    found: dict[str, dict[Clip, Header]] = {}
    for split in ("train", "val"):
        found[split] = find_clips(store, dataset, split, config.max_missing)
        for clip, header in found[split].items():
            of_clip = split, clip.id, clip.label, clip.group, header.frames, header.source.sha256
            digest.update(f"{of_clip}\n".encode())
    identity = digest.hexdigest()
    trained_on = bundle.identity()
    if trained_on == identity:
        print(f"{bundle.folder} is trained already with these settings and clips")
        return
    if trained_on:
        raise ConfigError(
            f"{bundle.folder} was trained on other clips or features; "
            "give this run another name with --run, or delete that folder"
        )

    number = max(1, FRAMES_TO_REDUCE // config.sampling.frames)
    sample = random.Random(0).sample(list(found["train"]), min(number, len(found["train"])))
    reduction = Reduction.of(*read_features(store, sample), config.head.components, config.head.levels)
    learned_from = [*found["train"], *found["val"]]
    clips = load_clips(store, learned_from, dataset.classes, reduction)
    is_train_N = torch.tensor([clip.split == "train" for clip in learned_from])
    loading = time.monotonic() - began
    digest.update(clips.parts_NPK.numpy())  # Checkpoints hold for these very numbers: other threads may change them.
    if config.train.auto:
        choice = bundle.choice(identity)
        if not choice:
            of_train = ClipSet(clips.parts_NPK[is_train_N], clips.labels_N[is_train_N])
            groups = [clip.group for clip in found["train"]]
            choice = choose(config, of_train, groups, len(dataset.classes), device)
            bundle.keep_choice(identity, config, choice)
        print("tried on groups of the training split, held out in turn:", *choice.tried, sep="\n  ")
        config = with_settings(config, choice.chosen)
    bundle.begin(config, dataset.classes, learned_from, store.backbone_file)
    tracker = Tracker(config, bundle.folder, "train")
    heads: dict[str, Heads] = {}
    history: dict[str, list[dict[str, float]]] = {}

    def fit_once(kind: str, name: str, learns_N: torch.Tensor) -> None:
        with progress(f"train {name}", config.train.epochs, "epochs") as bar:

            def log(record: dict[str, float]) -> None:
                shown = ("loss", "val_loss", "val_top1")
                bar.set_postfix_str(", ".join(f"{key} {record[key]:.3f}" for key in shown if key in record), False)
                bar.update(record["epoch"] - bar.n)
                tracker.log({f"{name}/{key}": value for key, value in record.items()})

            heads[kind], history[name] = fit(
                dataclasses.replace(config.head, kind=kind),
                config.train,
                clips,
                learns_N.expand(config.train.heads, -1),
                not learns_N.all(),
                len(dataset.classes),
                device,
                bundle.folder / f"checkpoint-{name}.safetensors",
                digest.hexdigest(),
                log,
            )

    for kind in dict.fromkeys((config.head.kind, "mean")):
        fit_once(kind, kind, is_train_N)
        records = history[kind]
        best = min(records, key=lambda record: record["val_loss"])
        told = (
            f"{kind}: validation top-1 {records[-1]['val_top1']:.3f}; its loss was lowest after epoch {best['epoch']}"
        )
        if config.train.refit:
            fit_once(kind, f"{kind}-refit", torch.ones_like(is_train_N))
            told += "; trained anew on all training clips"
        print(told)
    bundle.finish(reduction, heads, history, identity, store.fingerprint)
    spent = {name: sum(record["seconds"] for record in records) for name, records in history.items()}
    tracker.summary({f"seconds/{name}": value for name, value in {"load features": loading, **spent}.items()})
    for name in history:
        (bundle.folder / f"checkpoint-{name}.safetensors").unlink()
    tracker.finish()
    print(f"trained: {bundle.folder}; next: kinema evaluate {bundle.folder}")


def find_clips(store: FeatureStore, dataset: Dataset, split: str, max_missing: float) -> dict[Clip, Header]:
    """Finds the clips of a split that have features.

    Clips in the failure ledger are left out and counted by class on the terminal, as partial ones are.

    Args:
        store: where the features are.
        dataset: all clips.
        split: which of them.
        max_missing: share of the split that may be missing.

    Raises:
        KinemaError: features were never computed, or are of another state of the file; or too many clips could not be
            read.
    """
    headers = {clip: store.find(clip) for clip in dataset.of(split)}
    unreadable = store.failures()
    if never := [clip for clip, header in headers.items() if not header and clip.id not in unreadable]:
        raise _without_features(store, never)
    found = {clip: header for clip, header in headers.items() if header}
    if len(found) < len(headers):
        missing = Counter(clip.label for clip in headers if clip not in found)
        by_class = ", ".join(f"{label} {count}" for label, count in missing.most_common())
        told = f"{split}: {missing.total()} of {len(headers)} clips could not be read ({by_class})"
        if missing.total() > max_missing * len(headers):
            raise KinemaError(
                f"{told}, more than --max-missing {max_missing:g} allows; kinema failures CONFIG tells the reasons"
            )
        print(f"{told}, see {store.ledger}")
    partial = sum(header.frames < header.planned for header in found.values())
    if partial:
        print(f"{split}: {partial} of {len(headers)} clips are partial: damage left fewer frames than planned")
    if not found:
        raise KinemaError(f"the {split} split has no clips with features")
    return found


def load_clips(store: FeatureStore, clips: list[Clip], classes: list[str], reduction: Reduction) -> ClipSet:
    """Reads the features of clips that `find_clips` has found, and keeps in memory what the heads see of them.

    Raises:
        KinemaError: some are damaged.
    """
    parts: list[torch.Tensor] = []
    damaged: list[Clip] = []
    with progress("load features", len(clips), "clips") as bar:
        for first in range(0, len(clips), 256):
            some = clips[first : first + 256]
            entries = [store.read(clip) for clip in some]
            damaged += [clip for clip, entry in zip(some, entries, strict=True) if not entry]
            if not damaged:
                parts.append(reduction(*_padded(entries)))
            bar.update(len(some))
    if damaged:
        raise _without_features(store, damaged)
    return ClipSet(torch.cat(parts), torch.tensor([classes.index(clip.label) for clip in clips]))


def read_features(store: FeatureStore, clips: list[Clip]) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns features float16 [N,T,D], padded, and their true lengths int64 [N].

    Raises:
        KinemaError: some are damaged.
    """
    entries = [store.read(clip) for clip in clips]
    if damaged := [clip for clip, entry in zip(clips, entries, strict=True) if not entry]:
        raise _without_features(store, damaged)
    return _padded(entries)


def _padded(entries: list[ClipFeatures]) -> tuple[torch.Tensor, torch.Tensor]:
    features = [torch.from_numpy(entry.features) for entry in entries]
    return nn.utils.rnn.pad_sequence(features, batch_first=True), torch.tensor([len(values) for values in features])


def _without_features(store: FeatureStore, clips: list[Clip]) -> KinemaError:
    return KinemaError(
        f"{len(clips)} {clips[0].split} clips have no valid features in {store.folder} (first: {clips[0].id}); "
        "run kinema extract with the same config"
    )
