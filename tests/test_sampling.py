import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.video.sampling import ROUNDING, sample_indices

times = st.lists(st.floats(0.001, 1.0), min_size=1, max_size=300).map(lambda gaps: np.cumsum(gaps) - gaps[0])


@given(times, st.integers(1, 64))
def test_a_plan_ascends_and_never_asks_for_the_last_frame(times_N, frames):
    plan = sample_indices(times_N, frames)
    assert len(plan) == min(frames, len(times_N) - 1)
    assert (np.diff(plan) >= 0).all()
    assert ((plan >= 0) & (plan < len(times_N) - 1)).all()


@given(times, st.integers(1, 64))
def test_each_frame_is_the_one_shown_at_the_centre_of_its_segment(times_N, frames):
    plan = sample_indices(times_N, frames)
    for number, frame in enumerate(plan):
        instant = (number + 0.5) / len(plan) * times_N[-1]
        assert times_N[frame] <= instant + ROUNDING and instant < times_N[frame + 1] + ROUNDING


@given(st.integers(2, 500), st.integers(1, 600))
def test_at_a_constant_rate_no_frame_is_repeated(count, frames):
    plan = sample_indices(np.arange(count) / 25, frames)
    assert (np.diff(plan) > 0).all() and len(plan) == min(frames, count - 1)


@given(times, st.integers(1, 16), st.floats(0, 50), st.floats(0.01, 50))
def test_a_segment_gives_only_frames_shown_in_it(times_N, frames, start, length):
    plan = sample_indices(times_N, frames, start, start + length)
    ends_N = np.append(times_N[1:], np.inf)
    shown = np.flatnonzero((times_N < start + length) & (ends_N > start))[: len(times_N) - 1]
    assert set(plan) <= set(shown)
    assert len(plan) <= min(frames, len(shown))


@given(st.integers(1, 400), st.integers(1, 64), st.floats(0.1, 60))
def test_a_rate_samples_by_duration(count, frames, rate):
    plan = sample_indices(np.arange(count + 1) / 25, frames, rate=rate)
    assert len(plan) == min(frames, max(1, round(count / 25 * rate)), count)
    assert list(plan) == list(sample_indices(np.arange(count + 1) / 25, len(plan)))


def test_instants_divide_time_not_the_list_of_frames():
    """A screen recording: one frame a second for 20 s, then 60 frames in 2 s."""
    times_N = np.concatenate([np.arange(20), 20 + np.arange(61) / 30])
    seconds = times_N[sample_indices(times_N, 11)]
    np.testing.assert_allclose(seconds, [1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21], atol=1 / 30)


def test_a_frame_that_lasts_long_is_repeated():
    assert list(sample_indices(np.array([0, 0.1, 0.2, 10, 10.1]), 4)) == [2, 2, 2, 2]


def test_one_frame_gives_nothing():
    assert len(sample_indices(np.zeros(1), 16)) == 0
