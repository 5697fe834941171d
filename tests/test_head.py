import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import HeadConfig
from pipeline.models.classifier import Classifier
from pipeline.models.heads import KINDS, Head
from pipeline.models.reduction import Reduction, segment_means

WIDTH, COMPONENTS, MOTION, CLASSES = 12, 6, 4, 5
SEQUENCE = [kind for kind in KINDS if kind not in ("mean", "pyramid")]


def make_head(kind, **settings):
    torch.manual_seed(0)
    config = HeadConfig(kind=kind, hidden=8, pyramid_levels=3, **settings)
    head = Head.build((COMPONENTS, MOTION), CLASSES, config).eval()
    for parameter in head.parameters():  # The pyramid starts at zero.
        torch.nn.init.normal_(parameter, std=0.3)
    return head


def frames_of(length, clips=1):
    return torch.randn(clips, length, 2 * COMPONENTS + MOTION)


@settings(max_examples=20, deadline=None)
@given(kind=st.sampled_from(list(KINDS)), lengths=st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_padding_changes_nothing(kind, lengths):
    torch.manual_seed(0)
    clips = [torch.randn(length, WIDTH) for length in lengths]
    padded = torch.nn.utils.rnn.pad_sequence(clips, batch_first=True)
    model = Classifier(Reduction(WIDTH, COMPONENTS, MOTION), make_head(kind))
    model.reduction.motion_basis = torch.randn(WIDTH, MOTION)
    model.reduction.basis = torch.randn(WIDTH, COMPONENTS)
    together = model(torch.nn.functional.pad(padded, (0, 0, 0, 3), value=7.0), torch.tensor(lengths))
    for number, clip in enumerate(clips):
        alone = model(clip[None], torch.tensor([len(clip)]))[0]
        torch.testing.assert_close(together[number], alone, rtol=1e-4, atol=1e-5)


def test_only_the_mean_is_blind_to_order():
    frames, lengths = frames_of(8), torch.tensor([8])
    for kind in KINDS:
        head = make_head(kind)
        difference = (head.logits(frames, lengths) - head.logits(frames.flip(1), lengths)).abs().amax((1, 2))
        for name, value in zip(head.branches, difference.tolist(), strict=True):
            assert (value < 1e-5) == (name == "mean"), name


@pytest.mark.parametrize("kind", SEQUENCE)
def test_the_sequence_model_reads_every_frame(kind):
    head, frames, lengths = make_head(kind), frames_of(16), torch.tensor([16])
    *linear, sequence = head.branches.values()
    before = sequence(frames, lengths)
    for number in range(16):
        other = frames.clone()
        other[:, number] += torch.randn(2 * COMPONENTS + MOTION)
        assert (sequence(other, lengths) - before).abs().max() > 1e-4
    order = torch.arange(16).view(4, 4).flip(1).flatten()  # Reversed within each segment of the pyramid.
    assert (sequence(frames[:, order], lengths) - before).abs().max() > 1e-4
    for branch in linear:
        torch.testing.assert_close(branch(frames[:, order], lengths), branch(frames, lengths))


@pytest.mark.parametrize("kind", SEQUENCE)
@pytest.mark.parametrize("dropout", [0, 0.5])
def test_dropout_is_for_training_only(kind, dropout):
    head, frames, lengths = make_head(kind, dropout=dropout), frames_of(8), torch.tensor([8])
    assert torch.equal(head(frames, lengths), head(frames, lengths))
    head.train()
    assert torch.equal(head(frames, lengths), head(frames, lengths)) == (dropout == 0)
    branch = [*head.branches.values()][-1]
    for inner, size in ((branch.project, 2 * MOTION), (branch.classify, branch.classify[-1].in_features)):
        values = torch.randn(1, size)
        assert torch.equal(inner(values), inner(values)) == (dropout == 0)


def test_a_head_adds_weighted_log_probabilities():
    head, frames, lengths = make_head("bilstm"), frames_of(8, clips=3), torch.tensor([8, 8, 5])
    head.weights.copy_(torch.tensor([2.0, 0.3, 1.0]))
    expected = sum(
        weight * branch(frames, lengths).log_softmax(-1)
        for weight, branch in zip(head.weights, head.branches.values(), strict=True)
    )
    torch.testing.assert_close(head(frames, lengths), expected)
    parts = head.baselines()
    assert [*parts] == ["pyramid", "mean"]
    torch.testing.assert_close(parts["mean"].logits(frames, lengths)[0], head.branches["mean"](frames, lengths))


def test_the_reduction_is_a_pca_that_ignores_padding():
    torch.manual_seed(0)
    hidden = torch.randn(6, 10, 3) * torch.tensor([4.0, 2.0, 1.0])
    clips = hidden @ torch.linalg.qr(torch.randn(WIDTH, 3))[0].T
    lengths = torch.tensor([10, 7, 10, 3, 10, 1])
    for number, length in enumerate(lengths):
        clips[number, length:] = 99
    reduction = Reduction.fit(clips, lengths, 3, 2)
    is_frame = torch.arange(10) < lengths[:, None]
    components, changes, _ = reduction(clips, lengths)[is_frame].split([3, 3, 2], -1)
    torch.testing.assert_close(components.mean(0), torch.zeros(3), atol=1e-4, rtol=0)
    covariance = components.T @ components / len(components)
    torch.testing.assert_close(covariance, torch.diag(covariance.diag()), atol=1e-3, rtol=0)
    normed = reduction.norm(clips[is_frame])
    exact = torch.linalg.eigvalsh((normed - normed.mean(0)).T @ (normed - normed.mean(0)) / len(normed)).flip(0)[:3]
    torch.testing.assert_close(covariance.diag() / covariance.trace(), exact / exact.sum(), atol=1e-3, rtol=0)
    assert covariance.trace() == pytest.approx(3, rel=1e-3)
    torch.testing.assert_close(changes.mean(0), torch.zeros(3), atol=1e-4, rtol=0)
    assert changes.std() == pytest.approx(0.5, rel=0.05)
    assert torch.equal(Reduction.fit(clips, lengths, 3, 2).basis, reduction.basis)
    assert Reduction.fit(clips[:1, :1], lengths[5:], 3, 2)(clips, lengths).isfinite().all()
    few = Reduction.fit(clips[:1, :2], lengths[:1].clamp(max=2), 3, 2)  # Two frames vary in one direction only.
    assert few(clips, lengths)[is_frame].abs().max() < 50


def test_motion_shows_what_moves_and_not_the_scene():
    """Scenes that differ a hundred times as much as what moves in them."""
    torch.manual_seed(0)
    position = torch.linspace(-1, 1, 8)
    move, scenes = torch.nn.functional.normalize(torch.randn(200), dim=0), 100 * torch.randn(30, 1, 200)
    clips, lengths = scenes + position[:, None] * move, torch.full((30,), 8)
    reduction = Reduction.fit(clips, lengths, 4, 1)
    components, _, motion = reduction(clips, lengths).split([4, 4, 1], -1)
    assert abs(np.corrcoef(motion.flatten(), position.repeat(30))[0, 1]) > 0.99
    torch.testing.assert_close(motion.mean(1), torch.zeros(30, 1), atol=1e-3, rtol=0)
    spread = (components - components.mean(1, keepdim=True)).square().sum() / components.square().sum()
    assert spread < 1e-3


def test_segment_means():
    frames = torch.arange(6.0)[None, :, None]
    assert segment_means(frames, torch.tensor([6]), 3).flatten().tolist() == [0.5, 2.5, 4.5]
    assert segment_means(frames, torch.tensor([4]), 2).flatten().tolist() == [0.5, 2.5]
    assert segment_means(frames, torch.tensor([2]), 4).flatten().tolist() == [0.0, 0.0, 1.0, 1.0]
    pooled = torch.nn.functional.adaptive_avg_pool1d(frames.transpose(1, 2), 4).transpose(1, 2)
    torch.testing.assert_close(segment_means(frames, torch.tensor([6]), 4), pooled)


def test_no_more_components_than_clips():
    features = torch.randn(5, 8, WIDTH)
    for clips, components in ((3, 3), (5, 4)):
        assert Reduction.fit(features[:clips], torch.full((clips,), 8), 4, 4).widths == (components, components)
