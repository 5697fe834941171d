"""Test whether a run depends on the order of frames: `kinema probe data/runs/ucf101 --json`."""

import json
from pathlib import Path

from pipeline.runs import report
from pipeline.runs.bundle import open_tested
from pipeline.runs.probe import probe_frame_order


def probe(run: Path, as_json: bool, overrides: dict[str, str]) -> None:
    """Print the accuracy of the run's head for each change of its test clips, as a table or as JSON."""
    tested = open_tested(run, overrides)
    tested.bundle.copies(tested.found)  # Raises if test clips were trained on.
    head = next(iter(tested.classifiers.values()))
    probed = probe_frame_order(tested.store, list(tested.found), tested.dataset.classes, head, tested.device)
    top1 = {name: values["top1"] for name, values in probed.items()}
    print(json.dumps(top1) if as_json else "\n".join(report.frame_order_lines(probed)))
