"""The report of an evaluation: a page of Markdown and its pictures."""

import html
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from pipeline.base.errors import printable

NAMES = {
    "bilstm": "BiLSTM",
    "transformer": "Transformer",
    "pyramid": "temporal pyramid",
    "mean": "mean of frames",
    "majority": "majority class",
}
MISTAKES = 20
"""How many are listed."""


def summary_table(metrics: dict[str, Any]) -> str:
    """Return the classifiers as a Markdown table, readable on a terminal too."""
    rows = ["| classifier       | top-1 |      95 % CI | top-5 | mean class | macro F1 |"]
    rows += ["|:-----------------|------:|-------------:|------:|-----------:|---------:|"]
    for kind, values in {metrics["head"]: metrics, **metrics["baselines"]}.items():
        interval = "–".join(f"{edge:.3f}" for edge in values["top1_ci95"] or []) or "one group"
        rows.append(
            f"| {NAMES[kind]:16} | {values['top1']:.3f} | {interval:>12} | {values['top5']:.3f} "
            f"| {values['mean_class']:10.3f} | {values['macro_f1']:8.3f} |"
        )
    return "\n".join(rows)


def provenance(metrics: dict[str, Any]) -> str:
    """Return a line that says on which clips the numbers were measured."""
    groups = "1 group" if metrics["n_groups"] == 1 else f"{metrics['n_groups']} groups"
    unseen = f"{metrics['n_copies']} of them copies of training files" if metrics["n_copies"] else "none in training"
    missing = f", {metrics['n_missing']} unreadable clips not counted" if metrics["n_missing"] else ""
    return (
        f"{printable(metrics['data'])}, test split {metrics['split']}: {metrics['n_clips']} clips in {groups}, "
        f"{unseen}{missing}; seed {metrics['seed']}; confidence intervals over groups"
    )


def gain_lines(metrics: dict[str, Any]) -> list[str]:
    """Return the difference to each other trained classifier, on the same clips."""
    lines = []
    for kind, values in metrics["baselines"].items():
        if kind != "majority":
            interval = "one group, no CI" if metrics["n_groups"] == 1 else "right on the same clips"
            if edges := values["gain_ci95"]:
                interval = f"95 % CI {edges[0]:+.3f} to {edges[1]:+.3f}, paired"
            lines.append(f"{NAMES[metrics['head']]} vs. {NAMES[kind]}: {values['gain']:+.3f} ({interval})")
    return lines


def copies_line(metrics: dict[str, Any]) -> str:
    """Warn of test clips that are copies of training files."""
    contradictions = metrics["n_copies_of_other_classes"]
    wrong = f", {contradictions} of them with another label in training" if contradictions else ""
    return (
        f"Warning: {metrics['n_copies']} of {metrics['n_clips']} test clips are copies of training files under other "
        f"names{wrong}. They inflate the accuracy. See copy_of in predictions.csv; remove them, or list each with the "
        "label and group of its original in a CSV file."
    )


def write_report(
    folder: Path, metrics: dict[str, Any], rows: list[dict[str, Any]], matrix_CC: np.ndarray, history: dict[str, Any]
) -> None:
    """Write report.md, confusion.png and curves.png; `rows` are those of predictions.csv."""
    classes = [row["class"] for row in metrics["per_class"]]
    draw_confusions(folder / "confusion.png", matrix_CC, classes)
    draw_curves(folder / "curves.png", history)
    lines = [f"# {folder.name}", "", provenance(metrics), "", summary_table(metrics), ""]
    if metrics["n_copies"]:
        lines += [copies_line(metrics), ""]
    lines += [line for gain in gain_lines(metrics) for line in (gain, "")]
    confused = [(pair["class"], pair["taken_for"], pair["clips"]) for pair in metrics["most_confused"]]
    lines += ["## Most confused classes", "", *_table("class|predicted|clips", confused), ""]
    lines += ["![confusion matrix](confusion.png)", ""]
    mistakes = sorted((row for row in rows if row["predicted"] != row["label"]), key=lambda row: -row["probability"])
    shown = [(row["clip"], row["label"], row["predicted"], f"{row['probability']:.2f}") for row in mistakes[:MISTAKES]]
    lines += ["## Most confident mistakes", "", *_table("clip|class|predicted|probability", shown), ""]
    lines += ["All predictions are in predictions.csv.", ""]
    lines += ["## Classes", "", *_table("class|recall|precision|F1|clips", _class_rows(metrics)), ""]
    lines += ["## Training", "", "![curves](curves.png)", ""]
    (folder / "report.md").write_text("\n".join(lines), encoding="utf-8", errors="backslashreplace")


