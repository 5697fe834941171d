"""The HTML page that compares runs."""

from collections import defaultdict
from pathlib import Path

import numpy as np

from pipeline.config import Config
from pipeline.data.clip import Clip
from pipeline.runs.bundle import Bundle
from pipeline.runs.comparison import compare_runs
from pipeline.runs.gallery import disagreements
from pipeline.runs.html_report import settings, training_charts
from pipeline.runs.page import write_page
from pipeline.runs.results import Results


def write_comparison(
    file: Path, results: list[Results], bundles: list[Bundle], configs: list[Config], clips: list[Clip], limit: int
) -> None:
    """Write the page on several runs, each compared to the first; `clips` are those that the first was tested on."""
    compared = compare_runs(results)
    histories = {result.name: [*bundle.history().values()][0] for result, bundle in zip(results, bundles, strict=True)}
    by_class = defaultdict(list)
    for rows in compared.clips.values():
        by_class[rows[0]["label"]].append([row["predicted"] == row["label"] for row in rows])
    rows = zip(*map(settings, configs), strict=True)
    context = {
        "title": " · ".join(histories),
        "names_of_runs": [*histories],
        "compared": compared,
        "per_class": [(name, len(hits_NR), np.mean(hits_NR, 0).tolist()) for name, hits_NR in sorted(by_class.items())],
        "classes": results[0].classes,
        "cards": disagreements(compared, clips, configs[0].decode, limit),
        "charts": training_charts(histories),
        "differing": [(row[0][0], values) for row in rows if len({*(values := [value for _, value, _ in row])}) > 1],
    }
    write_page(file, "comparison.html", context)
