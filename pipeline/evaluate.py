"""Measure a trained run on its test split: metrics.json, predictions.csv, report.md. Only this verb reads the split.

kinema evaluate data/runs/ucf101
"""

import csv
import functools
import hashlib
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import confusion_matrix

from pipeline.base.device import resolve_device
from pipeline.base.errors import KinemaError, summarize
from pipeline.config import OVERRIDABLE, Config, SamplingConfig
from pipeline.data.clip import Clip, segment_of
from pipeline.data.formats import read_clips
from pipeline.data.splits import Dataset
from pipeline.features.entry import Header
from pipeline.features.store import FeatureStore
from pipeline.runs import metrics, report
from pipeline.runs.bundle import Bundle
from pipeline.runs.clip_list import TEXT
from pipeline.runs.dataset import classify, find_clips, load_clips, warn_of_conflicts
from pipeline.runs.tracking import Tracker
from pipeline.video.transform import ResizeAndCrop, read_frames
from pipeline.video.workers import Failure, preload, run_isolated

THUMBNAILS = 64
"""Test clips shown in W&B."""


def evaluate(run: Path, overrides: dict[str, str]) -> None:
    """Measure the classifiers of a run and the majority class on test clips.

    Args:
        run: the bundle's folder.
        overrides: settings by dotted name. `data.root` names the folder of the run's videos if they have moved. Other
            data, or other settings of `data`, have a report of their own in `other_data/`.

    Raises:
        KinemaError: the bundle is incomplete, features are missing, or test clips were trained on.
    """
    bundle = Bundle(run)
    bundle.require_complete()
    config = bundle.config(overrides, OVERRIDABLE["evaluate"])
    device = resolve_device(config.device)
    history = bundle.history()
    classifiers = bundle.load_models(config, device)
    dataset, is_own = _test_data(bundle, config, overrides)
    store = FeatureStore.of(config, bundle.metadata()["fingerprint"])
    found = find_clips(store, dataset, "test", config.max_missing)
    warn_of_conflicts(found)
    clips, copies = list(found), bundle.clip_list.copies(found)
    reduction = next(iter(classifiers.values())).reduction.cpu()  # All share it.
    test = load_clips(store, clips, dataset.classes, reduction)
    logits = {kind: classify(classifier.head, test, device).numpy() for kind, classifier in classifiers.items()}
    counts = Counter(clip.label for clip in bundle.clip_list.trained_on)
    counts_C = np.array([float(counts[name]) for name in dataset.classes])
    logits["majority"] = np.tile(counts_C, (len(clips), 1))

    metadata = {
        "data": str(config.data.lists or config.data.root),
        "split": dataset.split,
        "n_clips": len(clips),
        "n_groups": len({clip.group for clip in clips}),
        "n_missing": len(dataset.of("test")) - len(clips),
        "n_copies": len(copies),
        "n_copies_of_other_classes": sum(
            segment_of(clip) == segment_of(original) and clip.label != original.label
            for clip, original in copies.items()
        ),
        "seed": config.train.seed,
    }
    labels_N = test.labels_N.numpy()
    result = _measure(logits, labels_N, [clip.group for clip in clips], dataset.classes, metadata)
    rows = _predictions(clips, logits, dataset.classes, copies)
    folder = run if is_own else run / "other_data" / f"{Path(metadata['data']).stem}-{_digest(found)}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    with (folder / "predictions.csv").open("w", newline="", **TEXT) as stream:
        writer = csv.DictWriter(stream, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    predicted_N = next(iter(logits.values())).argmax(1)
    matrix_CC = confusion_matrix(labels_N, predicted_N, labels=range(len(dataset.classes)))
    report.write_report(folder, result, rows, matrix_CC, history)

    print(report.provenance(result), report.summary_table(result), *report.gain_lines(result), sep="\n")
    if copies:
        print(report.copies_line(result))
    print(f"report: {folder / 'report.md'}")
    _track(config, bundle.folder, folder, result, dict(zip(clips, rows, strict=True)))


def _test_data(bundle: Bundle, config: Config, overrides: dict[str, str]) -> tuple[Dataset, bool]:
    """Return the data set to test on, and whether it is that of the training. All clips of other data that brings no
    split are test clips."""
    changed = {name for name in overrides if name.startswith("data.")}
    same_root = config.data.root == bundle.config({}).data.root
    if not changed or (changed == {"data.root"} and (same_root or bundle.clip_list.is_in(config.data.root))):
        return bundle.dataset(config.data.root), True
    clips, _, split = read_clips(config.data)
    tested = [replace(clip, split="test") for clip in clips if clip.split in ("test", "")]
    if unknown := sorted({clip.label for clip in tested} - {*bundle.classes}):
        raise KinemaError(f"{bundle.folder}: the run has no class {summarize(unknown)}; train a new one")
    bundle.clip_list.require_unseen(tested)
    return Dataset(tested, bundle.classes, split), False


def _digest(found: dict[Clip, Header]) -> str:
    """Name a set of test clips by its content."""
    lines = sorted(f"{clip.id}\t{clip.label}\t{clip.group}\t{header.sha256}\n" for clip, header in found.items())
    return hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()[:8]


def _measure(
    logits: dict[str, np.ndarray], labels_N: np.ndarray, groups: list[str], classes: list[str], metadata: dict[str, Any]
) -> dict[str, Any]:
    """Return the content of metrics.json; the first classifier is compared to the others on the same clips."""
    measured = {kind: metadata | metrics.measure(logits_NC, labels_N, groups) for kind, logits_NC in logits.items()}
    head, *others = logits
    predicted_N = logits[head].argmax(1)
    result = {"head": head, **measured[head], "baselines": {name: measured[name] for name in others}}
    for name, baseline in result["baselines"].items():
        gains_N = (predicted_N == labels_N).astype(float) - (logits[name].argmax(1) == labels_N)
        baseline |= {"gain": float(gains_N.mean()), "gain_ci95": metrics.group_interval(gains_N, groups)}
    result["per_class"] = metrics.per_class(predicted_N, labels_N, classes)
    result["most_confused"] = metrics.most_confused(predicted_N, labels_N, classes)
    return result


def _predictions(
    clips: list[Clip], logits: dict[str, np.ndarray], classes: list[str], copies: dict[Clip, Clip]
) -> list[dict[str, Any]]:
    """Return the rows of predictions.csv."""
    head, *others = logits
    probabilities_NC = torch.from_numpy(logits[head]).softmax(1).numpy()
    return [
        {
            "clip": clip.id,
            "group": clip.group,
            "label": clip.label,
            "predicted": classes[logits[head][number].argmax()],
            "probability": float(probabilities_NC[number].max()),
            **{f"{name}_predicted": classes[logits[name][number].argmax()] for name in others},
            "copy_of": copies[clip].id if clip in copies else "",
            "logits": json.dumps([round(float(value), 5) for value in logits[head][number]]),
        }
        for number, clip in enumerate(clips)
    ]


def _track(config: Config, run: Path, folder: Path, result: dict[str, Any], rows: dict[Clip, dict[str, Any]]) -> None:
    """Log numbers, the confusion matrix and some clips with their predictions to W&B."""
    if config.tracking == "off":
        return
    preload()
    with Tracker(config, run, "evaluate") as tracker:
        if not tracker.run:
            return
        import wandb

        numbers = {f"test/{key}": value for key, value in result.items() if isinstance(value, int | float | str)}
        for name, baseline in result["baselines"].items():
            numbers |= {f"{name}/{key}": baseline[key] for key in ("top1", "top5", "mean_class", "macro_f1", "gain")}
        tracker.summary(numbers | {f"recall/{row['class']}": row["recall"] for row in result["per_class"]})
        small = ResizeAndCrop((224, 224), (224, 224), "bilinear")
        load = functools.partial(read_frames, sampling=SamplingConfig(frames=1), decode=config.decode, transform=small)
        shown = list(rows)[:: -(-len(rows) // THUMBNAILS)]
        pictures = []
        for clip, frame in run_isolated(load, shown, 1, config.decode.timeout, config.decode.memory_limit):
            if not isinstance(frame, Failure):
                row = rows[clip]
                caption = f"{clip.id}: {row['label']}, predicted {row['predicted']} ({row['probability']:.2f})"
                pictures.append(wandb.Image(frame.frames[0].transpose(1, 2, 0), caption=caption))
        tracker.log({"confusion": wandb.Image(str(folder / "confusion.png")), "predictions": pictures})
