import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import HeadConfig
from pipeline.models.classifier import Classifier
from pipeline.models.heads import KINDS, Head
from pipeline.models.reduction import Reduction, segment_means

WIDTH, COMPONENTS, CLASSES = 12, 6, 5
SEQUENCE = [kind for kind in KINDS if kind not in ("mean", "pyramid")]


def make_head(kind, **settings):
    torch.manual_seed(0)
    config = HeadConfig(kind=kind, hidden=8, sequence_components=4, pyramid_levels=3, **settings)
    head = Head.build(COMPONENTS, CLASSES, config).eval()
    for parameter in head.parameters():  # The pyramid starts at zero.
        torch.nn.init.normal_(parameter, std=0.3)
    return head


def frames_of(length, clips=1):
    return torch.randn(clips, length, 2 * COMPONENTS)


@settings(max_examples=20, deadline=None)
@given(kind=st.sampled_from(list(KINDS)), lengths=st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_padding_changes_nothing(kind, lengths):
    torch.manual_seed(0)
    clips = [torch.randn(length, WIDTH) for length in lengths]
    padded = torch.nn.utils.rnn.pad_sequence(clips, batch_first=True)
    model = Classifier(Reduction(WIDTH, COMPONENTS), make_head(kind))
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
        for name, value in zip(head.paths, difference.tolist(), strict=True):
            assert (value < 1e-5) == (name == "mean"), name


@pytest.mark.parametrize("kind", SEQUENCE)
def test_the_sequence_model_reads_every_frame(kind):
    head, frames, lengths = make_head(kind), frames_of(16), torch.tensor([16])
    *linear, sequence = head.paths.values()
    before = sequence(frames, lengths)
    for number in range(16):
        other = frames.clone()
        other[:, number] += torch.randn(2 * COMPONENTS)
        assert (sequence(other, lengths) - before).abs().max() > 1e-4
    order = torch.arange(16).view(4, 4).flip(1).flatten()  # Reversed within each segment of the pyramid.
    assert (sequence(frames[:, order], lengths) - before).abs().max() > 1e-4
    for path in linear:
        torch.testing.assert_close(path(frames[:, order], lengths), path(frames, lengths))


@pytest.mark.parametrize("kind", SEQUENCE)
@pytest.mark.parametrize("dropout", [0, 0.5])
def test_dropout_is_for_training_only(kind, dropout):
    head, frames, lengths = make_head(kind, dropout=dropout), frames_of(8), torch.tensor([8])
    assert torch.equal(head(frames, lengths), head(frames, lengths))
    head.train()
    assert torch.equal(head(frames, lengths), head(frames, lengths)) == (dropout == 0)
    path = [*head.paths.values()][-1]
    for inner, size in ((path.project, 3 * path.components), (path.classify, path.classify[-1].in_features)):
        values = torch.randn(1, size)
        assert torch.equal(inner(values), inner(values)) == (dropout == 0)


def test_deviations_ignore_the_scene():
    head, frames, lengths = make_head("pyramid"), frames_of(8), torch.tensor([8])
    elsewhere = frames + torch.cat([torch.randn(COMPONENTS), torch.zeros(COMPONENTS)])
    deviations, pyramid = head.paths["deviations"], head.paths["pyramid"]
    torch.testing.assert_close(deviations(elsewhere, lengths), deviations(frames, lengths), rtol=1e-4, atol=1e-5)
    assert (pyramid(elsewhere, lengths) - pyramid(frames, lengths)).abs().max() > 0.01
    assert (deviations(frames.flip(1), lengths) - deviations(frames, lengths)).abs().max() > 0.01


def test_a_head_adds_weighted_log_probabilities():
    head, frames, lengths = make_head("bilstm"), frames_of(8, clips=3), torch.tensor([8, 8, 5])
    head.weights.copy_(torch.tensor([2.0, 0.3, 0.1, 1.0]))
    expected = sum(
        weight * path(frames, lengths).log_softmax(-1)
        for weight, path in zip(head.weights, head.paths.values(), strict=True)
    )
    torch.testing.assert_close(head(frames, lengths), expected)
    parts = head.baselines()
    assert [*parts] == ["pyramid", "mean"]
    torch.testing.assert_close(parts["mean"].logits(frames, lengths)[0], head.paths["mean"](frames, lengths))


def test_the_reduction_is_a_pca_that_ignores_padding():
    torch.manual_seed(0)
    hidden = torch.randn(6, 10, 3) * torch.tensor([4.0, 2.0, 1.0])
    clips = hidden @ torch.linalg.qr(torch.randn(WIDTH, 3))[0].T
    lengths = torch.tensor([10, 7, 10, 3, 10, 1])
    for number, length in enumerate(lengths):
        clips[number, length:] = 99
    reduction = Reduction.fit(clips, lengths, 3)
    is_frame = torch.arange(10) < lengths[:, None]
    components, changes = reduction(clips, lengths)[is_frame].chunk(2, -1)
    torch.testing.assert_close(components.mean(0), torch.zeros(3), atol=1e-4, rtol=0)
    covariance = components.T @ components / len(components)
    torch.testing.assert_close(covariance, torch.diag(covariance.diag()), atol=1e-3, rtol=0)
    normed = reduction.norm(clips[is_frame])
    exact = torch.linalg.eigvalsh((normed - normed.mean(0)).T @ (normed - normed.mean(0)) / len(normed)).flip(0)[:3]
    torch.testing.assert_close(covariance.diag() / covariance.trace(), exact / exact.sum(), atol=1e-3, rtol=0)
    assert covariance.trace() == pytest.approx(3, rel=1e-3)
    torch.testing.assert_close(changes.mean(0), torch.zeros(3), atol=1e-4, rtol=0)
    assert changes.std() == pytest.approx(0.5, rel=0.05)
    assert torch.equal(Reduction.fit(clips, lengths, 3).basis, reduction.basis)
    assert Reduction.fit(clips[:1, :1], lengths[5:], 3)(clips, lengths).isfinite().all()
    few = Reduction.fit(clips[:1, :2], lengths[:1].clamp(max=2), 3)  # Two frames vary in one direction only.
    assert few(clips, lengths)[is_frame].abs().max() < 50


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
        assert Reduction.fit(features[:clips], torch.full((clips,), 8), 4).basis.shape == (WIDTH, components)
