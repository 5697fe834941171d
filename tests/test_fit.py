import dataclasses
import math

import pytest
import torch

from pipeline.base.errors import KinemaError
from pipeline.config import HeadConfig, TrainConfig
from pipeline.models.heads import HEADS, Head, Heads
from pipeline.runs.dataset import ClipSet
from pipeline.runs.fusion import tune_fusion
from pipeline.runs.trainer import Checkpoint, _share_of_peak, fit

CPU = torch.device("cpu")
DEVICES = [CPU, pytest.param(torch.device("cuda"), marks=pytest.mark.gpu)]


def train(kind, config, clips, learns, checkpoint=None, device=CPU, log=lambda record: None, **settings):
    head_config = HeadConfig(kind=kind, hidden=16, **settings)
    heads, history = fit(head_config, config, clips, learns, device, log, not learns.all(), checkpoint)
    return heads.cpu(), history


@pytest.mark.parametrize("smoothing", [0, 0.1])
@pytest.mark.parametrize(
    ("imbalance", "expected"), [("none", 0.95), ("weights", 0.5), ("sampling", 0.5), ("softmax", 0.5)]
)
def test_uneven_classes(imbalance, expected, smoothing):
    """From features that tell nothing, only the plain loss learns that nearly all clips are of class 0."""
    clips = ClipSet(torch.zeros(40, 1, 4), (torch.arange(40) >= 38).long(), 2)
    config = TrainConfig(epochs=100, learning_rate=0.05, label_smoothing=smoothing, weight_decay=0, imbalance=imbalance)
    heads, _ = train("mean", config, clips, torch.ones(1, 40, dtype=torch.bool))
    assert heads(clips.parts_NPK)[0, 0].softmax(0)[0].item() == pytest.approx(expected, abs=0.05)


def test_a_learning_rate_that_is_too_high_is_told():
    clips = ClipSet(torch.randn(40, 7, 12), torch.arange(40) % 3, 3)
    with pytest.raises(KinemaError, match=r"train\.learning_rate 1e\+30 is too high"):
        train("bilstm", TrainConfig(learning_rate=1e30), clips, torch.ones(1, 40, dtype=torch.bool))


@pytest.mark.parametrize("device", DEVICES, ids=str)
@pytest.mark.parametrize("kind", HEADS)
def test_heads_side_by_side_are_those_trained_alone(kind, device):
    torch.manual_seed(0)
    clips = ClipSet(torch.randn(40, 7, 12), torch.randint(0, 3, (40,)), 3)
    learns = torch.stack([torch.randperm(40) < 27 for _ in range(4)])
    config = TrainConfig(epochs=5, batch_size=8, clip_grad=0.5, imbalance="weights")
    together, history = train(kind, config, clips, learns, device=device, dropout=0)
    val_losses = []
    for number, head in enumerate(together):
        one = dataclasses.replace(config, seed=1000 * number)
        [alone], record = train(kind, one, clips, learns[number : number + 1], device=device, dropout=0)
        val_losses.append(record[-1]["val_loss"])
        torch.testing.assert_close(head(clips.parts_NPK), alone(clips.parts_NPK), rtol=1e-3, atol=1e-3)
    assert len(set(val_losses)) == 4
    assert history[-1]["val_loss"] == pytest.approx(sum(val_losses) / 4, rel=1e-3)


def test_each_head_learns_from_its_own_clips_alone():
    """From labels that contradict each other."""
    torch.manual_seed(0)
    parts, labels = torch.randn(30, 7, 12).repeat(2, 1, 1), torch.randint(0, 3, (30,))
    clips = ClipSet(parts, torch.cat([labels, (labels + 1) % 3]), 3)
    learns = torch.stack([torch.arange(60) < 30, torch.arange(60) >= 25])  # One has more than the other.
    heads, _ = train("pyramid", TrainConfig(epochs=100, learning_rate=1e-2), clips, learns)
    first, second = heads(parts[:25]).argmax(2)
    assert (first == labels[:25]).float().mean() > 0.9
    assert (second == (labels[:25] + 1) % 3).float().mean() > 0.9


def test_the_learning_rate_rises_and_falls():
    shares = [_share_of_peak(step / 100, 0.1) for step in range(101)]
    assert shares[10] == max(shares) == 1 and shares[0] == 0 and shares[5] == pytest.approx(0.5)
    assert shares[55] == pytest.approx(0.5) and shares[100] == pytest.approx(0)
    assert _share_of_peak(0, 0) == 1


@pytest.mark.parametrize("device", DEVICES, ids=str)
@pytest.mark.parametrize("kind", ["bilstm", "convolution"])
def test_a_checkpoint_goes_on_as_if_nothing_had_happened(tmp_path, kind, device):
    torch.manual_seed(0)
    clips, learns = ClipSet(torch.randn(20, 7, 12), torch.randint(0, 3, (20,)), 3), torch.ones(2, 20, dtype=torch.bool)
    config, file = TrainConfig(epochs=6, batch_size=8), Checkpoint(tmp_path / "checkpoint.safetensors", "")
    whole, expected = train(kind, config, clips, learns, device=device)

    class Stop(Exception):
        pass

    def stop(record):
        if record["epoch"] == 4:
            raise Stop

    with pytest.raises(Stop):
        train(kind, config, clips, learns, file, device, stop)
    resumed, history = train(kind, config, clips, learns, file, device)
    assert [record["loss"] for record in history] == [record["loss"] for record in expected]
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value)


def test_a_damaged_checkpoint_is_begun_anew(tmp_path):
    torch.manual_seed(0)
    clips, learns = ClipSet(torch.randn(20, 7, 12), torch.randint(0, 3, (20,)), 3), torch.ones(1, 20, dtype=torch.bool)
    file = Checkpoint(tmp_path / "checkpoint.safetensors", "")
    file.path.write_bytes(b"half of a fi")
    _, history = train("mean", TrainConfig(epochs=2), clips, learns, file)
    assert len(history) == 2


class TimidAndBold(Head):
    """One path that is right but hardly says so, and one that is sure of noise."""

    default_fusion_weights = 0.5, 0.5

    def forward(self, parts_NPK):
        return torch.stack([parts_NPK[:, 0] * 0.2, torch.randn(len(parts_NPK), 3) * 4])


def test_the_path_that_is_right_is_heard():
    torch.manual_seed(0)
    labels = torch.randint(0, 3, (400,))
    seen = ClipSet(torch.nn.functional.one_hot(labels, 3)[:, None].float() * 4 + torch.randn(400, 1, 3), labels, 3)
    heads = Heads([TimidAndBold(), TimidAndBold()])
    timid, bold = tune_fusion(heads, seen)["fusion_weights"]
    assert timid > 2 and 0 < bold < 0.2
    few = tune_fusion(heads, seen.where(torch.arange(400) < 1))["fusion_weights"]
    assert (0.5 / math.e < few).all() and (few < 0.5 * math.e).all()  # One clip says little.
