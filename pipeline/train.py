"""Train a head on cached features: `kinema train --config configs/ucf101.yaml --run ucf101`."""

import hashlib
import json
import time
from pathlib import Path

import torch

from pipeline.base.device import resolve_device
from pipeline.base.errors import ConfigError, KinemaError, command
from pipeline.base.progress import progress
from pipeline.base.settings import to_yaml, yaml_differences
from pipeline.config import Config
from pipeline.data.clip import Clip
from pipeline.data.splits import load_dataset
from pipeline.features.entry import Header
from pipeline.features.store import FeatureStore
from pipeline.models.classifier import Classifier
from pipeline.models.heads import Head
from pipeline.models.reduction import Reduction
from pipeline.runs.bundle import Bundle
from pipeline.runs.confidence import unknown_threshold
from pipeline.runs.dataset import ClipSet, classify, find_clips, fit_reduction, load_clips, warn_of_conflicts
from pipeline.runs.recordings import fit_window, neighbours
from pipeline.runs.stacking import branch_log_probs, fit_weights
from pipeline.runs.tracking import Tracker
from pipeline.runs.trainer import fit

ENVIRONMENT = ("runs", "store", "device", "tracking", "tracking_media", "decode", "max_missing")
"""Settings that do not change the result."""
REMEDY = "give this run another name with --run, or delete that folder"


def train(config: Config, run: str) -> None:
    """Train on the stored features and write the bundle `<runs>/<run>`."""
    bundle = _open_bundle(config, run)
    device = resolve_device(config.device)
    dataset = load_dataset(config.data)
    if len(dataset.classes) == 1:
        raise KinemaError("the data set has only one class; data.root must be the folder that holds all classes")
    store = FeatureStore.last(config)
    found = {split: find_clips(store, dataset, split, config.max_missing) for split in ("train", "val")}
    learned = found["train"] | found["val"]
    identity = _digest(f"{store.fingerprint} {config.head} {config.train} {dataset.classes}", learned)
    trained_on = bundle.metadata().get("identity")
    if trained_on == identity and not bundle.missing() and bundle.clips_file.exists():
        print(f"{bundle.folder} is already trained with these settings and clips.")
        return
    if trained_on not in (None, identity):
        raise ConfigError(f"{bundle.folder} was trained on other clips or features; {REMEDY}")
    if dataset.of("test"):  # So that `evaluate` does not fail after the training.
        found["test"] = find_clips(store, dataset, "test", config.max_missing)
    for split, clips in found.items():
        print(f"{split}: {len(clips)} clips in {len({clip.group for clip in clips})} groups")
    warn_of_conflicts(learned)
    bundle.begin(config, dataset, learned, store.backbone_file)
    with Tracker(config, bundle.folder, store.fingerprint) as tracker:
        tracker.log_extraction(store.last_extraction())
        began = time.monotonic()
        classifiers, history, chosen = _train(config, store, learned, dataset.classes, device, tracker)
        metadata = {"identity": identity, "fingerprint": store.fingerprint, "split": json.dumps(dataset.split)} | chosen
        bundle.save_models(classifiers, history, metadata)
        tracker.log_model(bundle.files(), store.folder)
        tracker.summary({"train/total_seconds": time.monotonic() - began})
    print(f"Saved {bundle.folder}. Next: {command('evaluate', bundle.folder)}")


def _train(
    config: Config,
    store: FeatureStore,
    found: dict[Clip, Header],
    classes: list[str],
    device: torch.device,
    tracker: Tracker,
) -> tuple[dict[str, Classifier], dict[str, list[dict[str, float]]], dict[str, str]]:
    """Train on the training clips, find fusion weights, window and threshold on the validation clips, refit on both.

    Return the classifier and its baselines by kind, the records of the epochs by stage, and window and threshold."""
    kind, history, clips = config.head.kind, {}, [*found]
    is_train_N = torch.tensor([clip.split == "train" for clip in clips])

    def fit_on(mask_N: torch.Tensor, stage: str) -> tuple[Reduction, ClipSet, dict[str, Head]]:
        trained_on = [clips[n] for n in mask_N.nonzero().flatten().tolist()]
        reduction = fit_reduction(config, store, trained_on)
        loaded = load_clips(store, clips, classes, reduction, neighbours(trained_on, classes))
        history[stage] = []
        with progress(f"train {stage}", config.train.epochs, "epochs") as bar:

            def on_epoch(record: dict[str, float]) -> None:
                history[stage].append(record)
                bar.set_postfix_str(_epoch_line(history[stage]), refresh=False)
                bar.update()
                tracker.log_epoch(stage, record)

            head = fit(config.head, config.train, loaded, mask_N, device, on_epoch)
        return reduction, loaded, {kind: head, **head.baselines()}

    reduction, loaded, heads = fit_on(is_train_N, kind)
    val = loaded.where(~is_train_N)
    weights = {
        name: fit_weights(branch_log_probs(head, val), val.labels_N, head.weights) for name, head in heads.items()
    }
    print(f"{kind}: validation top-1 {history[kind][-1]['val_top1']:.3f}, loss {history[kind][-1]['val_loss']:.3f}")
    if fused := [n for n, w in enumerate(heads[kind].weights) if 0 < w < 1]:
        shown = ", ".join(f"{[*heads[kind].branches][n]} {weights[kind][n]:.2f}" for n in fused)
        print(f"{kind}: fusion weights: {shown}")
    heads[kind].weights.copy_(weights[kind])
    threshold = unknown_threshold(classify(heads[kind], val, torch.device("cpu")).numpy(), val.labels_N.numpy())
    window = fit_window(found, store, Classifier(reduction, heads[kind]), classes)
    print(f"Segments of recordings: window {window.seconds:.2f} s, penalty of a change {window.penalty:g}")
    if config.train.refit:
        reduction, _, heads = fit_on(torch.ones_like(is_train_N), f"{kind}-refit")
        print(f"Refit on train + val ({len(clips)} clips).")
    for name, head in heads.items():
        head.weights.copy_(weights[name])
    chosen = {"window": json.dumps(window._asdict()), "unknown_below": str(threshold)}
    return {name: Classifier(reduction, head) for name, head in heads.items()}, history, chosen


def _epoch_line(records: list[dict[str, float]]) -> str:
    """Return the last epoch in words, with the best validation accuracy so far."""
    last = records[-1]
    parts = [f"loss {last['loss']:.3f}"]
    if "val_top1" in last:
        best = max(record["val_top1"] for record in records)
        parts += [f"val loss {last['val_loss']:.3f}", f"val top-1 {last['val_top1']:.3f} (best {best:.3f})"]
    return ", ".join([*parts, f"{last['seconds']:.2f} s"])


def _open_bundle(config: Config, run: str) -> Bundle:
    if Path(run).name != run or run == "..":
        raise ConfigError(f"--run must be a name, not a path, got {run}; --runs sets the folder")
    bundle = Bundle(config.runs / run)
    if bundle.config_file.exists():
        asked = bundle.config_file.read_text(encoding="utf-8")
        if changed := yaml_differences(asked, to_yaml(config), ignore=ENVIRONMENT):
            raise ConfigError(f"{bundle.folder} holds a run with other settings ({'; '.join(changed)}); {REMEDY}")
    return bundle


def _digest(settings: str, learned: dict[Clip, Header]) -> str:
    """Return the digest of everything that the result depends on."""
    digest = hashlib.sha256(settings.encode())
    for clip, header in learned.items():
        of_clip = clip.split, clip.id, clip.label, clip.group, header.frames, header.sha256
        digest.update(f"{of_clip}\n".encode())
    return digest.hexdigest()
