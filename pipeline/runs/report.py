"""The result of an evaluation in words and a table, for the terminal."""

import html
from typing import Any

from pipeline.base.errors import printable
from pipeline.runs.comparison import Comparison

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
    errors = metrics["ece"], metrics["ece_equal_weights"]
    lines.append("Expected calibration error: {:.3f} (with equal fusion weights: {:.3f})".format(*errors))
    if unknown := metrics.get("unknown"):
        lines.append(
            f"`predict --unknown` calls {unknown['unknown']} of {clips} clips unknown, those with a probability below "
            f"{unknown['threshold']:.3f}; for {unknown['unknown_but_right']} of them the best class is right."
        )
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


def comparison(compared: Comparison) -> list[str]:
    """Return a table of runs, and how each differs from the first."""
    first, *others = compared.runs
    left_out = f"; {compared.left_out} clips that only some were tested on are left out" if compared.left_out else ""
    rows, lines = [], [f"{len(compared.clips)} test clips in {compared.groups} groups{left_out}"]
    for run in compared.runs:
        interval = "–".join(f"{edge:.3f}" for edge in run["top1_ci95"] or []) or "one group"
        row = {"run": printable(run["run"]), "classifier": NAMES[run["head"]], "seed": run["seed"], "top1": run["top1"]}
        rows.append(row | {"95 % CI over groups": interval})
    lines.append(_table([*rows[0]], rows))
    for run in others:
        edges = run["difference_ci95"]
        interval = (
            f"95 % CI {edges[0]:+.3f} to {edges[1]:+.3f}, paired" if edges else "no CI: one group, or the same answers"
        )
        difference = f"{run['difference']:+.3f} ({interval})"
        lines.append(f"{printable(run['run'])} vs. {printable(first['run'])}: {run['verdict']}, {difference}")
    return lines


def _table(columns: list[str], rows: list[dict[str, Any]]) -> str:
    lines = [[name.replace("_", " ") for name in columns]]
    for row in rows:
        cells = [f"{row[name]:.3f}" if isinstance(row[name], float) else str(row[name]) for name in columns]
        lines.append([html.escape(cell).replace("|", "&#124;") for cell in cells])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    padded = ([cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in padded)
