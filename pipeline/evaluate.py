"""A trained bundle on its test split: metrics.json, predictions.csv, report.md. The only reader of the test split.

kinema evaluate data/runs/ucf101
"""

import csv
import functools
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import confusion_matrix

from pipeline.base.device import resolve_device
from pipeline.base.files import read_json
from pipeline.config import Config, SamplingConfig
from pipeline.data.clip import Clip, part_of
from pipeline.data.formats import read_clips
from pipeline.data.splits import Dataset
from pipeline.features.store import FeatureStore
from pipeline.runs import metrics, report
from pipeline.runs.bundle import Bundle
from pipeline.runs.dataset import find_clips, load_clips, warn_of_conflicts
from pipeline.runs.tracking import Tracker
from pipeline.runs.trainer import classify
from pipeline.video.transform import ResizeAndCrop, read_frames
from pipeline.video.workers import Failure, preload, run_isolated

THUMBNAILS = 64
"""Test clips shown in the W&B table of predictions."""


def evaluate(run: Path, overrides: dict[str, str]) -> None:
    """Measures the run's head, the mean of frames and the majority class on the test clips of the training's data set,
    or on those of another, whose report goes to a folder of its own.

    Args:
        run: the bundle's folder.
        overrides: settings by dotted name; `data.root` for data that have moved, others of `data` for another data set.

    Raises:
        KinemaError: the bundle is incomplete, or test features are missing.
    """
    bundle = Bundle(run)
    bundle.require_complete()
    config = bundle.config(overrides)
    device = resolve_device(config.device)
    history = read_json(run / "history.json")
    reduction, heads = bundle.load(config, device)
    if any(name.startswith("data.") and name != "data.root" for name in overrides):
        clips, _, split = read_clips(config.data)
        tested = [clip for clip in clips if clip.split in ("test", "")]  # All of them where no split is given.
        bundle.require_unseen(tested)
        dataset = Dataset([replace(clip, split="test") for clip in tested], bundle.classes, split)
        folder = run / "other_data" / (config.data.lists or config.data.root).stem
        folder.mkdir(parents=True, exist_ok=True)
    else:
        dataset, folder = bundle.dataset(config.data.root), run
    store = FeatureStore(config.store / bundle.trained()["fingerprint"], config.decode.min_readable)
    found = find_clips(store, dataset, "test", config.max_missing)
    warn_of_conflicts(found)
    clips, copies = list(found), bundle.copies(found)
    test = load_clips(store, clips, dataset.classes, reduction)
    labels_N, groups = test.labels_N.numpy(), [clip.group for clip in clips]

    each = {kind: classify(some, test.parts_NPK, device).numpy() for kind, some in heads.items()}  # [heads,N,C]
    logits = {kind: logits_HNC.mean(0) for kind, logits_HNC in each.items()}
    counts = Counter(clip.label for clip in bundle.trained_on)
    train_counts_C = np.array([counts[name] for name in dataset.classes])
    logits["majority"] = np.broadcast_to(train_counts_C.astype(float), (len(clips), len(dataset.classes)))

    contradictions = [
        clip for clip, copied in copies.items() if part_of(clip.id) == part_of(copied.id) and clip.label != copied.label
    ]
    about = {
        "data": str(config.data.lists or config.data.root),
        "split": dataset.split,
        "n_clips": len(clips),
        "n_groups": len(set(groups)),
        "n_missing": len(dataset.of("test")) - len(clips),
        "n_copies": len(copies),
        "n_copies_of_other_classes": len(contradictions),
        "seed": config.train.seed,
    }
    measured = {kind: about | metrics.measure(scores_NC, labels_N, groups) for kind, scores_NC in logits.items()}
    kind = config.head.kind
    predicted_N = logits[kind].argmax(1)
    matrix_CC = confusion_matrix(labels_N, predicted_N, labels=range(len(dataset.classes)))
    result = {"head": kind, **measured[kind]}
    result["baselines"] = {name: values for name, values in measured.items() if name != kind}
    if config.train.heads > 1:
        result["top1_of_each_head"] = [float((each_NC.argmax(1) == labels_N).mean()) for each_NC in each[kind]]
    for name, baseline in result["baselines"].items():
        gains_N = (predicted_N == labels_N).astype(float) - (logits[name].argmax(1) == labels_N)
        baseline |= {"gain": float(gains_N.mean()), "gain_ci95": metrics.group_interval(gains_N, groups)}
    result["per_class"] = metrics.per_class(predicted_N, labels_N, dataset.classes)
    result["most_confused"] = metrics.most_confused(predicted_N, labels_N, dataset.classes)

    (folder / "metrics.json").write_text(json.dumps(result, indent=2) + "\n")
    probabilities_NC = torch.from_numpy(logits[kind]).softmax(1).numpy()
    rows = [
        {
            "clip": clip.id,
            "group": clip.group,
            "label": clip.label,
            "predicted": dataset.classes[predicted_N[number]],
            "probability": float(probabilities_NC[number].max()),
            **{f"{name}_predicted": dataset.classes[logits[name][number].argmax()] for name in result["baselines"]},
            "copy_of": copies[clip].id if clip in copies else "",
            "logits": json.dumps([round(float(value), 5) for value in logits[kind][number]]),
        }
        for number, clip in enumerate(clips)
    ]
    with (folder / "predictions.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    report.write_report(folder, result, rows, matrix_CC, history)

    print(report.provenance(result))
    print(report.summary_table(result))
    for line in report.gain_lines(result):
        print(line)
    if config.train.heads > 1:
        print(report.heads_line(result))
    if copies:
        print(report.copies_line(result))
    print(f"report: {folder / 'report.md'}")
    _track(config, bundle, folder / "confusion.png", result, rows, clips)


def _track(
    config: Config,
    bundle: Bundle,
    confusions: Path,
    result: dict[str, Any],
    rows: list[dict[str, Any]],
    clips: list[Clip],
) -> None:
    """Logs the evaluation to W&B: numbers, confusion matrix, per-class table, predictions with a picture each."""
    if config.tracking == "off":
        return
    preload()
    tracker = Tracker(config, bundle.folder, "evaluate")
    if not tracker.run:
        return
    import wandb

    numbers = {key: value for key, value in result.items() if isinstance(value, int | float | str)}
    for name, baseline in result["baselines"].items():
        numbers |= {f"{name}/{key}": baseline[key] for key in ("top1", "top5", "mean_class", "macro_f1", "gain")}
    tracker.summary(numbers)
    classes = wandb.Table(list(result["per_class"][0]), [list(row.values()) for row in result["per_class"]])
    shown = dict(list(zip(clips, rows, strict=True))[:: -(-len(clips) // THUMBNAILS)])
    one = SamplingConfig(frames=1)
    small = ResizeAndCrop((224, 224), (224, 224), "bilinear")
    load = functools.partial(read_frames, sampling=one, decode=config.decode, transform=small)
    predictions = wandb.Table(["frame", "clip", "label", "predicted", "probability"])
    for clip, frame in run_isolated(load, shown, 1, config.decode.timeout, config.decode.memory_limit):
        picture = None if isinstance(frame, Failure) else wandb.Image(frame[0].frames[0].transpose(1, 2, 0))
        row = shown[clip]
        predictions.add_data(picture, clip.id, row["label"], row["predicted"], row["probability"])
    tracker.log(
        {
            "confusion": wandb.Image(str(confusions)),
            "classes": classes,
            "predictions": predictions,
        }
    )
    tracker.finish()
