"""The report of a run: one page to read and its pictures."""

import html
import warnings
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from sklearn.metrics import ConfusionMatrixDisplay

from pipeline.base.errors import printable

matplotlib.rcParams["text.parse_math"] = False  # A class may be named `$5`.

NAMES = {
    "bilstm": "BiLSTM",
    "transformer": "Transformer",
    "convolution": "convolution",
    "pyramid": "temporal pyramid",
    "mean": "mean of frames",
    "majority": "majority class",
}
WRONG_ANSWERS = 20
"""How many are listed."""


def summary_table(metrics: dict[str, Any]) -> str:
    """Writes the head and its baselines as a Markdown table, readable on a terminal too."""
    rows = ["| classifier       |  top-1 |   95 % interval |  top-5 | mean class | macro F1 |"]
    rows += ["|:-----------------|-------:|----------------:|-------:|-----------:|---------:|"]
    for kind, values in {metrics["head"]: metrics, **metrics["baselines"]}.items():
        interval = "–".join(f"{edge:.3f}" for edge in values["top1_ci95"] or []) or "one group"
        interval = "no error seen" if values["top1"] == 1 else interval
        rows.append(
            f"| {NAMES[kind]:16} | {values['top1']:6.3f} | {interval:>15} | {values['top5']:6.3f} "
            f"| {values['mean_class']:10.3f} | {values['macro_f1']:8.3f} |"
        )
    return "\n".join(rows)


def provenance(metrics: dict[str, Any]) -> str:
    """Says in a line on what the numbers were measured."""
    missing = f", {metrics['n_missing']} clips unreadable and not counted" if metrics["n_missing"] else ""
    counts = f"{metrics['n_clips']} clips in {metrics['n_groups']} groups, none of which are in training{missing}"
    data = f"{printable(metrics['data'])}, test split {metrics['split']}"
    return f"{data}: {counts}; seed {metrics['seed']}; intervals by bootstrap over groups"


def write_report(
    folder: Path, metrics: dict[str, Any], rows: list[dict[str, Any]], matrix_CC: np.ndarray, history: dict[str, Any]
) -> None:
    """Writes report.md, confusion.png and curves.png; `rows` are those of predictions.csv."""
    classes = [row["class"] for row in metrics["per_class"]]
    draw_confusions(folder / "confusion.png", matrix_CC, classes)
    draw_curves(folder / "curves.png", history)
    lines = [f"# {folder.name}", "", provenance(metrics), "", summary_table(metrics), ""]
    if metrics["n_copies"]:
        lines += [copies_line(metrics), ""]
    lines += [line for gain in gain_lines(metrics) for line in (gain, "")]
    if "top1_of_each_head" in metrics:
        lines += [heads_line(metrics), ""]
    lines += ["## Most confused", "", "| class | taken for | clips |", "|:--|:--|--:|"]
    lines += [
        f"| {_cell(pair['class'])} | {_cell(pair['taken_for'])} | {pair['clips']} |"
        for pair in metrics["most_confused"]
    ]
    lines += ["", "![confusion matrix](confusion.png)", ""]
    wrong = [row for row in rows if row["predicted"] != row["label"]]
    if wrong:
        lines += ["## Surest of the wrong answers", "", "All answers are in predictions.csv.", ""]
        lines += ["| clip | class | taken for | probability |", "|:--|:--|:--|--:|"]
    lines += [
        f"| {_cell(row['clip'])} | {_cell(row['label'])} | {_cell(row['predicted'])} | {row['probability']:.2f} |"
        for row in sorted(wrong, key=lambda row: -row["probability"])[:WRONG_ANSWERS]
    ]
    lines += ["", "## Classes", ""]
    lines += ["| class | recall | precision | F1 | clips |", "|:--|--:|--:|--:|--:|"]
    lines += [
        f"| {_cell(row['class'])} | {row['recall']:.3f} | {row['precision']:.3f} | {row['f1']:.3f} | {row['clips']} |"
        if row["clips"]
        else f"| {_cell(row['class'])} | not tested | | | 0 |"
        for row in sorted(metrics["per_class"], key=lambda row: row["recall"])
    ]
    lines += ["", "## Training", "", "![curves](curves.png)", ""]
    (folder / "report.md").write_text("\n".join(lines))


