import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import HeadConfig
from pipeline.models.heads import HEADS, BiLSTM, Heads
from pipeline.models.reduction import Reduction, segment_means

WIDTH, CLASSES, LEVELS = 12, 5, 3


def make(kind):
    torch.manual_seed(0)
    head = HEADS[kind](2**LEVELS - 1, WIDTH, CLASSES, HeadConfig(kind=kind, hidden=8, sequence_components=4)).eval()
    for parameter in head.parameters():  # The pyramid starts at zero; here it must count.
        torch.nn.init.normal_(parameter, std=0.3)
    return head


@settings(max_examples=20, deadline=None)
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_padding_changes_nothing(lengths):
    torch.manual_seed(0)
    clips = [torch.randn(length, WIDTH) for length in lengths]
    padded = torch.nn.utils.rnn.pad_sequence(clips, batch_first=True)
    reduction = Reduction.of(padded, torch.tensor(lengths), 4, LEVELS)
    together = reduction(torch.nn.functional.pad(padded, (0, 0, 0, 3), value=7.0), torch.tensor(lengths))
    for number, clip in enumerate(clips):
        alone = reduction(clip[None], torch.tensor([len(clip)]))[0]
        torch.testing.assert_close(together[number], alone, rtol=1e-4, atol=1e-5)


def test_the_mean_alone_is_blind_to_order():
    torch.manual_seed(0)
    clips, length = torch.randn(7, 8, WIDTH), torch.tensor([8])
    reduction = Reduction.of(clips, length.expand(7), WIDTH // 2, LEVELS)
    parts = [reduction(frames, length) for frames in (clips[:1], clips[:1].flip(1))]
    forwards, backwards = ({kind: make(kind)(part) for kind in HEADS} for part in parts)
    torch.testing.assert_close(forwards["mean"], backwards["mean"])
    for kind in ("pyramid", "bilstm", "transformer", "convolution"):
        assert ((forwards[kind] - backwards[kind]).abs().amax((1, 2)) > 0.01).all()


def test_departures_know_movement_but_not_where_it_is():
    parts = torch.randn(1, 7, WIDTH)
    head = make("pyramid")
    elsewhere = parts + torch.cat([torch.randn(WIDTH // 2), torch.zeros(WIDTH // 2)])  # All averages alike.
    (linear, departures), (linear_elsewhere, departures_elsewhere) = head(parts), head(elsewhere)
    torch.testing.assert_close(departures_elsewhere, departures)
    assert (linear_elsewhere - linear).abs().max() > 0.01
    assert (head(parts.flip(1))[1] - departures).abs().max() > 0.01


def test_paths_answer_together():
    parts = torch.randn(1, 7, WIDTH)
    head = make("bilstm")
    linear, departures, recurrent = head(parts).softmax(-1)
    together = linear * departures * recurrent**0.5
    torch.testing.assert_close(Heads([head])(parts)[0].softmax(-1), together / together.sum())
    torch.testing.assert_close(head.pyramid(parts).softmax(-1), torch.stack([linear, departures]))
    head.fusion_weights.copy_(torch.tensor([2.0, 0.3, 0.1]))
    together = linear**2 * departures**0.3 * recurrent**0.1
    torch.testing.assert_close(Heads([head])(parts)[0].softmax(-1), together / together.sum())


def test_the_lstm_is_that_of_pytorch():
    torch.manual_seed(0)
    ours, theirs = BiLSTM(6, 4), torch.nn.LSTM(6, 4, batch_first=True, bidirectional=True)
    for way, ending in enumerate(("", "_reverse")):
        for name, weights in (("ih", ours.of_input), ("hh", ours.of_state)):
            getattr(theirs, f"weight_{name}_l0{ending}").data = weights[way].T
        getattr(theirs, f"bias_ih_l0{ending}").data = ours.bias[way, 0]
        torch.nn.init.zeros_(getattr(theirs, f"bias_hh_l0{ending}"))
    values = torch.randn(3, 5, 6)
    torch.testing.assert_close(ours(values), theirs(values)[0])


def test_the_reduction_keeps_what_varies_and_ignores_padding():
    torch.manual_seed(0)
    hidden = torch.randn(6, 10, 3) * torch.tensor([4.0, 2.0, 1.0])
    clips = hidden @ torch.linalg.qr(torch.randn(WIDTH, 3))[0].T
    lengths = torch.tensor([10, 7, 10, 3, 10, 1])
    for number, length in enumerate(lengths):
        clips[number, length:] = 99
    reduction = Reduction.of(clips, lengths, 3, LEVELS)
    is_frame = torch.arange(10) < lengths[:, None]
    reduced, changes = reduction.of_frames(clips)[is_frame].chunk(2, -1)
    torch.testing.assert_close(reduced.mean(0), torch.zeros(3), atol=1e-4, rtol=0)
    covariance = reduced.T @ reduced / len(reduced)
    torch.testing.assert_close(covariance, torch.diag(covariance.diag()), atol=1e-3, rtol=0)
    assert covariance.trace() == pytest.approx(3, rel=1e-3)
    restored = reduced @ torch.linalg.pinv(reduction.basis) + reduction.centre
    torch.testing.assert_close(restored, reduction.norm(clips[is_frame]), atol=0.4, rtol=0)
    torch.testing.assert_close(changes.mean(0), torch.zeros(3), atol=1e-4, rtol=0)
    assert changes.std() == pytest.approx(0.5, rel=0.05)
    still = reduction.of_frames(clips[:1, :1].expand(1, 4, -1)).chunk(2, -1)[1]
    assert torch.equal(still, still[:, :1].expand_as(still)) and (still < 0).all()
    assert torch.equal(Reduction.of(clips, lengths, 3, LEVELS).basis, reduction.basis)
    assert Reduction.of(clips[:1, :1], lengths[5:], 3, LEVELS).of_frames(clips).isfinite().all()
    few = Reduction.of(clips[:1, :2], lengths[:1].clamp(max=2), 3, LEVELS)  # Two frames vary in one direction alone.
    assert few.of_frames(clips)[is_frame].abs().max() < 50


def test_segment_means():
    frames = torch.arange(6.0)[None, :, None]
    assert segment_means(frames, torch.tensor([6]), 3).flatten().tolist() == [0.5, 2.5, 4.5]
    assert segment_means(frames, torch.tensor([4]), 2).flatten().tolist() == [0.5, 2.5]
    assert segment_means(frames, torch.tensor([2]), 4).flatten().tolist() == [0.0, 0.0, 1.0, 1.0]
    pooled = torch.nn.functional.adaptive_avg_pool1d(frames.transpose(1, 2), 4).transpose(1, 2)
    torch.testing.assert_close(segment_means(frames, torch.tensor([6]), 4), pooled)


def test_there_are_no_more_components_than_clips():
    features = torch.randn(5, 8, WIDTH)
    for clips, components in ((3, 3), (5, 4)):
        assert Reduction.of(features[:clips], torch.full((clips,), 8), 4, LEVELS).basis.shape == (WIDTH, components)
