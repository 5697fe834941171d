import numpy as np
import pytest

from pipeline.runs.metrics import accuracies, group_interval, measure


def test_measures_of_a_known_case():
    labels = np.array([0, 0, 0, 0, 1, 2])
    logits = np.eye(3)[[0, 0, 0, 1, 1, 0]]
    scores = {"bilstm": logits, "majority": np.tile([3, 2, 1], (6, 1))}
    measured = measure(scores, labels, list("aabbcd"), ["x", "y", "z"])
    assert measured["head"] == "bilstm" and measured["top1"] == 4 / 6 and measured["top5"] == 1.0
    assert np.isclose(measured["mean_class"], (3 / 4 + 1 + 0) / 3)
    low, high = measured["top1_ci95"]
    assert 0 <= low < 4 / 6 < high <= 1
    assert measured["most_confused"] == [
        {"class": "x", "taken_for": "y", "clips": 1},
        {"class": "z", "taken_for": "x", "clips": 1},
    ]
    assert measured["per_class"][1] == {"class": "y", "precision": 0.5, "recall": 1.0, "f1": 2 / 3, "clips": 1}
    majority = measured["baselines"]["majority"]
    assert majority["top1"] == 4 / 6 and majority["gain"] == 0  # One clip better, one worse.
    assert majority["gain_ci95"][0] < 0 < majority["gain_ci95"][1]


def test_classes_that_are_not_tested_do_not_count():
    measured = accuracies(np.eye(3)[[0, 1, 2, 2]], np.array([0, 1, 1, 1]), list("abcd"))
    assert np.isclose(measured["mean_class"], (1 + 1 / 3) / 2) and np.isclose(measured["macro_f1"], (1 + 1 / 2) / 2)


def group_rates(rng, groups, mean, correlation):
    """Accuracy of each group; its variance is that share of the variance of a clip's correctness."""
    if correlation == 1:  # A group is all right or all wrong.
        return (rng.random(groups) < mean).astype(float)
    return rng.beta(*(np.array([mean, 1 - mean]) * (1 / correlation - 1)), groups)


@pytest.mark.parametrize("sizes", ["equal", "unequal"])
@pytest.mark.parametrize(("groups", "widest"), [(2, 1), (3, 0.98), (4, 0.94), (6, 0.78), (10, 0.55), (30, 0.30)])
def test_accuracy_intervals_cover_the_truth(groups, widest, sizes):
    rng = np.random.default_rng(0)
    clips = np.full(groups, 8) if sizes == "equal" else np.geomspace(2, 24, groups).astype(int)
    names = list(np.repeat(np.arange(groups), clips))
    covered, widths = [], []
    for mean in (0.5, 0.8, 0.9):
        for correlation in (0.05, 0.3, 0.8, 1):
            for _ in range(100):
                rates = group_rates(rng, groups, mean, correlation)
                low, high = group_interval(rng.random(len(names)) < np.repeat(rates, clips), names, lowest=0)
                covered.append(low <= mean <= high)
                widths.append(high - low)
    assert np.mean(covered) >= 0.93
    assert np.mean(widths) <= widest
    by_case = np.reshape(covered, (12, 100)).mean(1)
    assert by_case.min() >= 0.85  # 100 draws of a coverage of 0.95 are above 0.87 in 999 of 1,000 cases.


def test_accuracy_intervals_cover_the_truth_if_half_of_the_clips_are_of_one_group():
    """Then there is less to learn from ten groups than from ten equal ones."""
    rng = np.random.default_rng(0)
    names = [*["large"] * 90, *np.repeat(list("abcdefghi"), 10)]
    covered = []
    for _ in range(1000):
        rates = dict(zip(["large", *"abcdefghi"], group_rates(rng, 10, 0.9, 0.4), strict=True))
        low, high = group_interval([rng.random() < rates[name] for name in names], names, lowest=0)
        covered.append(low <= 0.9 <= high)
    assert np.mean(covered) >= 0.93


@pytest.mark.parametrize("groups", [2, 3, 4, 6, 10, 30])
def test_intervals_of_differences_cover_the_truth(groups):
    """The two classifiers differ on a fifth of the clips, and on which ones depends on the group."""
    rng = np.random.default_rng(0)
    clips, draws = 8, 500
    names = list(np.repeat(np.arange(groups), clips))
    covered, found = 0, 0
    for _ in range(draws):
        better = np.repeat(group_rates(rng, groups, 0.15, 0.2), clips)
        chance = rng.random(len(names))
        difference = np.where(chance < better, 1, np.where(chance > 0.95, -1, 0))
        interval = group_interval(difference, names)
        if interval:
            found += 1
            covered += interval[0] <= 0.15 - 0.05 <= interval[1]
    assert found > draws / 2 and covered / found >= 0.93


def test_copies_within_a_group_are_no_evidence():
    values = np.array([1, 0, 1, 1, 0, 1, 0, 1, 1, 1], float)
    groups = [str(number) for number in range(10)]
    once = group_interval(values, groups, lowest=0)
    np.testing.assert_allclose(group_interval(np.repeat(values, 20), list(np.repeat(groups, 20)), lowest=0), once)
    low, high = group_interval(np.repeat(values, 20), [str(number) for number in range(200)], lowest=0)
    assert once[1] - once[0] > 3 * (high - low)


def test_intervals_without_variance():
    assert group_interval(np.ones(10), ["one"] * 10, lowest=0) is None
    assert group_interval(np.zeros(10), list("aabbccddee")) is None  # No difference anywhere.
    low, high = group_interval(np.ones(40), list("abcdefgh") * 5, lowest=0)
    assert high == 1 and low**8 == pytest.approx(0.025)
    assert group_interval(np.zeros(40), list("abcdefgh") * 5, lowest=0) == pytest.approx([0, 1 - low])
