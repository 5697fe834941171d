import copy
import dataclasses
import json
import os
import shutil
import socket
import subprocess
import sys

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file

from pipeline.base.errors import ConfigError, KinemaError
from pipeline.config import BackboneConfig, SamplingConfig
from pipeline.data.clip import Clip, Source
from pipeline.features.backbone import Backbone
from pipeline.features.entry import ClipFeatures
from pipeline.features.store import FeatureStore, fingerprint
from pipeline.video.workers import Failure

from conftest import write_video

ENGINE = "torch fp32 on cpu"


@pytest.fixture(scope="module")
def backbone():
    return Backbone(BackboneConfig(), torch.device("cpu"))


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = write_video(tmp_path_factory.mktemp("clip") / "a.mp4", "libx264", frames=4)
    return Clip(id="Run/a.mp4", path=path, label="Run", group="a")


@pytest.fixture
def store(tmp_path, backbone):
    return FeatureStore.prepare(tmp_path, backbone, SamplingConfig(), 0.5)


@pytest.fixture
def entry(clip):
    return make_entry(clip)


def make_entry(clip, frames=3, width=5, seed=0, planned=None):
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(frames, width)).astype(np.float16)
    pts, indices = np.arange(frames, dtype=np.float32), np.arange(frames)
    return ClipFeatures(features, pts, indices, planned or frames, "decord", Source.of(clip.path))


def only_file(store):
    [path] = store.folder.glob("??/*.safetensors")
    return path


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.integers(1, 64), st.integers(0, 2**32 - 1))
def test_what_is_written_is_read(tmp_path_factory, backbone, clip, frames, width, seed):
    store = FeatureStore.prepare(tmp_path_factory.mktemp("store"), backbone, SamplingConfig(), 0.5)
    written = make_entry(clip, frames, width, seed)
    store.write(clip, written, ENGINE)
    read = store.read(clip)
    assert all(np.array_equal(a, b) for a, b in zip(read[:3], written[:3], strict=True)) and read[3:] == written[3:]
    assert [array.dtype for array in read[:3]] == [np.float16, np.float32, np.int64]


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_any_damage_is_noticed(tmp_path_factory, backbone, clip, data):
    store = FeatureStore.prepare(tmp_path_factory.mktemp("store"), backbone, SamplingConfig(), 0.5)
    store.write(clip, make_entry(clip), ENGINE)
    content = bytearray(only_file(store).read_bytes())
    start = content.rindex(b"}") + 1  # Behind the header: the numbers themselves.
    position = data.draw(st.integers(start, len(content) - 1))
    while content[position] == 32:  # Padding of the header, no number.
        position += 1
    content[position] ^= data.draw(st.integers(1, 255))
    only_file(store).write_bytes(content)
    assert store.read(clip) is None
    assert store.find(clip) is None  # It was removed.
    store.write(clip, make_entry(clip), ENGINE)
    only_file(store).write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    assert store.find(clip) is None
    assert store.read(clip) is None


@given(st.data(), st.sampled_from([b"planned", b"checksum", b"about", b"source", b"indices", None]))
@settings(max_examples=60, deadline=None)
def test_damage_to_a_header_harms_nothing(tmp_path_factory, backbone, clip, data, key):
    store = FeatureStore.prepare(tmp_path_factory.mktemp("store"), backbone, SamplingConfig(), 0.5)
    written = make_entry(clip)
    store.write(clip, written, ENGINE)
    content = bytearray(only_file(store).read_bytes())
    end = content.rindex(b"}")
    position = content.index(key) if key else data.draw(st.integers(0, end))
    content[position] ^= data.draw(st.integers(1, 255))
    only_file(store).write_bytes(content)
    store.find(clip)
    read = store.read(clip)
    assert read is None or np.array_equal(read.features, written.features)