def _class_rows(metrics: dict[str, Any]) -> list[tuple[object, ...]]:
    """Return (class, recall, precision, F1, clips) as text, the worst first."""
    shown = "recall", "precision", "f1"
    return [
        (row["class"], *(f"{row[name]:.3f}" if row["clips"] else "–" for name in shown), row["clips"])
        for row in sorted(metrics["per_class"], key=lambda row: row["recall"])
    ]


def _table(header: str, rows: list[tuple[object, ...]]) -> list[str]:
    """Return the lines of a Markdown table; the header's columns are separated by bars."""
    lines = [f"| {header.replace('|', ' | ')} |", "|" + ":--|" * (header.count("|") + 1)]
    return lines + [f"| {' | '.join(_cell(value) for value in row)} |" for row in rows]


def _cell(value: object) -> str:
    """Escape what would be HTML or end the cell."""
    return html.escape(str(value)).replace("|", "&#124;")


def draw_confusions(path: Path, matrix_CC: np.ndarray, classes: list[str]) -> None:
    """Draw the confusion matrix, each row as fractions of its class."""
    side = min(4 + 0.28 * len(classes), 30)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    shares_CC = matrix_CC / np.maximum(matrix_CC.sum(1, keepdims=True), 1)
    figure.colorbar(axes.imshow(shares_CC, cmap="Blues", vmin=0, vmax=1))
    if len(classes) <= 20:
        for row, column in np.argwhere(matrix_CC):
            share = shares_CC[row, column]
            color = "white" if share > 0.5 else "black"
            axes.text(column, row, f"{share:.2f}", ha="center", va="center", color=color)
    counted = [f"{name} ({clips})" for name, clips in zip(classes, matrix_CC.sum(1), strict=True)]
    style = {"parse_math": False, "fontsize": 5 if len(classes) > 40 else None}  # A class may be named `$5`.
    axes.set_xticks(range(len(classes)), classes, rotation="vertical", **style)
    axes.set_yticks(range(len(classes)), counted, **style)
    axes.set(xlabel="predicted", ylabel="true (test clips)", title="fraction of each class")
    _save(figure, path)


def draw_curves(path: Path, history: dict[str, list[dict[str, float]]]) -> None:
    """Draw loss and validation accuracy of each classifier over the epochs; a refit has no validation."""
    figure = Figure(figsize=(10, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    for number, (kind, records) in enumerate(history.items()):
        if kind not in NAMES:
            continue
        for axes, key, line, label in (
            (left, "loss", "--", f"{NAMES[kind]}, training"),
            (left, "val_loss", "-", f"{NAMES[kind]}, validation"),
            (right, "val_top1", "-", NAMES[kind]),
        ):
            points = [(record["epoch"], record[key]) for record in records if record.keys() >= {"epoch", key}]
            if points:
                axes.plot(*zip(*points, strict=True), line, color=f"C{number}", label=label)
    left.set(xlabel="epoch", ylabel="loss")
    right.set(xlabel="epoch", ylabel="validation top-1", ylim=(0, 1.02))
    for axes in (left, right):
        if axes.lines:
            axes.legend()
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # No font has a glyph for some class names.
        figure.savefig(path, dpi=120)
