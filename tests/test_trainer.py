import pytest
import torch

from pipeline.base.errors import KinemaError
from pipeline.config import HeadConfig, TrainConfig
from pipeline.models.heads import KINDS, Head
from pipeline.runs.dataset import ClipSet
from pipeline.runs.stacking import branch_log_probs, fit_weights
from pipeline.runs.trainer import branch_losses, fit, schedule

WIDTH = 4
DEVICES = [torch.device("cpu"), pytest.param(torch.device("cuda"), marks=pytest.mark.gpu)]
CPU = DEVICES[0]


def clips_of(frames, labels, classes=3):
    return ClipSet(frames, torch.full((len(frames),), frames.shape[1]), labels, classes, (WIDTH, WIDTH))


def random_clips(number=40, classes=3):
    torch.manual_seed(0)
    return clips_of(torch.randn(number, 6, 3 * WIDTH), torch.randint(0, classes, (number,)), classes)


def train(kind, config, clips, is_train=None, device=CPU, **settings):
    is_train = torch.ones(len(clips.labels_N), dtype=torch.bool) if is_train is None else is_train
    history = []
    head = fit(HeadConfig(kind=kind, hidden=16, **settings), config, clips, is_train, device, history.append)
    return head, history


@pytest.mark.parametrize("smoothing", [0, 0.1])
@pytest.mark.parametrize(("imbalance", "expected"), [("none", 0.95), ("balanced_softmax", 0.5)])
def test_uneven_classes(imbalance, expected, smoothing):
    """From features without information, only the plain loss learns that nearly all clips are of class 0."""
    clips = clips_of(torch.zeros(40, 1, 3 * WIDTH), (torch.arange(40) >= 38).long(), 2)
    config = TrainConfig(epochs=100, learning_rate=0.05, label_smoothing=smoothing, weight_decay=0, imbalance=imbalance)
    head, _ = train("mean", config, clips)
    assert head(clips.frames_NTF, clips.lengths_N)[0].softmax(0)[0].item() == pytest.approx(expected, abs=0.05)


def test_windows_are_for_sequence_models():
    clips = random_clips()
    same, other = (clips._replace(windows_NTF=windows) for windows in (clips.frames_NTF, clips.frames_NTF.flip(1)))
    first, second = (train("bilstm", TrainConfig(epochs=2), each)[0].branches for each in (same, other))
    states = [(first[name].state_dict(), second[name].state_dict()) for name in ("mean", "pyramid", "bilstm")]
    equal = [all(torch.equal(mine[key], theirs[key]) for key in mine) for mine, theirs in states]
    assert equal == [True, True, False]


@pytest.mark.parametrize("smoothing", [0.1, 0.4])
def test_label_smoothing_bounds_the_confidence(smoothing):
    labels = torch.arange(30) % 3
    clips = clips_of(torch.nn.functional.one_hot(labels, 3 * WIDTH)[:, None].float(), labels)
    config = TrainConfig(epochs=100, learning_rate=0.2, label_smoothing=smoothing, weight_decay=0)
    head, _ = train("mean", config, clips)
    confidence = head(clips.frames_NTF, clips.lengths_N).softmax(1).amax(1)
    torch.testing.assert_close(confidence, torch.full((30,), 1 - smoothing * 2 / 3), atol=0.01, rtol=0)


def test_the_loss_is_that_of_pytorch():
    logits, labels = torch.randn(2, 7, 4), torch.randint(0, 4, (7,))
    ours = branch_losses(logits, labels, torch.zeros(4), 0.2)
    theirs = [torch.nn.functional.cross_entropy(branch, labels, label_smoothing=0.2) for branch in logits]
    torch.testing.assert_close(ours, torch.stack(theirs))


def test_gradients_are_clipped():
    """AdamW divides a gradient by its size, except below its epsilon of 1e-8."""
    clips, moved = random_clips(), []
    for clip_grad in (5.0, 1e-12):
        torch.manual_seed(0)
        head, history = train("bilstm", TrainConfig(epochs=2, clip_grad=clip_grad, weight_decay=0), clips)
        torch.manual_seed(0)
        start, _ = train("bilstm", TrainConfig(epochs=1, learning_rate=1e-12, weight_decay=0), clips)
        pairs = zip(head.parameters(), start.parameters(), strict=True)
        moved.append(max((one - other).abs().max().item() for one, other in pairs))
        assert history[0]["grad_norm"] > 0.01  # Before clipping.
    assert moved[0] > 1e-3 and moved[1] < 1e-5


