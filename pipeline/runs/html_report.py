"""The HTML report of a run."""

from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from pipeline.base.errors import command
from pipeline.base.settings import flat_values, flatten
from pipeline.config import Config
from pipeline.data.clip import Clip
from pipeline.runs.bundle import Bundle
from pipeline.runs.charts import confusions, line_chart, reliability
from pipeline.runs.page import write_page
from pipeline.runs.report import frame_order_lines
from pipeline.runs.results import Results


def write_report(
    file: Path, results: Results, bundle: Bundle, config: Config, clips: list[Clip], shown: list[dict[str, Any]]
) -> None:
    """Write the page on one run; `clips` are those tested, `shown` the cards of the gallery."""
    metrics, rows, history = results.metrics, results.rows, bundle.history()
    hits = [row["predicted"] == row["label"] for row in rows]
    reasons = defaultdict(list)
    for failure in metrics["failures"]:
        reasons[failure["reason"]].append(f"{failure['clip']} ({failure['split']})")
    again = bundle.folder.with_name(f"{bundle.folder.name}-again")
    context = {
        "title": results.name,
        "metrics": metrics,
        "classifiers": {metrics["head"]: metrics, **metrics["baselines"]},
        "per_class": _per_class(results),
        "mistakes": hits.count(False),
        "confusions": confusions([row["label"] for row in rows], [row["predicted"] for row in rows], results.classes),
        "cards": shown,
        "reliability": reliability([row["probability"] for row in rows], hits),
        "order": frame_order_lines(metrics["probe"])[-1],
        "charts": training_charts(history),
        "seconds": {stage: sum(record.get("seconds", 0) for record in records) for stage, records in history.items()},
        "splits": _splits([*bundle.trained_on, *clips]),
        "reasons": sorted(reasons.items(), key=lambda item: -len(item[1])),
        "commands": [
            command("extract", "--config", bundle.config_file),
            command("train", "--config", bundle.config_file, "--run", again.name),
            command("evaluate", again),
        ],
        "settings": sorted(settings(config), key=lambda row: not row[2]),
    }
    write_page(file, "report.html", context)


def _per_class(results: Results) -> list[dict[str, Any]]:
    """Return the rows of the table of classes: measures, the recall of linear baselines, and the worst confusion."""
    baselines = [name for name in results.metrics["baselines"] if name != "majority"]
    of_class = defaultdict(list)
    for row in results.rows:
        of_class[row["label"]].append(row)
    found = []
    for measures in results.metrics["per_class"]:
        rows = of_class[measures["class"]]
        wrong = Counter(row["predicted"] for row in rows if row["predicted"] != row["label"])
        recalls = [
            sum(row[f"{name}_predicted"] == row["label"] for row in rows) / max(len(rows), 1) for name in baselines
        ]
        found.append(measures | {"recalls": recalls, "taken_for": wrong.most_common(1)})
    return sorted(found, key=lambda row: row["recall"])


def training_charts(history: dict[str, list[dict[str, float]]]) -> list[dict[str, Any]]:
    """Draw the losses and the validation accuracy of each stage or run; a refit has no validation."""

    def lines(**keys: str) -> dict[str, list[tuple[float, float]]]:
        return {
            f"{stage}{suffix}": points
            for stage, records in history.items()
            for key, suffix in keys.items()
            if (points := [(record["epoch"], record[key]) for record in records if key in record])
        }

    panels = {"Loss": lines(loss=" train", val_loss=" val"), "Validation top-1": lines(val_top1="")}
    return [line_chart(title, drawn) for title, drawn in panels.items() if drawn]


def _splits(clips: list[Clip]) -> list[dict[str, Any]]:
    return [
        {
            "split": split,
            "clips": len(members),
            "groups": len({clip.group for clip in members}),
            "classes": len({clip.label for clip in members}),
        }
        for split in ("train", "val", "test")
        if (members := [clip for clip in clips if clip.split == split])
    ]


def settings(config: Config) -> list[tuple[str, str, bool]]:
    """Return the name and the value of all settings, and whether they differ from the default."""
    values = {name: "null" if value is None else str(value) for name, value in flat_values(config).items()}
    return [(name, values[name], values[name] != default) for name, (_, default, _) in flatten(type(config)).items()]
