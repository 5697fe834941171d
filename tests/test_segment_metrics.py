"""Metrics of segments against cases worked out by hand, and the evaluation of recordings."""

import csv
import json

import pytest

from pipeline.inference.evaluation import measure
from pipeline.runs.segment_metrics import edit_score, f1, iou, mean_average_precision

from conftest import join, kinema, write_csv

TRUE = [(0, 10, "run"), (20, 30, "jump"), (40, 50, "run")]


def test_overlap_of_two_segments():
    assert iou((0, 10), (5, 15)) == pytest.approx(5 / 15)
    assert iou((0, 10), (0, 10)) == 1 and iou((0, 1), (2, 3)) == 0


@pytest.mark.parametrize(
    ("found", "overlap", "expected"),
    [
        (TRUE, 0.5, 1.0),
        ([], 0.5, 0.0),
        ([(0, 10, "jump"), (20, 30, "run"), (40, 50, "jump")], 0.1, 0.0),
        ([(0, 5, "run"), (20, 30, "jump"), (40, 50, "run")], 0.5, 1.0),  # An overlap of exactly a half.
        ([(0, 4, "run"), (20, 30, "jump"), (40, 50, "run")], 0.5, 2 * 2 / 6),
        ([(0, 4, "run"), (4, 10, "run"), (20, 30, "jump")], 0.25, 2 * 2 / 6),  # Twice the same: only one is right.
        ([(0, 4, "run"), (4, 10, "run"), (20, 30, "jump"), (40, 50, "run")], 0.5, 2 * 3 / 7),
    ],
)
def test_f1(found, overlap, expected):
    assert f1([found], [TRUE], overlap) == pytest.approx(expected)


def test_f1_counts_over_all_recordings():
    assert f1([TRUE, []], [TRUE, TRUE], 0.5) == pytest.approx(2 * 3 / 9)
    assert f1([[]], [[]], 0.5) == 1


@pytest.mark.parametrize(
    ("labels", "expected"),
    [("abc", 1.0), ("", 0.0), ("ac", 2 / 3), ("aabbc", 1 - 2 / 5), ("cba", 1 - 2 / 3), ("xyz", 0.0)],
)
def test_edit_score(labels, expected):
    found, true = ([(n, n + 1, label) for n, label in enumerate(text)] for text in (labels, "abc"))
    assert edit_score([found], [true]) == pytest.approx(expected)


def test_average_precision():
    found = [(0, 10, "run", 0.9), (60, 70, "run", 0.8), (41, 50, "run", 0.7), (40, 50, "run", 0.6)]
    # Of two "run", found at ranks 1 and 3: (1/1 + 2/3) / 2. The fourth is of a segment that is taken. No "jump".
    assert mean_average_precision([found], [TRUE], 0.5) == pytest.approx(((1 + 2 / 3) / 2 + 0) / 2)
    # At 0.95 the third overlaps too little, so the second is found at rank 4: (1/1 + 2/4) / 2.
    assert mean_average_precision([found], [TRUE], 0.95) == pytest.approx(((1 + 2 / 4) / 2 + 0) / 2)
    # Another recording has the same times.
    assert mean_average_precision([found, []], [[], TRUE], 0.5) == 0


def test_the_highest_precision_at_a_recall_or_above():
    found = [(60, 70, "run", 0.9), (0, 10, "run", 0.8), (40, 50, "run", 0.7)]
    assert mean_average_precision([found], [[TRUE[0], TRUE[2]]], 0.5) == pytest.approx((2 / 3 + 2 / 3) / 2)


def test_background_does_not_count():
    found = [(0, 10, "run", 0.9), (10, 40, "Background", 0.9), (40, 50, "run", 0.9)]
    result = measure([found], [[*TRUE, (10, 20, "background", 1.0)]])
    assert (result["segments"], result["found"]) == (3, 2)
    assert result["F1@50"] == pytest.approx(2 * 2 / 5) and result["edit"] == pytest.approx(2 / 3)


def test_recordings_are_evaluated(small_set, trained, tmp_path):
    clips = sorted((small_set / "videos").glob("*/*_g01_*"))[:8]  # Of the test split.
    join(tmp_path / "day.mp4", clips)
    rows = [("day.mp4", clip.parent.name, 2 * n, 2 * n + 2) for n, clip in enumerate(clips) if n != 3]
    lists = write_csv(tmp_path / "day.csv", ("path", "label", "start", "end"), *rows)
    settings = ["--data.root", tmp_path, "--data.lists", lists, "--segments"]
    out, _ = kinema("evaluate", trained, *settings)
    [folder] = (trained / "recordings").iterdir()
    result = json.loads((folder / "segments.json").read_text())
    assert (result["recordings"], result["segments"], result["unreadable"]) == (1, 7, 0)
    assert 0 < result["F1@50"] <= result["F1@25"] <= result["F1@10"] < 1
    assert "12% of the time is in no listed segment, and the run has no class 'background'" in out
    with (folder / "segments.csv").open(newline="") as stream:
        found = list(csv.DictReader(stream))
    assert len(found) == result["found"] and float(found[-1]["end"]) == pytest.approx(16)
    bad = write_csv(tmp_path / "bad.csv", ("path", "label"), ("day.mp4", "Grow"))
    _, error = kinema("evaluate", trained, "--data.root", tmp_path, "--data.lists", bad, "--segments", code=1)
    assert "1 test clips have no start and end" in error
    learned = write_csv(
        tmp_path / "l.csv", ("path", "label", "start", "end"), ("Grow/v_Grow_g02_c01.mp4", "Grow", 0, 1)
    )
    settings = ["--data.root", small_set / "videos", "--data.lists", learned, "--segments"]
    assert "share a file or a group with training clips" in kinema("evaluate", trained, *settings, code=1)[1]
