import numpy as np
import pytest
import torch

from pipeline.config import Config, HeadConfig, TrainConfig
from pipeline.data.splits import group_folds
from pipeline.runs.dataset import ClipSet
from pipeline.runs.tuning import _difference, tune, with_settings

GROUPS = [f"g{number // 3}" for number in range(48)]


def make_clips():
    torch.manual_seed(0)
    labels = torch.arange(48) % 3
    return ClipSet(torch.randn(48, 3, 8) + torch.nn.functional.one_hot(labels, 8)[:, None] * 2, labels, 3)


def chosen(config, clips=None):
    clips = clips or make_clips()
    return tune(config, lambda _: clips, clips.labels_N.tolist(), GROUPS, torch.device("cpu"))


def test_no_fold_learns_from_a_group_that_it_is_tried_on():
    held_out = group_folds(make_clips().labels_N.tolist(), GROUPS, 4, seed=0)
    assert held_out.shape == (4, 48) and (held_out.sum(0) == 1).all()
    for fold in held_out:
        assert not {GROUPS[n] for n in fold.nonzero()[0]} & {GROUPS[n] for n in (~fold).nonzero()[0]}
    few = group_folds(["a", "a", "b", "b"], ["1", "2", "3", "4"], 4, seed=0)  # No more than a class has clips.
    assert len(few) == 2


def test_components_are_of_the_clips_that_are_learned_from_alone():
    clips, learned = make_clips(), []

    def load(learns_N):
        learned.append(learns_N)
        return clips

    config = Config(head=HeadConfig(kind="mean", levels=2), train=TrainConfig(epochs=1))
    tune(config, load, clips.labels_N.tolist(), GROUPS, torch.device("cpu"))
    expected = ~group_folds(clips.labels_N.tolist(), GROUPS, 3, seed=0)
    assert torch.equal(torch.stack(learned), torch.from_numpy(expected))


def test_a_hopeless_learning_rate_is_replaced():
    head = HeadConfig(kind="pyramid", levels=2)
    tuning = chosen(Config(head=head, train=TrainConfig(learning_rate=1e-7, epochs=20)))
    assert tuning.chosen["train.learning_rate"] == 3e-3
    assert any(line.startswith("train.learning_rate 0.003") and line.endswith("taken") for line in tuning.tried)
    assert not any("head.dropout" in line for line in tuning.tried)  # The pyramid has none.


def test_what_makes_no_difference_is_not_taken():
    """The labels are noise, so that no setting is better than the one that hardly learns."""
    clips = make_clips()
    noise = clips._replace(labels_N=clips.labels_N[torch.randperm(48)])
    head = HeadConfig(levels=2, hidden=4, sequence_components=2, dropout=0.3)
    config = Config(head=head, train=TrainConfig(learning_rate=1e-6, epochs=3))
    tuning = chosen(config, noise)
    assert not tuning.chosen
    assert tuning.tried[-1] == "kept as set: no value is better by 3.2 standard errors"  # Of 16 groups and nine tries.
    assert any(line.startswith("head.dropout") for line in tuning.tried)
    assert with_settings(config, tuning.chosen) == config


@pytest.mark.parametrize(("lower", "is_taken"), [(3.1, False), (3.3, True)])
def test_a_value_is_taken_if_it_is_better_than_chance_would_be_in_nine_tries(monkeypatch, lower, is_taken):
    monkeypatch.setattr("pipeline.runs.tuning._difference", lambda *_: (lower, 1.0))
    tuning = chosen(Config(head=HeadConfig(hidden=4, levels=2), train=TrainConfig(epochs=1)))
    assert ("head.kind" in tuning.chosen) == is_taken == any(line.endswith(", taken") for line in tuning.tried)


def test_the_error_of_a_difference_counts_groups():
    values = np.repeat(np.random.default_rng(0).normal(size=400), 5)
    groups = [str(number // 5) for number in range(2000)]
    assert _difference(np.array([0, 0, 2, 2]), ["a", "a", "b", "b"]) == (1, 1)
    mean, error = _difference(values, groups)
    assert mean == pytest.approx(values.mean())
    assert error == pytest.approx(1 / 400**0.5, rel=0.1)
