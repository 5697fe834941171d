"""What `kinema evaluate` found: metrics.json and predictions.csv."""

import csv
import json
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.base.errors import ConfigError, command


class Results(NamedTuple):
    name: str  # Of the run.
    metrics: dict[str, Any]
    rows: list[dict[str, Any]]  # Of predictions.csv; `probability` is a float, `logits` a list of floats.

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "metrics.json").write_text(json.dumps(self.metrics, indent=2) + "\n", encoding="utf-8")
        with (folder / "predictions.csv").open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, self.rows[0].keys())
            writer.writeheader()
            writer.writerows(row | {"logits": json.dumps(row["logits"])} for row in self.rows)

    @classmethod
    def read(cls, folder: Path) -> "Results":
        """Read the results in the folder of a run."""
        try:
            metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
            metrics["failures"], metrics["probe"], metrics["ece"]  # Raises for a run of an earlier version.
            with (folder / "predictions.csv").open(newline="", encoding="utf-8") as stream:
                rows = list(csv.DictReader(stream))
            for row in rows:
                row |= {"probability": float(row["probability"]), "logits": json.loads(row["logits"])}
        except FileNotFoundError as error:
            remedy = command("evaluate", folder)
            raise ConfigError(f"{error.filename}: no such file; evaluate the run first: {remedy}") from None
        except (ValueError, LookupError) as error:
            raise ConfigError(f"{folder}: results damaged or of another version ({error}); evaluate again") from None
        return cls(folder.absolute().name, metrics, rows)

    @property
    def classes(self) -> list[str]:
        return [row["class"] for row in self.metrics["per_class"]]


def read_results(runs: list[Path]) -> list[Results]:
    """Read the results of runs, under their paths if two of them have the same name."""
    results = [Results.read(run) for run in runs]
    if len({result.name for result in results}) == len(runs):
        return results
    return [result._replace(name=str(run)) for result, run in zip(results, runs, strict=True)]
