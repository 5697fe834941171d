"""Compare the program of docs/onnx.md, in an environment without PyTorch, with Kinema on all test clips of a run.

    python scripts/compare_onnx.py data/runs/demo model.onnx

The run must be evaluated and `model.onnx` be its export. The environment has onnxruntime, numpy and av alone.
"""

import argparse
import csv
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from pipeline.inference.predictor import Predictor

PAGE = Path(__file__).parents[1] / "docs" / "onnx.md"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("model", type=Path)
    args = parser.parse_args()
    predictor = Predictor(args.run, {"device": "cpu", "backbone.precision": "fp32"})
    with (args.run / "predictions.csv").open(newline="", encoding="utf-8") as stream:
        cached = {str(predictor.config.data.root / row["clip"]): row for row in csv.DictReader(stream)}
    best = {str(video): predictor.best(prediction, 1)[0] for video, prediction in predictor(cached)}
    found = {path: (label, float(probability)) for path, label, probability in run_alone(args.model, [*cached])}
    print(f"{len(found)} test clips, differences of the probability of the best class:")
    for name, other in (
        ("kinema predict, fp32", {path: (guess["label"], guess["probability"]) for path, guess in best.items()}),
        ("kinema evaluate", {path: (row["predicted"], float(row["probability"])) for path, row in cached.items()}),
    ):
        same = sum(found[path][0] == label for path, (label, _) in other.items())
        largest = max(abs(found[path][1] - probability) for path, (_, probability) in other.items())
        print(f"{name}: same class for {same}, largest difference {largest:.4f}")


def run_alone(model: Path, videos: list[str]) -> list[list[str]]:
    """Run the program of the page in a new environment; return its rows of path, label, probability."""
    with tempfile.TemporaryDirectory() as folder:
        python, program = Path(folder, "env", "bin", "python"), Path(folder, "classify.py")
        program.write_text(re.search(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)[1])
        subprocess.run([sys.executable, "-m", "venv", python.parents[1]], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "onnxruntime", "numpy", "av"], check=True)
        done = subprocess.run([python, program, model, *videos], check=True, capture_output=True, text=True)
    return [line.rsplit(maxsplit=2) for line in done.stdout.splitlines()]


if __name__ == "__main__":
    main()
