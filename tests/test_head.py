import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import HeadConfig
from pipeline.head import HEADS, segment_means

WIDTH, CLASSES = 12, 5


def make(kind):
    torch.manual_seed(0)
    head = HEADS[kind](WIDTH, CLASSES, HeadConfig(kind=kind, hidden=8)).eval()
    for parameter in head.parameters():  # The LSTM's path starts at zero; here it must count.
        torch.nn.init.normal_(parameter, std=0.3)
    return head


@pytest.mark.parametrize("kind", HEADS)
@settings(max_examples=20, deadline=None)
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_padding_changes_nothing(kind, lengths):
    head = make(kind)
    clips = [torch.randn(length, WIDTH) for length in lengths]
    padded = torch.nn.utils.rnn.pad_sequence(clips, batch_first=True)
    padded = torch.nn.functional.pad(padded, (0, 0, 0, 3), value=7.0)
    together = head(padded, torch.tensor(lengths))
    for number, clip in enumerate(clips):
        alone = head(clip[None], torch.tensor([len(clip)]))[0]
        torch.testing.assert_close(together[number], alone, rtol=1e-4, atol=1e-5)


def test_the_mean_is_blind_to_order_and_the_lstm_is_not():
    clip, length = torch.randn(1, 8, WIDTH), torch.tensor([8])
    backwards = clip.flip(1)
    torch.testing.assert_close(make("mean")(clip, length), make("mean")(backwards, length))
    assert (make("bilstm")(clip, length) - make("bilstm")(backwards, length)).abs().max() > 0.1


def test_segment_means():
    frames = torch.arange(6.0)[None, :, None]
    assert segment_means(frames, torch.tensor([6]), 3).flatten().tolist() == [0.5, 2.5, 4.5]
    assert segment_means(frames, torch.tensor([4]), 2).flatten().tolist() == [0.5, 2.5]
    assert segment_means(frames, torch.tensor([2]), 4).flatten().tolist() == [0.0, 0.0, 1.0, 1.0]
    pooled = torch.nn.functional.adaptive_avg_pool1d(frames.transpose(1, 2), 4).transpose(1, 2)
    torch.testing.assert_close(segment_means(frames, torch.tensor([6]), 4), pooled)