def test_a_changed_source_makes_the_entry_invalid(store, clip, entry):
    store.write(clip, entry, ENGINE)
    assert store.find(clip) is not None
    stat = clip.path.stat()
    os.utime(clip.path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert store.find(clip) is None
    os.utime(clip.path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert store.find(clip) is not None


def test_every_setting_that_changes_the_numbers_changes_the_fingerprint(backbone, store, tmp_path):
    weights = tmp_path / "weights.safetensors"
    save_file({name: value + 1 for name, value in backbone.state.items()}, weights)
    others = [{"view": "pooled"}, {"crop": "timm"}, {"precision": "fp32"}, {"weights": weights}, {"model": "resnet10t"}]
    others[-1] |= {"weights": tmp_path / "other.safetensors"}
    save_file(timm.create_model("resnet10t").state_dict(), others[-1]["weights"])
    built = [Backbone(BackboneConfig(**settings), torch.device("cpu")) for settings in others]
    fingerprints = {fingerprint(other.description, SamplingConfig()) for other in built}
    fingerprints |= {store.fingerprint, fingerprint(backbone.description, SamplingConfig(frames=17))}
    assert len(fingerprints) == 7
    by_another_engine = Backbone(BackboneConfig(engine="torch"), torch.device("cpu"))
    assert fingerprint(by_another_engine.description, SamplingConfig()) == store.fingerprint
    assert backbone.description["transform"]["input_size"] == [3, 224, 224]  # Other versions of timm may have another.


def test_the_last_extraction_with_the_same_settings_is_found_without_the_cnn(tmp_path, backbone, store):
    def found(backbone=BackboneConfig(), sampling=SamplingConfig(), root=tmp_path):  # noqa: B008  (frozen)
        return FeatureStore.last(root, backbone, sampling, 0.5).folder

    assert found() == store.folder
    assert found(BackboneConfig(engine="torch")) == store.folder
    newer = FeatureStore.prepare(tmp_path, with_weights(backbone, "0"), SamplingConfig(), 0.5)
    assert found() == newer.folder != store.folder
    FeatureStore.prepare(tmp_path, backbone, SamplingConfig(), 0.5)
    assert found() == store.folder
    (store.folder / "manifest.json").write_text("{")
    assert found() == newer.folder
    others = [{"backbone": BackboneConfig(view="pooled")}, {"backbone": BackboneConfig(crop="timm")}]
    others += [{"sampling": SamplingConfig(frames=17)}]
    weights = tmp_path / "weights.pth"
    weights.write_bytes(b"any")
    others += [{"backbone": BackboneConfig(weights=weights)}, {"root": tmp_path / "none"}]
    for other in others:
        with pytest.raises(KinemaError, match="no features with these settings; run kinema extract"):
            found(**other)
    of_a_file = with_weights(backbone, "1")
    of_a_file.weights_file = weights
    folder = FeatureStore.prepare(tmp_path, of_a_file, SamplingConfig(), 0.5).folder
    of_a_file.weights_file = tmp_path / "the same in another form.pth"
    of_a_file.weights_file.write_bytes(b"other bytes")
    FeatureStore.prepare(tmp_path, of_a_file, SamplingConfig(), 0.5)
    assert found(BackboneConfig(weights=weights)) == folder
    assert found(BackboneConfig(weights=of_a_file.weights_file)) == folder
    weights.write_bytes(b"written over")
    with pytest.raises(KinemaError, match="no features with these settings; run kinema extract"):
        found(BackboneConfig(weights=weights))
    weights.unlink()
    with pytest.raises(ConfigError, match=r"weights\.pth: cannot read the weight file"):
        found(BackboneConfig(weights=weights))


def test_weights_that_a_model_holds_by_two_names_are_saved(tmp_path):
    torch.save(timm.create_model("coat_tiny", num_classes=0).state_dict(), tmp_path / "coat.pth")
    config = BackboneConfig(model="coat_tiny", weights=tmp_path / "coat.pth", view="pooled")
    backbone = Backbone(config, torch.device("cpu"))
    backbone.save(tmp_path / "saved.safetensors")
    assert backbone.is_saved_in(tmp_path / "saved.safetensors")
    again = Backbone(config, torch.device("cpu"), tmp_path / "saved.safetensors")
    assert again.description == backbone.description


def with_weights(backbone, digest):
    other = copy.copy(backbone)
    other.description = backbone.description | {"weights_sha256": digest}
    return other


def test_the_manifest_says_it_in_words(store, backbone):
    manifest = json.loads((store.folder / "manifest.json").read_text())
    assert manifest["backbone"]["model"] == "tf_efficientnet_lite0"
    assert manifest["sampling"] == {"frames": 16}
    [(engine, cosine)] = manifest["cosine_to_fp32"].items()
    assert engine == backbone.engine and 0.999 <= cosine <= 1.001


def test_the_ledger_keeps_the_last_reason(tmp_path, backbone, store, clip):
    store.record_failure(clip, Failure("timeout 60 s"))
    with store.ledger.path.open("a") as stream:
        stream.write('{"clip": "half a li')
    store = FeatureStore.prepare(tmp_path, backbone, SamplingConfig(), 0.5)
    store.record_failure(clip, Failure("empty file"))
    [line] = store.ledger.failures([clip]).values()
    assert (line["clip"], line["reason"], line["attempt"], line["deadly"]) == (clip.id, "empty file", 2, False)


def test_a_clip_that_ended_two_processes_is_given_up_until_its_file_changes(store, clip):
    store.record_failure(clip, Failure("timeout 60 s", deadly=True))
    assert store.ledger.given_up([clip]) == {clip.id}
    elsewhere = clip.path.with_name("elsewhere.mp4")
    shutil.copy2(clip.path, elsewhere)
    assert store.ledger.given_up([dataclasses.replace(clip, path=elsewhere)]) == {clip.id}
    os.utime(clip.path)
    assert store.ledger.given_up([clip]) == set()


def test_partial_entries_count_only_if_they_hold_enough(tmp_path, backbone, clip):
    stores = {share: FeatureStore.prepare(tmp_path, backbone, SamplingConfig(), share) for share in (0.5, 0.75, 1)}
    stores[1].write(clip, make_entry(clip, frames=6, planned=8), ENGINE)
    assert [share for share, store in stores.items() if store.find(clip)] == [0.5, 0.75]


def test_a_touched_source_is_renewed_and_a_changed_one_is_not(store, tmp_path, clip):
    path = tmp_path / "twin.mp4"
    path.write_bytes(clip.path.read_bytes())
    twin = dataclasses.replace(clip, path=path)
    store.write(twin, make_entry(twin), ENGINE)
    os.utime(path, ns=(0, 0))
    assert store.find(twin) is None and store.renew(twin) and store.find(twin) is not None
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert store.find(twin) is None and not store.renew(twin)


def test_a_renamed_source_keeps_its_features(tmp_path, backbone, clip):
    """Each part of it its own; a file that is still there under its old name is another clip's."""
    old, new = tmp_path / "Run" / "a.mp4", tmp_path / "Jog" / "b.mp4"
    for path in (old, new):
        path.parent.mkdir()
    old.write_bytes(clip.path.read_bytes())
    before = [dataclasses.replace(clip, path=old, id=f"Run/a.mp4{part}") for part in ("", "@0-1e-05", "@0-")]
    after = [dataclasses.replace(clip, path=new, id=f"Jog/b.mp4{part}") for part in ("", "@0-1e-05", "@0-", "@0-2.0")]
    store = FeatureStore.prepare(tmp_path / "store", backbone, SamplingConfig(), 0.5)
    for seed, part in enumerate(before):
        store.write(part, make_entry(part, seed=seed), ENGINE)
    new.write_bytes(old.read_bytes())
    assert not store.renew(after[0])
    old.unlink()
    store = FeatureStore.prepare(tmp_path / "store", backbone, SamplingConfig(), 0.5)
    assert [store.renew(part) for part in after] == [True, True, True, False]
    for seed, part in enumerate(after[:3]):
        assert store.find(part) and np.array_equal(store.read(part).features, make_entry(part, seed=seed).features)
    new.write_bytes(new.read_bytes()[:-1] + b"x")
    other = dataclasses.replace(after[0], id="Jog/c.mp4")
    assert not store.renew(other)


def test_what_a_killed_writer_left_is_removed(tmp_path, backbone, store):
    dead = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True
    ).stdout
    names = [f".a.safetensors.{pid}.{socket.gethostname()}.{'0' * 32}.tmp" for pid in (dead.strip(), os.getpid())]
    (store.folder / "aa").mkdir()
    for name in names:
        (store.folder / "aa" / name).touch()
    FeatureStore.prepare(tmp_path, backbone, SamplingConfig(), 0.5)
    assert [path.name for path in (store.folder / "aa").iterdir()] == [names[1]]


def test_the_cnn_of_a_store_can_be_read_by_all_and_is_the_one_that_makes_its_features(tmp_path, backbone, store):
    mask = os.umask(0o022)
    try:
        for content in (b"", save({"a": torch.zeros(2)})):
            store.backbone_file.write_bytes(content)
            FeatureStore.prepare(tmp_path, backbone, SamplingConfig(), 0.5)
            assert backbone.is_saved_in(store.backbone_file)
            assert store.backbone_file.stat().st_mode & 0o777 == 0o644
    finally:
        os.umask(mask)


def test_a_failed_write_leaves_nothing_behind(store, clip, entry, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(KinemaError, match="No space left on device"):
        store.write(clip, entry, ENGINE)
    assert not list(store.folder.glob("??/*"))
    assert store.find(clip) is None


def test_clips_of_one_file_have_entries_of_their_own(store, clip):
    part = dataclasses.replace(clip, id=clip.id + "@0-1", start=0.0, end=1.0)
    store.write(clip, make_entry(clip, seed=1), ENGINE)
    store.write(part, make_entry(clip, seed=2), ENGINE)
    assert not np.array_equal(store.read(clip).features, store.read(part).features)


def test_two_data_sets_in_one_store_are_told_apart(store, clip, entry, tmp_path):
    """A name that both have would be computed by turns; a copy of the same file is no other."""
    store.write(clip, entry, ENGINE)
    copy_of_it = tmp_path / "copy.mp4"
    copy_of_it.write_bytes(clip.path.read_bytes())
    of_copy = dataclasses.replace(clip, path=copy_of_it)
    store.make_way(of_copy)
    copy_of_it.write_bytes(b"another video")
    with pytest.raises(KinemaError, match="give each data set its own --store"):
        store.make_way(of_copy)
    store.make_way(dataclasses.replace(of_copy, id="Run/b.mp4"))
    store.make_way(clip)
    assert store.read(clip)
    clip.path.unlink()
    store.make_way(of_copy)
    assert not store.read(clip)
