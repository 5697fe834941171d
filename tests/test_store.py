"""The feature store: entries, damage, the index of contents, claims, and which settings share a fingerprint."""

import dataclasses
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from pipeline.base.errors import KinemaError
from pipeline.config import BackboneConfig, Config, DecodeConfig, SamplingConfig
from pipeline.data.clip import Clip
from pipeline.features.entry import ClipFeatures
from pipeline.features.store import ContentIndex, FeatureStore, fingerprint
from pipeline.video.workers import Failure

from conftest import kinema

ENGINE = "torch fp32 on cpu"


def backbone(weights="0"):
    """What the store needs of a CNN."""
    identity = {"weights_sha256": weights, "transform": {"input_size": (3, 224, 224)}}
    content = save({"a": np.frombuffer(weights.encode(), np.uint8)})
    return SimpleNamespace(identity=identity, engine=ENGINE, saved=lambda: content, cosine_to_fp32=lambda: 0.9999)


def prepare(folder, **more):
    return FeatureStore.prepare(Config(store=folder, **more), backbone())


@pytest.fixture
def store(tmp_path):
    return prepare(tmp_path / "store")


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip") / "a.mp4"
    path.write_bytes(b"content")
    return Clip(id="Run/a.mp4", path=path, label="Run", group="a")


def make_entry(frames=3, width=5, seed=0, planned=None):
    features = np.random.default_rng(seed).normal(size=(frames, width)).astype(np.float16)
    return ClipFeatures(features, np.arange(frames, dtype=np.float32), np.arange(frames), planned or frames, "decord")


def write(store, clip, entry):
    """Write an entry and return its file."""
    store.write(store.key(clip), entry, ENGINE)
    return store.path(store.key(clip))


