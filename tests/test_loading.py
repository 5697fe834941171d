import numpy as np
import pytest
import torch

from pipeline.base.errors import KinemaError
from pipeline.config import Config, HeadConfig, SamplingConfig
from pipeline.data.clip import Clip, Source
from pipeline.data.splits import Dataset
from pipeline.features.entry import ClipFeatures, entry_path
from pipeline.features.store import FeatureStore
from pipeline.models.reduction import Reduction
from pipeline.runs.dataset import find_clips, load_clips, load_reduced, read_features
from pipeline.video.workers import Failure


@pytest.fixture
def store(tmp_path):
    (tmp_path / "0123456789abcdef").mkdir()
    return FeatureStore(tmp_path / "0123456789abcdef", 0.5)


def write(store, folder, number, seed, frames=8):
    path = folder / f"{number}.avi"
    path.write_bytes(b"video")
    clip = Clip(id=str(number), path=path, label="ab"[number % 2], group=str(number), split="train")
    features = np.random.default_rng(seed).normal(size=(frames, 12)).astype(np.float16)
    times = np.arange(frames)
    store.write(clip, ClipFeatures(features, times.astype(np.float32), times, frames, "pyav", Source.of(path)), "none")
    return clip


def test_clips_in_memory_are_the_pyramids_of_their_features(store, tmp_path):
    clips = [write(store, tmp_path, number, number, frames=5 + number % 4) for number in range(300)]
    reduction = Reduction.of(*read_features(store, clips[:50]), 4, 3)
    loaded = load_clips(store, clips, ["a", "b"], reduction)
    assert loaded.labels_N.tolist() == [number % 2 for number in range(300)] and loaded.classes == 2
    for number in (0, 255, 256, 299):
        torch.testing.assert_close(loaded.parts_NPK[number], reduction(*read_features(store, [clips[number]]))[0])


def test_as_many_clips_may_be_missing_as_their_share_rounded_up(store, tmp_path, capsys):
    clips = [write(store, tmp_path, number, number) for number in range(9)]
    for clip in clips[:2]:
        entry_path(store.folder, clip.id).unlink()
        store.record_failure(clip, Failure("empty file"))
    dataset = Dataset(clips, ["a", "b"], "given")
    assert [*find_clips(store, dataset, "train", 0.2)] == clips[2:]
    assert "train: 2 of 9 clips could not be read (a 1, b 1)" in capsys.readouterr().out
    with pytest.raises(KinemaError, match=r"--max-missing 0\.05 allows 1; kinema failures .* names them"):
        find_clips(store, dataset, "train", 0.05)
    assert len(find_clips(store, Dataset(clips[1:], ["a", "b"], "given"), "train", 0.05)) == 7
    with pytest.raises(KinemaError, match="--max-missing 0 allows 0"):
        find_clips(store, Dataset(clips[1:], ["a", "b"], "given"), "train", 0)


def test_all_damaged_entries_are_found_at_once(store, tmp_path):
    clips = [write(store, tmp_path, number, number) for number in range(9)]
    reduction = Reduction.of(*read_features(store, clips), 4, 2)
    for number in (2, 7):
        path = entry_path(store.folder, str(number))
        path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(KinemaError, match=r"^2 train clips have no valid features .*first: 2.*run kinema extract"):
        load_clips(store, clips, ["a", "b"], reduction)
    assert [store.find(clip) is None for clip in clips] == [number in (2, 7) for number in range(9)]


def test_a_reduction_knows_nothing_of_clips_that_are_not_learned_from(store, tmp_path):
    config = Config(head=HeadConfig(components=4, levels=2), sampling=SamplingConfig(frames=8))
    learns_N = torch.arange(12) < 9
    bases = []
    for others in (100, 200):
        clips = [write(store, tmp_path, n, n if learns else n + others) for n, learns in enumerate(learns_N)]
        reductions = [load_reduced(config, store, clips, ["a", "b"], of_N)[0] for of_N in (learns_N, learns_N | True)]
        bases.append([reduction.basis for reduction in reductions])
    (without, with_all), (without_again, with_all_others) = bases
    assert torch.equal(without, without_again)
    assert not torch.equal(with_all, with_all_others)