def _cell(name: str) -> str:
    """A name in a Markdown table: neither HTML nor the end of the cell."""
    return html.escape(name).replace("|", "&#124;")


def gain_lines(metrics: dict[str, Any]) -> list[str]:
    """Says by how much the head beats the other trained classifiers, on the same clips."""
    lines = []
    for kind, values in metrics["baselines"].items():
        if kind != "majority":
            interval = values["gain_ci95"]
            span = f", 95 % interval {interval[0]:+.3f} to {interval[1]:+.3f}" if interval else ""
            lines.append(f"{NAMES[metrics['head']]} against {NAMES[kind]}, clip by clip: {values['gain']:+.3f}{span}")
    return lines


def copies_line(metrics: dict[str, Any]) -> str:
    """Says how many answers measure memory, or contradict what was learned."""
    copies, others = metrics["n_copies"], metrics["n_copies_of_other_classes"]
    means = ["what is measured on them is memory"] if copies > others else []
    means += [f"{others} of them were learned as another class, so one of the two is wrong"] if others else []
    return (
        f"{copies} of {metrics['n_clips']} test clips are copies, by other names, of files that were trained on: "
        f"{'; '.join(means)}; the column copy_of of predictions.csv names them all: remove them, or give each the "
        "class and group of the other in a CSV file"
    )


def heads_line(metrics: dict[str, Any]) -> str:
    """Says how good the heads are that the answer is an average of."""
    each = metrics["top1_of_each_head"]
    alone = f"{np.mean(each):.3f} ± {np.std(each, ddof=1):.3f}"
    return f"{len(each)} heads of different seeds answer together; each alone has a top-1 of {alone}"


def draw_confusions(path: Path, matrix_CC: np.ndarray, classes: list[str]) -> None:
    """Draws the confusion matrix, each row as shares of its class."""
    side = min(4 + 0.28 * len(classes), 30)
    figure, axes = plt.subplots(figsize=(side + 1, side), layout="constrained")
    shares_CC = matrix_CC / np.maximum(matrix_CC.sum(1, keepdims=True), 1)
    display = ConfusionMatrixDisplay(shares_CC, display_labels=classes)
    display.plot(
        ax=axes, cmap="Blues", xticks_rotation="vertical", include_values=len(classes) <= 20, values_format=".2f"
    )
    display.im_.set_clim(0, 1)
    for text, clips in zip(display.text_.flat if len(classes) <= 20 else [], matrix_CC.flat, strict=False):
        text.set_visible(clips > 0)
    axes.set(xlabel="predicted", ylabel="true (test clips)", title="share of each class")
    axes.set_yticklabels([f"{name} ({clips})" for name, clips in zip(classes, matrix_CC.sum(1), strict=True)])
    if len(classes) > 40:
        axes.tick_params(labelsize=5)
    _save(figure, path)


def draw_curves(path: Path, history: dict[str, Any]) -> None:
    """Draws loss and validation accuracy of each head over the epochs."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.5), layout="constrained")
    # Not the refits: they have no validation.
    selected = {kind: records for kind, records in history.items() if kind in NAMES}
    for number, (kind, records) in enumerate(selected.items()):
        epochs = [record["epoch"] for record in records]
        color = f"C{number}"
        left.plot(epochs, [record["loss"] for record in records], "--", color=color, label=f"{NAMES[kind]}, training")
        left.plot(epochs, [record["val_loss"] for record in records], color=color, label=f"{NAMES[kind]}, validation")
        right.plot(epochs, [record["val_top1"] for record in records], color=color, label=NAMES[kind])
    left.set(xlabel="epoch", ylabel="loss")
    right.set(xlabel="epoch", ylabel="validation top-1", ylim=(0, 1.02))
    left.legend()
    right.legend()
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # A class may be named by an emoji.
        figure.savefig(path, dpi=120)
    plt.close(figure)
