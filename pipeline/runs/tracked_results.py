"""The results of an evaluation as W&B charts and tables."""

import io
from typing import Any

from pipeline.runs.charts import reliability
from pipeline.runs.report import NAMES
from pipeline.runs.results import Results
from pipeline.runs.tracking import Tracker
from pipeline.video.preview import Preview


def log_results(
    tracker: Tracker,
    results: Results,
    cards: list[dict[str, Any]],
    curves: list[dict[str, Any]],
    media: int,
    part: str,
) -> None:
    """Log numbers to the summary, and charts and tables, as `<part>/...`; the first `media` of `cards` with previews
    that play. `curves` are probabilities over time."""
    if not tracker.run:
        return
    import wandb

    prefix = "" if part == "test" else f"{part}/"
    metrics, rows, classes = results.metrics, results.rows, results.classes
    numbers = {f"{part}/{key}": value for key, value in metrics.items() if isinstance(value, int | float | str)}
    for name, values in metrics["baselines"].items():
        numbers |= {
            f"{prefix}baseline/{name}/{key}": value for key, value in values.items() if isinstance(value, float)
        }
    numbers |= {f"{prefix}probe/{name}": values["top1"] for name, values in metrics["probe"].items()}
    tracker.summary(numbers)

    labels, predicted = ([classes.index(row[key]) for row in rows] for key in ("label", "predicted"))
    measured = reliability([row["probability"] for row in rows], [row["label"] == row["predicted"] for row in rows])
    bins = [[bin["confidence"], bin["accuracy"], bin["clips"]] for bin in measured["bins"]]
    failures = [[failure["clip"], failure["split"], failure["reason"]] for failure in metrics["failures"]]
    per_class = [[row[key] for key in ("class", "recall", "precision", "f1", "clips")] for row in metrics["per_class"]]
    tracker.run.log(
        {
            f"{part}/confusion": wandb.plot.confusion_matrix(
                y_true=labels, preds=predicted, class_names=classes, title="Confusion of test clips"
            ),
            f"{part}/reliability": wandb.plot.scatter(
                wandb.Table(["confidence", "accuracy", "clips"], bins), "confidence", "accuracy", "Reliability"
            ),
            f"{part}/over_time": wandb.plot.line_series(
                *([curve[name] for curve in curves] for name in ("seconds", "probability", "clip")),
                title="Probability of the true class, after the frames so far",
                xname="seconds",
            ),
            f"{part}/classes": wandb.Table(["class", "recall", "precision", "f1", "clips"], per_class),
            f"{part}/clips": _clips(results, cards, media),
            f"{part}/failures": wandb.Table(["clip", "split", "reason"], failures),
        }
    )
    if shown := [card["preview"] for card in cards[:media] if isinstance(card["preview"], Preview)]:
        size = sum(len(preview.video) for preview in shown) / 1e6
        print(f"W&B: previews of {len(shown)} test clips, {size:.1f} MB")


def _clips(results: Results, cards: list[dict[str, Any]], media: int) -> Any:
    """Return a table of mistakes and some right answers, with what the baselines said."""
    import wandb

    others = [name for name in results.metrics["baselines"] if name != "majority"]
    columns = ["clip", "label", "predicted", "right", "probability", "top 3", *(NAMES[name] for name in others)]
    data = []
    for number, card in enumerate(cards):
        best = ", ".join(f"{label} {probability:.3f}" for label, probability in card["best"])
        row = [card[key] for key in ("clip", "label", "predicted", "right", "probability")]
        row += [best, *card["others"].values()]
        if media:
            has_preview = number < media and isinstance(card["preview"], Preview)
            row.append(wandb.Video(io.BytesIO(card["preview"].video), format="mp4") if has_preview else None)
        data.append(row)
    return wandb.Table([*columns, *(["preview"] if media else [])], data)
