import numpy as np
import pytest
import torch

from pipeline.choose import _difference, _folds, choose
from pipeline.config import Config, HeadConfig, TrainConfig
from pipeline.fit import ClipSet

GROUPS = [f"g{number // 3}" for number in range(48)]


def make_clips():
    torch.manual_seed(0)
    labels = torch.arange(48) % 3
    return ClipSet(torch.randn(48, 3, 8) + torch.nn.functional.one_hot(labels, 8)[:, None] * 2, labels)


def test_no_fold_learns_from_a_group_that_it_is_tried_on():
    learns = _folds(make_clips().labels_N.numpy(), GROUPS)
    assert (~learns).sum(0).eq(1).all()
    for fold in learns:
        assert not {GROUPS[n] for n in fold.nonzero()} & {GROUPS[n] for n in (~fold).nonzero()}


def test_a_hopeless_learning_rate_is_replaced_and_a_good_one_is_kept(capsys):
    def chosen(learning_rate):
        head = HeadConfig(kind="pyramid", levels=2)
        config = Config(head=head, train=TrainConfig(learning_rate=learning_rate, epochs=20))
        return choose(config, make_clips(), GROUPS, 3, torch.device("cpu"))

    assert chosen(1e-7).train.learning_rate == 3e-3
    told = capsys.readouterr().out
    assert "48 training clips, 4 folds of 16 groups" in told and "train.learning_rate 0.003" in told
    assert "head.dropout" not in told  # The pyramid has none.


def test_the_error_of_a_difference_counts_groups():
    values = np.repeat(np.random.default_rng(0).normal(size=400), 5)
    groups = [str(number // 5) for number in range(2000)]
    mean, error = _difference(values, groups)
    assert mean == pytest.approx(values.mean())
    assert error == pytest.approx(1 / 400**0.5, rel=0.1)
