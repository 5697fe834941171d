import numpy as np

from pipeline.runs.metrics import group_interval, measure, most_confused, per_class


def test_measures_of_a_known_case():
    labels = np.array([0, 0, 0, 0, 1, 2])
    logits = np.eye(3)[[0, 0, 0, 1, 1, 0]]
    measured = measure(logits, labels, list("aabbcd"))
    assert measured["top1"] == 4 / 6
    assert measured["top5"] == 1.0
    assert np.isclose(measured["mean_class"], (3 / 4 + 1 + 0) / 3)
    low, high = measured["top1_ci95"]
    assert 0 <= low < 4 / 6 < high <= 1
    assert most_confused(logits.argmax(1), labels, ["x", "y", "z"]) == [
        {"class": "x", "taken_for": "y", "clips": 1},
        {"class": "z", "taken_for": "x", "clips": 1},
    ]
    assert per_class(logits.argmax(1), labels, ["x", "y", "z"])[1] == {
        "class": "y", "precision": 0.5, "recall": 1.0, "f1": 2 / 3, "clips": 1
    }  # fmt: skip


def test_classes_that_are_not_tested_have_no_say():
    measured = measure(np.eye(3)[[0, 1, 2, 2]], np.array([0, 1, 1, 1]), list("abcd"))
    assert np.isclose(measured["mean_class"], (1 + 1 / 3) / 2) and np.isclose(measured["macro_f1"], (1 + 1 / 2) / 2)


def test_intervals_of_few_groups_hold_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(0)
    intervals = [group_interval(rng.normal(size=7), list("abcdefg")) for _ in range(400)]
    assert 0.93 <= np.mean([low <= 0 <= high for low, high in intervals]) <= 0.97


def test_the_interval_is_over_groups_not_clips():
    """Twenty copies of each clip are no more evidence than one, if the copies are of one group."""
    values = np.array([1, 0, 1, 1, 0, 1, 0, 1, 1, 1], float)
    groups = [str(number) for number in range(10)]
    once = group_interval(values, groups)
    assert group_interval(np.repeat(values, 20), list(np.repeat(groups, 20))) == once
    as_if_independent = group_interval(np.repeat(values, 20), [str(number) for number in range(200)])
    assert once[1] - once[0] > 3 * (as_if_independent[1] - as_if_independent[0])
    assert group_interval(values, ["one"] * 10) is None
