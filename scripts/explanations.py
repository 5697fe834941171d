"""Count how often the explanation of a run's right answers beats a random order of the moments on the same clip.

    python scripts/explanations.py data/runs/demo

On the cached features of the test clips. The cells are not measured: they would need the CNN.
"""

import argparse
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch

from pipeline.inference.explanation import explain_moments
from pipeline.models.classifier import Classifier
from pipeline.runs.bundle import open_tested


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    args = parser.parse_args()
    tested = open_tested(args.run, {"device": "cpu"})
    classifier, classes = next(iter(tested.classifiers.values())), tested.dataset.classes
    found = defaultdict(list)
    for clip in tested.found:
        features_TD, place = tested.store.read(clip).features.astype(np.float32), classes.index(clip.label)
        if classify(classifier, features_TD) == place:
            evidence = explain_moments(classifier, features_TD, place)
            areas = np.array(evidence.random_areas)
            found[clip.label].append((evidence.area < areas.mean(), evidence.area < areas.min()))
    print("| class | right answers | beats the average random order | beats all of them |\n|---|--:|--:|--:|")
    for name, rows in [*found.items(), ("all", sum(found.values(), []))]:
        print(f"| {name} | {len(rows)} | {np.mean(rows, 0)[0]:.3f} | {np.mean(rows, 0)[1]:.3f} |")


@torch.inference_mode()
def classify(classifier: Classifier, features_TD: np.ndarray) -> int:
    """Return the place of the most likely class."""
    return int(classifier(torch.from_numpy(features_TD)[None], torch.tensor([len(features_TD)])).argmax())


if __name__ == "__main__":
    main()
