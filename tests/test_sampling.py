import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.video.sampling import plan_frames

times = st.lists(st.floats(0.001, 1.0), min_size=1, max_size=300).map(lambda gaps: np.cumsum(gaps) - gaps[0])


@given(times, st.integers(1, 64))
def test_plan_is_ascending_distinct_and_spares_the_last_frame(times_N, frames):
    plan = plan_frames(times_N, frames)
    assert len(plan) == min(frames, len(times_N) - 1)
    assert (np.diff(plan) > 0).all()
    assert ((plan >= 0) & (plan < len(times_N) - 1)).all()


@given(st.integers(2, 500), st.integers(1, 64))
def test_every_frame_is_the_middle_of_its_segment(count, frames):
    usable = count - 1
    if usable < frames:
        return
    plan = plan_frames(np.arange(count) / 25, frames)
    middles = (np.arange(frames) + 0.5) * usable / frames
    assert (np.abs(plan + 0.5 - middles) <= 0.5).all()


@given(times, st.integers(1, 16), st.floats(0, 50), st.floats(0.01, 50))
def test_a_segment_gives_only_its_own_frames(times_N, frames, start, length):
    plan = plan_frames(times_N, frames, start, start + length)
    inside = np.flatnonzero((times_N[:-1] >= start) & (times_N[:-1] < start + length))
    assert set(plan) <= set(inside)
    assert len(plan) == min(frames, len(inside))


def test_one_frame_gives_nothing():
    assert len(plan_frames(np.zeros(1), 16)) == 0
