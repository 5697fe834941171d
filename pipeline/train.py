"""Features -> trained heads in a run bundle: the head that the config asks for, and the `mean` baseline beside it.

kinema train --config configs/ucf101.yaml --run ucf101
"""

import dataclasses
import hashlib
import time
from collections import Counter

import torch
from torch import nn

from pipeline.bundle import Bundle
from pipeline.config import Config
from pipeline.data import Clip, Dataset, load_dataset
from pipeline.device import resolve_device
from pipeline.errors import ConfigError, KinemaError
from pipeline.fit import FeatureSet, fit
from pipeline.head import Reduction
from pipeline.progress import progress
from pipeline.settings import to_yaml, yaml_differences
from pipeline.store import FeatureStore
from pipeline.tracking import Tracker

PLACES = ("runs", "store", "device", "tracking", "decode", "max_missing")
"""Settings that do not change what a run learns."""


def train(config: Config, run: str) -> None:
    """Trains on the stored features and writes the bundle `<runs>/<run>`.

    Raises:
        ConfigError: the bundle exists with other settings.
        KinemaError: features are missing, or the data cannot be used.
    """
    bundle = Bundle(config.runs / run)
    if bundle.config_file.exists():
        changed = yaml_differences(bundle.config_file.read_text(), to_yaml(config), ignore=PLACES)
        if changed:
            raise ConfigError(
                f"{bundle.folder} holds a run with other settings ({'; '.join(changed)}); "
                "give this one another name with --run, or delete that folder"
            )
    began = time.monotonic()
    device = resolve_device(config.device)
    dataset = load_dataset(config.data)
    store = FeatureStore.last(config.store, config.backbone, config.sampling, config.decode.partial)
    splits: dict[str, FeatureSet] = {}
    learned_from: list[Clip] = []
    digest = hashlib.sha256(f"{store.fingerprint} {config.head} {config.train} {dataset.classes}".encode())
    for split in ("train", "val"):
        clips, splits[split] = load_features(store, dataset, split, config.max_missing)
        learned_from += clips
        digest.update(f"{split} {[(clip.id, clip.label) for clip in clips]}".encode())
        digest.update(splits[split].features_NTD.numpy())
    identity = digest.hexdigest()
    loading = time.monotonic() - began
    trained_on = bundle.identity()
    if trained_on == identity:
        print(f"{bundle.folder} is trained already with these settings and features")
        return
    if trained_on:
        raise ConfigError(
            f"{bundle.folder} was trained on other clips or features; "
            "give this run another name with --run, or delete that folder"
        )

    reduction = Reduction.of(*splits["train"][:2], config.head.components)
    splits = {split: features.reduced(reduction) for split, features in splits.items()}
    # A checkpoint holds for this very basis, which another number of threads may turn.
    of_checkpoints = hashlib.sha256(identity.encode() + reduction.basis.numpy().tobytes()).hexdigest()
    bundle.begin(config, dataset.classes, learned_from, store.backbone_file)
    tracker = Tracker(config, bundle.folder, "train")
    heads: dict[str, nn.Module] = {}
    history: dict[str, list[dict[str, float]]] = {}

    def fit_once(kind: str, name: str, data: FeatureSet, val: FeatureSet | None, epochs: int) -> None:
        with progress(f"train {name}", epochs, "epochs") as bar:

            def log(record: dict[str, float]) -> None:
                shown = ("loss", "val_loss", "val_top1")
                bar.set_postfix_str(", ".join(f"{key} {record[key]:.3f}" for key in shown if key in record), False)
                bar.update(record["epoch"] - bar.n)
                tracker.log({f"{name}/{key}": value for key, value in record.items()})

            heads[kind], history[name] = fit(
                dataclasses.replace(config.head, kind=kind),
                config.train,
                data,
                val,
                epochs,
                len(dataset.classes),
                device,
                bundle.folder / f"checkpoint-{name}.safetensors",
                of_checkpoints,
                log,
            )

    for kind in dict.fromkeys((config.head.kind, "mean")):
        fit_once(kind, kind, splits["train"], splits["val"], config.train.epochs)
        records = history[kind]
        best = min(records, key=lambda record: record["val_loss"])
        told = (
            f"{kind}: {len(records)} epochs, lowest validation loss at {best['epoch']} (top-1 {best['val_top1']:.3f})"
        )
        if config.train.refit:
            fit_once(kind, f"{kind}-refit", splits["train"].join(splits["val"]), None, len(records))
            told += "; trained anew on all training clips"
        print(told)
    bundle.finish(reduction, heads, history, identity, store.fingerprint)
    spent = {name: sum(record["seconds"] for record in records) for name, records in history.items()}
    tracker.summary({f"seconds/{name}": value for name, value in {"load features": loading, **spent}.items()})
    for name in history:
        (bundle.folder / f"checkpoint-{name}.safetensors").unlink()
    tracker.finish()
    print(f"trained: {bundle.folder}; next: kinema evaluate {bundle.folder}")


def load_features(
    store: FeatureStore, dataset: Dataset, split: str, max_missing: float
) -> tuple[list[Clip], FeatureSet]:
    """Reads the features of one split into memory.

    Clips in the failure ledger are left out and counted by class on the terminal, as partial ones are.

    Args:
        store: where the features are.
        dataset: all clips.
        split: which of them.
        max_missing: share of the split that may be missing.

    Returns:
        The clips that have features, and these, in the same order.

    Raises:
        KinemaError: features were never computed, are damaged, or are of another state of the file; or too many clips
            could not be read.
    """
    entries = {clip: store.read(clip) for clip in dataset.of(split)}
    unreadable = store.failures()
    never = [clip.id for clip, entry in entries.items() if entry is None and clip.id not in unreadable]
    if never:
        raise KinemaError(
            f"{len(never)} of {len(entries)} {split} clips have no valid features in {store.folder} "
            f"(first: {never[0]}); run kinema extract with the same config"
        )
    present = {clip: entry for clip, entry in entries.items() if entry is not None}
    if len(present) < len(entries):
        missing = Counter(clip.label for clip in entries if clip not in present)
        by_class = ", ".join(f"{label} {count}" for label, count in missing.most_common())
        told = f"{split}: {missing.total()} of {len(entries)} clips could not be read ({by_class})"
        if missing.total() > max_missing * len(entries):
            raise KinemaError(
                f"{told}, more than --max-missing {max_missing:g} allows; kinema failures CONFIG tells the reasons"
            )
        print(f"{told}, see {store.ledger}")
    partial = sum(len(entry.indices) < entry.planned for entry in present.values())
    if partial:
        print(f"{split}: {partial} of {len(entries)} clips are partial: damage left fewer frames than planned")
    if not present:
        raise KinemaError(f"the {split} split has no clips with features")
    tensors = [torch.from_numpy(entry.features) for entry in present.values()]
    return list(present), FeatureSet(
        nn.utils.rnn.pad_sequence(tensors, batch_first=True),
        torch.tensor([len(tensor) for tensor in tensors]),
        torch.tensor([dataset.classes.index(clip.label) for clip in present]),
    )
