"""Compare evaluated runs: `kinema compare data/runs/bilstm data/runs/mean`."""

import json
from pathlib import Path

from pipeline.base.errors import ConfigError
from pipeline.runs import report
from pipeline.runs.comparison import compare_runs
from pipeline.runs.results import read_results


def compare(folders: list[Path], as_json: bool) -> None:
    """Print the accuracy of each run, and its difference to the first, as a table or as JSON."""
    if len(folders) < 2:
        raise ConfigError("name two runs or more, such as kinema compare data/runs/first data/runs/second")
    compared = compare_runs(read_results(folders))
    if as_json:
        print(json.dumps(compared.runs))
    else:
        print(*report.comparison(compared), sep="\n")
