"""The report of an evaluation: a page of Markdown and its pictures."""

import html
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from sklearn.metrics import confusion_matrix

from pipeline.base.errors import printable

NAMES = {"bilstm": "BiLSTM", "lstm": "LSTM", "transformer": "Transformer", "lstm_transformer": "LSTM + Transformer"}
NAMES |= {"pyramid": "temporal pyramid", "mean": "mean of frames", "majority": "majority class"}


def summary(metrics: dict[str, Any]) -> list[str]:
    """Return the test clips in words, a table of the classifiers, paired differences, and a warning of copies."""
    copies, clips, rows, lines = metrics["n_copies"], metrics["n_clips"], [], []
    for kind, values in {metrics["head"]: metrics, **metrics["baselines"]}.items():
        interval = "–".join(f"{edge:.3f}" for edge in values["top1_ci95"] or []) or "one group"
        row = {"classifier": NAMES[kind], "top1": values["top1"], "95 % CI over groups": interval}
        rows.append(row | {name: values[name] for name in ("top5", "mean_class", "macro_f1")})
        if kind not in (metrics["head"], "majority"):
            interval = "no CI: one group, or right on the same clips"
            if edges := values["gain_ci95"]:
                interval = f"95 % CI {edges[0]:+.3f} to {edges[1]:+.3f}, paired"
            lines.append(f"{NAMES[metrics['head']]} vs. {NAMES[kind]}: {values['gain']:+.3f} ({interval})")
    if untested := [row["class"] for row in metrics["per_class"] if not row["clips"]]:
        lines.append(f"Classes without test clips: {printable(', '.join(untested))}")
    if copies:
        lines.append(
            f"Warning: {copies} of {clips} test clips are copies of training files under other names "
            f"({metrics['n_copies_of_other_classes']} with another label). They inflate the accuracy. See copy_of in "
            "predictions.csv; remove them, or list each with the label and group of its original in a CSV file."
        )
    return [
        f"{printable(metrics['data'])}, test split {metrics['split']}; clips: {clips}, groups: {metrics['n_groups']}, "
        f"copies of training files: {copies}, unreadable: {metrics['n_missing']}; seed {metrics['seed']}",
        _table([*rows[0]], rows),
        *lines,
    ]


def frame_order_lines(probed: dict[str, dict[str, Any]]) -> list[str]:
    """Return a table of a probe, and a sentence on whether the order of frames matters to the classifier."""
    rows = []
    for name, values in probed.items():
        interval = " to ".join(f"{edge:+.3f}" for edge in values["ci95"] or []) or "none"
        rows.append({"frames": name.replace("_", " "), "top1": values["top1"], "change": values["difference"]})
        rows[-1]["95 % CI (paired)"] = interval
    low, high = probed["shuffled"]["ci95"] or (0, 0)
    lost = f"shuffled frames change the accuracy by {probed['shuffled']['difference']:+.3f}"
    matters = f"The order of frames matters: {lost} (95 % CI {low:+.3f} to {high:+.3f})."
    return [_table([*rows[0]], rows), matters if high < 0 else f"No evidence that the order of frames matters: {lost}."]


def write_report(folder: Path, metrics: dict[str, Any], rows: list[dict[str, Any]], history: dict[str, Any]) -> None:
    """Write report.md, confusion.png and curves.png; `rows` are those of predictions.csv."""
    tested = [row for row in metrics["per_class"] if row["clips"]]
    mistakes = sorted((row for row in rows if row["predicted"] != row["label"]), key=lambda row: -row["probability"])
    blocks = [
        f"# {folder.name}",
        *summary(metrics),
        "## Most confused classes",
        _table(["class", "taken_for", "clips"], metrics["most_confused"]),
        "![confusion matrix](confusion.png)",
        "## Most confident mistakes",
        _table(["clip", "label", "predicted", "probability"], mistakes[:20]),
        "All predictions are in predictions.csv.",
        "## Classes",
        _table(["class", "recall", "precision", "f1", "clips"], sorted(tested, key=lambda row: row["recall"])),
        "## Order of frames",
        *frame_order_lines(metrics["probe"]),
        "## Training",
        "![curves](curves.png)\n",
    ]
    (folder / "report.md").write_text("\n\n".join(blocks), encoding="utf-8", errors="backslashreplace")
    confusions = _draw_confusions(rows, [row["class"] for row in metrics["per_class"]])
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # No font has a glyph for some class names.
        confusions.savefig(folder / "confusion.png", dpi=120)
        _draw_curves(history).savefig(folder / "curves.png", dpi=120)


def _table(columns: list[str], rows: list[dict[str, Any]]) -> str:
    lines = [[name.replace("_", " ") for name in columns]]
    for row in rows:
        cells = [f"{row[name]:.3f}" if isinstance(row[name], float) else str(row[name]) for name in columns]
        lines.append([html.escape(cell).replace("|", "&#124;") for cell in cells])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    padded = ([cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in padded)


def _draw_confusions(rows: list[dict[str, Any]], classes: list[str]) -> Figure:
    counts_CC = confusion_matrix([row["label"] for row in rows], [row["predicted"] for row in rows], labels=classes)
    shares_CC = counts_CC / np.maximum(counts_CC.sum(1, keepdims=True), 1)
    side = min(4 + 0.28 * len(classes), 30)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    figure.colorbar(axes.imshow(shares_CC, cmap="Blues", vmin=0, vmax=1))
    if len(classes) <= 20:
        for (true, predicted), share in np.ndenumerate(shares_CC):
            color = "white" if share > 0.5 else "black"
            axes.text(predicted, true, f"{share:.2f}" if share else "", ha="center", va="center", color=color)
    counted = [f"{name} ({clips})" for name, clips in zip(classes, counts_CC.sum(1), strict=True)]
    style = {"parse_math": False, "fontsize": 5 if len(classes) > 40 else None}  # A class may be named `$5`.
    axes.set_xticks(range(len(classes)), classes, rotation="vertical", **style)
    axes.set_yticks(range(len(classes)), counted, **style)
    axes.set(xlabel="predicted", ylabel="true (test clips)", title="fraction of each class")
    return figure


def _draw_curves(history: dict[str, list[dict[str, float]]]) -> Figure:
    """Draw loss and validation accuracy of each stage over the epochs; a refit has no validation."""
    figure = Figure(figsize=(12, 3.5), layout="constrained")
    panels = figure.subplots(1, 3)
    for axes, key in zip(panels, ("loss", "val_loss", "val_top1"), strict=True):
        axes.set(xlabel="epoch", ylabel=key)
        for stage, records in history.items():
            shown = [record for record in records if key in record]
            axes.plot([record["epoch"] for record in shown], [record[key] for record in shown], label=stage)
    panels[0].legend()
    return figure
