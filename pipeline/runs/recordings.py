"""Window length and penalty of a label change for long videos, fitted on joined validation clips."""

import itertools
import random

import numpy as np

from pipeline.data.clip import Clip
from pipeline.features.entry import Header
from pipeline.features.store import FeatureStore
from pipeline.models.classifier import Classifier
from pipeline.models.segmenter import Segmenter
from pipeline.models.windows import SlidingWindow, Window
from pipeline.runs.dataset import read_batches
from pipeline.runs.segment_metrics import f1

PENALTIES = 0, *(2.0**power for power in range(8))
MOST_CLIPS = 200
BACKGROUND = "background"
"""Name of a class, in any case, that stands for no action: its segments do not count in the metrics."""


def fit_window(found: dict[Clip, Header], store: FeatureStore, classifier: Classifier, classes: list[str]) -> Window:
    """Return the median length and number of frames of the clips, and the penalty with the best F1@50 on a recording
    that consists of the validation clips; `classifier` is trained without them. Clips of background, if there are any,
    stand between the others, since an action between pauses pays for two changes of label."""
    seconds = float(np.median([header.seconds for header in found.values()]))
    window = Window(seconds, round(np.median([header.planned for header in found.values()])), 0)
    if not seconds:  # Clips of one frame.
        return Window(1.0, window.frames, 0)
    val = [clip for clip in found if clip.split == "val"]
    clips = random.Random(0).sample(val, min(len(val), MOST_CLIPS))
    pauses, of_actions = ([clip for clip in clips if is_background(clip.label) == wanted] for wanted in (True, False))
    if pauses and of_actions:
        clips = [clip for pair in zip(of_actions, itertools.cycle(pauses), strict=False) for clip in pair]
    features = [values for batch in read_batches(store, clips) for values in batch]
    ends = np.cumsum([len(values) for values in features]) * window.step
    true = []
    for label, group in itertools.groupby(zip(clips, ends, strict=True), lambda pair: pair[0].label):
        true.append((true[-1][1] if true else 0.0, [end for _, end in group][-1], label))
    cells, scores = SlidingWindow(classifier, window).push(list(np.concatenate(features)), ended=True), {}
    for penalty in PENALTIES:
        segments = Segmenter(window._replace(penalty=penalty), classes).push(cells, ends[-1])
        scores[penalty] = f1([actions(segments)], [actions(true)], 0.5)
    best = [penalty for penalty, score in scores.items() if score == max(scores.values())]
    return window._replace(penalty=best[len(best) // 2])


def neighbours(clips: list[Clip], classes: list[str]) -> list[Clip] | None:
    """Return the clips that windows reach into in training, none of them without a class of background.

    Such windows make segments much better, but cost accuracy on whole clips where an action fills its clip."""
    return clips if any(map(is_background, classes)) else None


def is_background(label: str) -> bool:
    return label.casefold() == BACKGROUND


def actions(segments: list) -> list:
    """Return the segments that are not background."""
    return [segment for segment in segments if not is_background(segment[2])]