@given(st.integers(1, 40), st.integers(1, 64), st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_written_entries_are_read(tmp_path_factory, clip, frames, width, seed):
    store = prepare(tmp_path_factory.mktemp("store"))
    written = make_entry(frames, width, seed)
    path = write(store, clip, written)
    read = store.read(clip)
    assert all(np.array_equal(a, b) for a, b in zip(read[:3], written[:3], strict=True))
    assert [array.dtype for array in read[:3]] == [np.float16, np.float32, np.int64]
    assert (read.planned, read.decoder, read.sha256) == (frames, "decord", path.stem)
    assert store.find(clip)[:3] == (frames, frames, path.stem)


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_damage_to_the_numbers_is_noticed_and_removed(tmp_path_factory, clip, data):
    store = prepare(tmp_path_factory.mktemp("store"))
    path = write(store, clip, make_entry())
    content = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(content[:8], "little")  # Behind the header.
    content[data.draw(st.integers(start, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    assert store.read(clip) is None and store.find(clip) is None and not path.exists()
    write(store, clip, make_entry())
    path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    assert store.find(clip) is None and store.read(clip) is None


@given(st.data(), st.sampled_from([b"planned", b"checksum", b"metadata", b"fingerprint", b"shape", b"indices", None]))
@settings(max_examples=60, deadline=None)
def test_damage_to_the_header_gives_no_other_numbers(tmp_path_factory, clip, data, near):
    store = prepare(tmp_path_factory.mktemp("store"))
    written = make_entry()
    path = write(store, clip, written)
    content = bytearray(path.read_bytes())
    end = 8 + int.from_bytes(content[:8], "little")
    position = content.index(near) + data.draw(st.integers(0, 20)) if near else data.draw(st.integers(0, end - 1))
    content[position] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    store.find(clip)
    read = store.read(clip)
    assert read is None or (np.array_equal(read.features, written.features) and read.planned == written.planned)


def test_an_entry_under_the_key_of_another_clip_is_damaged(store, clip, tmp_path):
    other = dataclasses.replace(clip, path=tmp_path / "b.mp4")
    other.path.write_bytes(b"other content")
    path = store.path(store.key(other))
    path.parent.mkdir()
    write(store, clip, make_entry()).rename(path)
    assert store.find(other) is None and store.read(other) is None


def test_a_changed_file_has_no_features_until_it_changes_back(store, tmp_path):
    clip = Clip(id="a", path=tmp_path / "a.mp4", label="", group="")
    clip.path.write_bytes(b"one")
    write(store, clip, make_entry())
    clip.path.write_bytes(b"two!")
    assert store.find(clip) is None
    clip.path.write_bytes(b"one")
    assert store.find(clip)
    clip.path.unlink()
    assert store.find(clip) is None and store.read(clip) is None


def test_segments_have_entries_of_their_own(store, clip):
    part = dataclasses.replace(clip, id=clip.id + "@0-1", start=0.0, end=1.0)
    write(store, clip, make_entry(seed=1))
    write(store, part, make_entry(seed=2))
    assert not np.array_equal(store.read(clip).features, store.read(part).features)


def test_partial_entries_count_only_if_they_hold_enough(tmp_path, clip):
    stores = {share: prepare(tmp_path, decode=DecodeConfig(min_readable=share)) for share in (0.5, 0.75, 1)}
    write(stores[1], clip, make_entry(frames=6, planned=8))
    assert [share for share, store in stores.items() if store.find(clip)] == [0.5, 0.75]


def test_an_unchanged_file_is_hashed_once(tmp_path, clip, monkeypatch):
    digest = ContentIndex(tmp_path).sha256(clip.path)
    [file] = (tmp_path / "index").iterdir()
    file.write_text('["cut off\n[1, 2]\nnull\n' + file.read_text() + '\n["/cut')
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.features.store.read_content", None)
        assert ContentIndex(tmp_path).sha256(clip.path) == digest
    os.utime(clip.path, ns=(0, 0))
    assert ContentIndex(tmp_path).find(clip.path) is None
    assert ContentIndex(tmp_path).sha256(clip.path) == digest == ContentIndex(tmp_path).find(clip.path)


def test_failures_are_recorded_until_features_are_written(store, clip, tmp_path):
    store.record_failure(store.key(clip), clip, Failure("timeout after 60 s", "decord"))
    store.record_failure(store.key(clip), clip, Failure("empty file"))
    gone = dataclasses.replace(clip, path=tmp_path / "gone.mp4")
    reasons = {failed: failure.reason for failed, failure in store.failures([clip, gone]).items()}
    assert reasons == {clip: "empty file", gone: "No such file or directory"}
    write(store, clip, make_entry())
    assert not store.failures([clip])


def test_a_failed_write_leaves_nothing_behind(store, clip, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", full)
        with pytest.raises(KinemaError, match="No space left on device; run the same command again to resume"):
            write(store, clip, make_entry())
    assert not list(store.folder.glob("??/*")) and not list(store.folder.rglob("*.tmp"))
    assert store.find(clip) is None


def test_temporary_files_of_killed_processes_are_removed_after_a_day(store):
    (store.folder / "tmp" / "new").touch()
    (store.folder / "tmp" / "old").touch()
    os.utime(store.folder / "tmp" / "old", (0, 0))
    prepare(store.folder.parent)
    assert [path.name for path in (store.folder / "tmp").iterdir()] == ["new"]


def test_a_claim_holds_until_its_process_ends(store):
    code = "import sys; from pathlib import Path; from pipeline.features.store import FeatureStore\n"
    code += "store = FeatureStore(Path(sys.argv[1]), 0.5); print(store.claim('key'), flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, store.folder]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "True\n"
        assert not store.claim("key") and store.claim("other key")
        other.kill()
    assert store.claim("key")
    store.release("key")
    assert FeatureStore(store.folder / "missing", 0.5).claim("key")  # Nowhere to lock.


def test_settings_that_change_the_numbers_change_the_fingerprint(tmp_path):
    others = [BackboneConfig(view="pooled"), BackboneConfig(crop="timm"), BackboneConfig(precision="fp32")]
    configs = [Config(), *(Config(backbone=other) for other in others), Config(sampling=SamplingConfig(frames=17))]
    fingerprints = {fingerprint(config, backbone()) for config in configs} | {fingerprint(Config(), backbone("1"))}
    assert len(fingerprints) == 6
    same = Config(backbone=BackboneConfig(engine="torch"), decode=DecodeConfig(workers=1), store=tmp_path)
    assert fingerprint(same, backbone()) == fingerprint(Config(), backbone())


def test_the_last_extraction_with_the_same_settings_is_found(tmp_path, store):
    root, weights = store.folder.parent, tmp_path / "weights.pth"

    def found(**more):
        return FeatureStore.last(Config(store=root, **more)).folder

    def prepare_later(cnn, **more):
        folder = FeatureStore.prepare(Config(store=root, **more), cnn).folder
        os.utime(folder / "manifest.json", (prepare_later.time, prepare_later.time))
        prepare_later.time += 1
        return folder

    prepare_later.time = 2**31
    assert found() == found(backbone=BackboneConfig(engine="torch")) == store.folder
    newer = prepare_later(backbone("1"))
    assert found() == newer != store.folder
    prepare_later(backbone())
    assert found() == store.folder
    (store.folder / "manifest.json").write_text("{")
    assert found() == newer

    weights.write_bytes(b"any")
    by_file = {"backbone": BackboneConfig(weights=weights)}
    others = [by_file, {"sampling": SamplingConfig(frames=17)}, {"backbone": BackboneConfig(view="pooled")}]
    for other in others:
        with pytest.raises(KinemaError, match="no features with these settings; run kinema extract"):
            found(**other)
    folder = prepare_later(backbone("2"), **by_file)
    weights.write_bytes(b"the same weights in another format")
    assert prepare_later(backbone("2"), **by_file) == folder == found(**by_file)
    weights.write_bytes(b"other weights")
    with pytest.raises(KinemaError, match="no features with these settings"):
        found(**by_file)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match=r"weights\.pth"):
        found(**by_file)


def test_the_manifest_and_the_cnn_are_written_once_and_repaired(store):
    manifest, cnn = store.folder / "manifest.json", store.backbone_file
    content, inodes = (manifest.read_bytes(), cnn.read_bytes()), (manifest.stat().st_ino, cnn.stat().st_ino)
    assert json.loads(content[0])["sampling"] == {"frames": 16, "rate": None} and content[1] == backbone().saved()
    assert json.loads(content[0])["cosine_to_fp32"] == {ENGINE: 0.9999}
    prepare(store.folder.parent)
    assert (manifest.stat().st_ino, cnn.stat().st_ino) == inodes
    manifest.write_text("{")
    cnn.write_bytes(b"")
    prepare(store.folder.parent)
    assert (manifest.read_bytes(), cnn.read_bytes()) == content


def test_a_folder_without_features_names_those_below_it(store):
    _, error = kinema("store", "verify", "--store", store.folder.parents[1], code=2)
    assert f"no features here; some are in {store.folder.parent};" in error
