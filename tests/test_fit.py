import dataclasses

import pytest
import torch

from pipeline.config import HeadConfig, TrainConfig
from pipeline.fit import ClipSet, fit
from pipeline.head import HEADS

CPU = torch.device("cpu")


def train(kind, config, clips, learns, checkpoint=None, **settings):
    head_config = HeadConfig(kind=kind, hidden=16, **settings)
    return fit(head_config, config, clips, learns, 3, CPU, checkpoint, "", lambda record: None)


@pytest.mark.parametrize(
    ("imbalance", "expected"), [("none", 0.75), ("weights", 0.5), ("sampling", 0.5), ("softmax", 0.5)]
)
def test_uneven_classes(imbalance, expected):
    """From features that tell nothing, only the plain loss learns that three of four clips are of class 0."""
    clips = ClipSet(torch.zeros(40, 1, 4), (torch.arange(40) >= 30).long())
    config = TrainConfig(epochs=100, learning_rate=0.05, label_smoothing=0, weight_decay=0, imbalance=imbalance)
    heads, _ = train("mean", config, clips, torch.ones(1, 40, dtype=torch.bool))
    assert heads(clips.parts_NPK)[0, 0, :2].softmax(0)[0].item() == pytest.approx(expected, abs=0.04)


@pytest.mark.parametrize("kind", HEADS)
def test_heads_side_by_side_are_those_trained_alone(kind):
    torch.manual_seed(0)
    clips = ClipSet(torch.randn(40, 7, 12), torch.randint(0, 3, (40,)))
    learns = torch.rand(4, 40) < 0.7
    learns = learns & (learns.cumsum(1) <= learns.sum(1).min())  # For each as many.
    config = TrainConfig(epochs=5, batch_size=8, clip_grad=0.5, imbalance="weights")
    together, history = train(kind, config, clips, learns, dropout=0)
    val_losses = []
    for number, head in enumerate(together):
        one = dataclasses.replace(config, seed=number)
        [alone], record = train(kind, one, clips, learns[number : number + 1], dropout=0)
        val_losses.append(record[-1]["val_loss"])
        torch.testing.assert_close(head(clips.parts_NPK), alone(clips.parts_NPK), rtol=1e-3, atol=1e-3)
    assert len(set(val_losses)) == 4
    held_out = (~learns).sum(1)
    mean = sum(loss * count for loss, count in zip(val_losses, held_out.tolist(), strict=True)) / held_out.sum()
    assert history[-1]["val_loss"] == pytest.approx(mean.item(), rel=1e-3)


def test_a_checkpoint_goes_on_as_if_nothing_had_happened(tmp_path):
    torch.manual_seed(0)
    clips, learns = ClipSet(torch.randn(20, 7, 12), torch.randint(0, 3, (20,))), torch.ones(2, 20, dtype=torch.bool)
    config, file = TrainConfig(epochs=6, batch_size=8), tmp_path / "checkpoint.safetensors"
    whole, expected = train("bilstm", config, clips, learns)

    class Stop(Exception):
        pass

    def stop(record):
        if record["epoch"] == 4:
            raise Stop

    with pytest.raises(Stop):
        fit(HeadConfig(hidden=16), config, clips, learns, 3, CPU, file, "", stop)
    resumed, history = train("bilstm", config, clips, learns, file)
    assert [record["loss"] for record in history] == [record["loss"] for record in expected]
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value)
