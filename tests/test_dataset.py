import numpy as np
import pytest
import torch

from pipeline.base.errors import KinemaError
from pipeline.config import Config, HeadConfig, SamplingConfig
from pipeline.data.clip import Clip
from pipeline.data.splits import Dataset
from pipeline.features.entry import ClipFeatures
from pipeline.features.store import FeatureStore
from pipeline.models.reduction import Reduction
from pipeline.runs.dataset import find_clips, fit_reduction, load_clips
from pipeline.video.workers import Failure


@pytest.fixture
def store(tmp_path):
    for name in ("tmp", "failed"):
        (tmp_path / "0123456789abcdef" / name).mkdir(parents=True)
    return FeatureStore(tmp_path / "0123456789abcdef", 0.5)


def features_of(seed, frames):
    return np.random.default_rng(seed).normal(size=(frames, 12)).astype(np.float16)


def write(store, folder, number, seed, frames=8):
    path = folder / f"{number}.avi"
    path.write_bytes(f"{number} {seed}".encode())
    clip = Clip(id=str(number), path=path, label="ab"[number % 2], group=str(number), split="train")
    times = np.arange(frames)
    entry = ClipFeatures(features_of(seed, frames), times.astype(np.float32), times, frames, "pyav")
    store.write(store.key(clip), entry, "none")
    return clip


def test_clips_in_memory_are_reduced_frames(store, tmp_path):
    clips = [write(store, tmp_path, number, number, frames=5 + number % 4) for number in range(300)]
    reduction = Reduction.fit(torch.randn(50, 8, 12), torch.full((50,), 8), 4, 3)
    loaded = load_clips(store, clips, ["a", "b"], reduction)
    assert loaded.labels_N.tolist() == [number % 2 for number in range(300)] and loaded.classes == 2
    assert loaded.frames_NTF.shape == (300, 8, 11)
    for number in (0, 255, 256, 299):
        length = 5 + number % 4
        features = torch.from_numpy(features_of(number, length))[None]
        expected = reduction(features, torch.tensor([length]))[0]
        assert loaded.lengths_N[number] == length
        torch.testing.assert_close(loaded.frames_NTF[number, :length], expected)
        assert not loaded.frames_NTF[number, length:].any()


def test_windows_show_a_clip_and_a_part_of_another(store, tmp_path):
    clips = [write(store, tmp_path, number, number, frames=5 + number % 4) for number in range(300)]
    reduction = Reduction.fit(torch.randn(50, 8, 12), torch.full((50,), 8), 4, 3)
    loaded = load_clips(store, clips, ["a", "b"], reduction, clips[:9])
    assert loaded.windows_NTF.shape == loaded.frames_NTF.shape
    mask = torch.arange(300) % 2 == 0
    torch.testing.assert_close(loaded.where(mask).windows_NTF, loaded.windows_NTF[mask])
    shares, sides = [], set()
    for length, frames, window in zip(loaded.lengths_N.tolist(), loaded.frames_NTF, loaded.windows_NTF, strict=True):
        components, inside = frames[:length, :4], window[:length, :4]
        places = [[n for n, frame in enumerate(components) if torch.allclose(frame, row)] for row in inside]
        own = [n for n, found in enumerate(places) if found]
        assert own == [*range(own[0], own[-1] + 1)] and not window[length:].any()
        shares.append(len(own) / length)
        sides |= {"before"} if own[0] else {"after"} if len(own) < length else set()
    assert min(shares) >= 0.5 and 0.5 < np.mean(shares) < 0.95 and sides == {"before", "after"}


def test_the_fraction_of_missing_clips_is_rounded_up(store, tmp_path, capsys):
    clips = [write(store, tmp_path, number, number) for number in range(9)]
    for clip in clips[:2]:
        store.path(store.key(clip)).unlink()
        store.record_failure(store.key(clip), clip, Failure("empty file"))
    dataset = Dataset(clips, ["a", "b"], "predefined")
    assert [*find_clips(store, dataset, "train", 0.2)] == clips[2:]
    assert "train: 2 of 9 clips could not be read (a 1, b 1)" in capsys.readouterr().out
    with pytest.raises(KinemaError, match=r"--max-missing 0\.05 allows 1.*kinema failures"):
        find_clips(store, dataset, "train", 0.05)
    assert len(find_clips(store, Dataset(clips[1:], ["a", "b"], "predefined"), "train", 0.05)) == 7
    with pytest.raises(KinemaError, match="--max-missing 0 allows 0"):
        find_clips(store, Dataset(clips[1:], ["a", "b"], "predefined"), "train", 0)


def test_all_damaged_entries_are_found_at_once(store, tmp_path):
    clips = [write(store, tmp_path, number, number) for number in range(9)]
    reduction = Reduction.fit(torch.randn(9, 8, 12), torch.full((9,), 8), 4, 3)
    for number in (2, 7):
        path = store.path(store.key(clips[number]))
        path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(KinemaError, match=r"^2 train clips have no valid features .*first: 2.*run `kinema extract`"):
        load_clips(store, clips, ["a", "b"], reduction)
    assert [store.find(clip) is None for clip in clips] == [number in (2, 7) for number in range(9)]


def test_the_reduction_is_fitted_on_the_given_clips_alone(store, tmp_path):
    config = Config(head=HeadConfig(pca_components=4, motion_components=3), sampling=SamplingConfig(frames=8))
    clips = [write(store, tmp_path, number, number) for number in range(12)]
    some, every = (fit_reduction(config, store, chosen) for chosen in (clips[:9], clips))
    features = torch.from_numpy(np.concatenate([features_of(number, 8) for number in range(9)])).float()
    torch.testing.assert_close(some.mean, some.norm(features).mean(0))
    assert not torch.allclose(some.mean, every.mean)
