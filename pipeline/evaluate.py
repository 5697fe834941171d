"""Measure a trained run on its test split: `kinema evaluate data/runs/ucf101`."""

import hashlib
from pathlib import Path

import numpy as np
from scipy.special import softmax

from pipeline.data.clip import Clip, segment_of
from pipeline.models.heads import Head
from pipeline.runs import metrics, report
from pipeline.runs.bundle import open_tested
from pipeline.runs.confidence import calibration_error, rejections
from pipeline.runs.dataset import classify, load_clips, warn_of_conflicts
from pipeline.runs.gallery import cards
from pipeline.runs.html_report import write_report
from pipeline.runs.over_time import probability_over_time
from pipeline.runs.probe import probe_frame_order
from pipeline.runs.results import Results
from pipeline.runs.tracked_results import log_results
from pipeline.runs.tracking import Tracker

FEW = 8
"""Clips whose probability over time is logged: lines in one chart."""


def evaluate(run: Path, segments: bool, overrides: dict[str, str]) -> None:
    """Measure a run's classifiers and the majority class on test clips. Reports on other data are in `other_data/`.

    With `segments`, compare the segments found in whole recordings with the listed ones instead."""
    if segments:
        from pipeline.inference.evaluation import evaluate_segments  # Takes seconds, since it needs the CNN.

        return evaluate_segments(run, overrides)
    bundle, config, device, classifiers, dataset, is_own, store, found = open_tested(run, overrides)
    bundle.history()  # Raises before the work begins.
    copies = bundle.copies(found)
    warn_of_conflicts(found)
    clips, classes = list(found), dataset.classes
    first = next(iter(classifiers.values()))
    test = load_clips(store, clips, classes, first.reduction.cpu())  # All share it.
    logits = {kind: classify(classifier.head, test, device).numpy() for kind, classifier in classifiers.items()}
    equal_NC = classify(Head(first.head.branches).to(device), test, device).numpy()  # As before the weights are fitted.
    labels_N = test.labels_N.numpy()
    learned = [clip.label for clip in bundle.trained_on]
    logits["majority"] = np.tile([float(learned.count(name)) for name in classes], (len(clips), 1))

    data = config.data.lists or config.data.root
    relabelled = [a for a, b in copies.items() if a.label != b.label and segment_of(a) == segment_of(b)]
    result = {
        "data": str(data),
        "split": dataset.split,
        "n_clips": len(clips),
        "n_groups": len({clip.group for clip in clips}),
        "n_missing": len(dataset.of("test")) - len(clips),
        "n_copies": len(copies),
        "n_copies_of_other_classes": len(relabelled),
        "seed": config.train.seed,
        **metrics.measure(logits, labels_N, [clip.group for clip in clips], classes),
        "ece": calibration_error(logits[config.head.kind], labels_N),
        "ece_equal_weights": calibration_error(equal_NC, labels_N),
    }
    if threshold := bundle.metadata().get("unknown_below"):
        result["unknown"] = rejections(logits[config.head.kind], labels_N, float(threshold))
    result["probe"] = probe_frame_order(store, clips, classes, first, device)
    absent = [clip for clip in dataset.clips if clip not in found and clip not in bundle.trained_on and clip.split]
    result["failures"] = [
        {"clip": clip.id, "split": clip.split, "reason": failure.reason}
        for clip, failure in store.failures(absent).items()
    ]
    rows = _predictions(clips, logits, classes, copies)
    lines = sorted(f"{clip.id}\t{clip.label}\t{clip.group}\t{header.sha256}\n" for clip, header in found.items())
    content = hashlib.sha256("".join(lines).encode()).hexdigest()[:8]
    folder = run if is_own else run / "other_data" / f"{data.stem}-{content}"
    results = Results(run.absolute().name, result, rows)
    results.write(folder)
    print(*report.summary(result), sep="\n")
    shown = cards(results, clips, config.decode)
    write_report(folder / "report.html", results, bundle, config, clips, shown)
    print(f"report: {folder / 'report.html'}")
    with Tracker(config, run, store.fingerprint) as tracker:
        by_id = {clip.id: clip for clip in clips}
        few = [by_id[card["clip"]] for card in shown[:FEW]]
        curves = probability_over_time(store, few, classes, first, device)
        part = "test" if is_own else f"other/{folder.name}"
        log_results(tracker, results, shown, curves, config.tracking_media, part)


def _predictions(clips: list[Clip], logits: dict[str, np.ndarray], classes: list[str], copies: dict) -> list[dict]:
    """Return the rows of predictions.csv."""
    head, *others = logits
    probabilities_NC = softmax(logits[head], axis=1)
    return [
        {
            "clip": clip.id,
            "group": clip.group,
            "label": clip.label,
            "predicted": classes[logits[head][number].argmax()],
            "probability": float(probabilities_NC[number].max()),
            **{f"{name}_predicted": classes[logits[name][number].argmax()] for name in others},
            "copy_of": copies[clip].id if clip in copies else "",
            "logits": [round(float(value), 5) for value in logits[head][number]],
        }
        for number, clip in enumerate(clips)
    ]