def test_a_learning_rate_that_is_too_high():
    with pytest.raises(KinemaError, match=r"train\.learning_rate 1e\+30 is too high"):
        train("bilstm", TrainConfig(learning_rate=1e30), random_clips())


def test_validation_clips_are_not_trained_on():
    clips, is_train = random_clips(), torch.arange(40) < 25
    other = clips._replace(labels_N=torch.where(is_train, clips.labels_N, (clips.labels_N + 1) % 3))
    (head, history), (same, others) = (train("bilstm", TrainConfig(epochs=3), of, is_train) for of in (clips, other))
    for name, value in head.state_dict().items():
        assert torch.equal(same.state_dict()[name], value)
    assert history[-1]["val_loss"] != others[-1]["val_loss"]


@pytest.mark.parametrize("device", DEVICES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_training_is_deterministic(kind, device):
    clips = random_clips()
    (head, history), (again, _), (other, _) = (
        train(kind, TrainConfig(epochs=5, learning_rate=5e-3, seed=seed), clips, device=device) for seed in (0, 0, 1)
    )
    state = head.state_dict()
    assert all(torch.equal(again.state_dict()[name], value) for name, value in state.items())
    assert not all(torch.equal(other.state_dict()[name], value) for name, value in state.items())
    assert history[-1]["loss"] < history[0]["loss"] and "val_loss" not in history[-1]


def test_the_learning_rate_rises_and_falls():
    rates = [schedule(step / 100, 0.1) for step in range(101)]
    assert rates[10] == max(rates) == 1 and rates[5] == pytest.approx(0.5)
    assert rates[55] == pytest.approx(0.5) and rates[100] == pytest.approx(0)
    assert schedule(1 / 3, 0) == pytest.approx(0.75)


def test_small_batches_are_trained_on_one_thread():
    before, threads = torch.get_num_threads(), []
    torch.set_num_threads(2)
    try:
        for size in (2, 1000):
            clips = clips_of(torch.randn(2000, 1, 3 * WIDTH), torch.arange(2000) % 3)
            every, config = torch.ones(2000, dtype=torch.bool), TrainConfig(epochs=1, batch_size=size)
            head = HeadConfig(kind="mean")
            fit(head, config, clips, every, torch.device("cpu"), lambda _: threads.append(torch.get_num_threads()))
        assert [*threads, torch.get_num_threads()] == [1, 2, 2]
    finally:
        torch.set_num_threads(before)


def test_one_step_trains():
    clips = random_clips(8)
    (head, history), (start, _) = (
        train("mean", TrainConfig(epochs=1, batch_size=8, learning_rate=rate), clips) for rate in (0.01, 1e-12)
    )
    assert history[0]["learning_rate"] > 0
    assert not torch.allclose(head.branches["mean"].linear.weight, start.branches["mean"].linear.weight, atol=1e-3)


class Known(torch.nn.Module):
    """A branch that returns fixed logits, by the number in the first feature."""

    def __init__(self, logits):
        super().__init__()
        self.logits = logits

    def forward(self, frames_NTF, lengths_N):
        return self.logits[frames_NTF[:, 0, 0].long()]


@pytest.mark.parametrize("knows", ["pyramid", "bilstm"])
def test_stacking_finds_the_branch_that_knows(knows):
    torch.manual_seed(0)
    labels = torch.randint(0, 3, (300,))
    clips = clips_of(torch.arange(300.0).view(300, 1, 1).expand(-1, -1, 12), labels)
    head = Head.build((WIDTH, WIDTH), 3, HeadConfig())
    torch.manual_seed(0)  # The numbers do not depend on the size of the head.
    right = torch.nn.functional.one_hot(labels, 3) * 1.0 + 0.3 * torch.randn(300, 3)
    for name in head.branches:
        head.branches[name] = Known(right if name in (knows, "mean") else 2 * torch.randn(300, 3))
    logs = branch_log_probs(head, clips)
    weights = dict(zip(head.branches, fit_weights(logs, labels, head.weights).tolist(), strict=True))
    assert weights.pop("mean") == 0  # A baseline only.
    assert weights.pop(knows) > 1.5 and weights.popitem()[1] < 0.1
    few = fit_weights(logs[:, :1], labels[:1], head.weights)  # Without a prior, one weight would grow without limit.
    assert 0.5 < few.max() < 1
