import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pipeline.base.errors import KinemaError
from pipeline.config import DataConfig
from pipeline.data.clip import Clip
from pipeline.data.splits import check_leaks, hold_out, load_dataset

from conftest import touch, write_csv


def test_a_group_in_two_splits_stops_the_run(tmp_path):
    touch(tmp_path, *(f"{number}.mp4" for number in range(4)))
    rows = [("path", "label", "group", "split"), ("0.mp4", "a", "yard", "train"), ("1.mp4", "a", "yard", "test")]
    rows += [("2.mp4", "b", "hall", "train"), ("3.mp4", "b", "park", "val")]
    with pytest.raises(
        KinemaError, match=r"1 groups are in several splits; .*: 0\.mp4 \(yard, train\), 1\.mp4 \(yard, test\)$"
    ):
        load_dataset(DataConfig(root=tmp_path, lists=write_csv(tmp_path / "list.csv", *rows)))


def test_a_file_in_two_splits_stops_the_run(tmp_path):
    """Even if its segments have different groups."""
    touch(tmp_path, *(f"{number}.mp4" for number in range(4)))
    rows = [("path", "label", "group", "split", "start", "end"), ("0.mp4", "a", "1", "train", 0, 2)]
    rows += [
        ("0.mp4", "a", "2", "test", 1, 3),
        ("1.mp4", "b", "3", "train", "", ""),
        ("2.mp4", "b", "4", "val", "", ""),
    ]
    with pytest.raises(KinemaError, match=r"1 files are in several splits; .*0\.mp4@0-2\.0 .*0\.mp4@1\.0-3\.0"):
        load_dataset(DataConfig(root=tmp_path, lists=write_csv(tmp_path / "list.csv", *rows)))


def test_similar_class_names_are_reported(tmp_path, capsys):
    """File names on a Mac write an umlaut as two characters."""
    names = ["R\u00fcck", "Ru\u0308ck", "smash", "Smash", "smash hit"]
    touch(tmp_path, *(f"{label}/{number}.mp4" for label in names for number in range(4)))
    assert len(load_dataset(DataConfig(root=tmp_path)).classes) == 5
    assert "'Ru\u0308ck' and 'R\u00fcck', 'Smash' and 'smash'" in capsys.readouterr().out


def test_segments_of_one_file_are_one_group(tmp_path):
    names = [f"{number}.mp4" for number in range(12)]
    touch(tmp_path / "videos", *names)
    rows = [("path", "label", "start", "end")]
    rows += [(name, label, start, start + 1) for name in names for start, label in enumerate("ab")]
    dataset = load_dataset(DataConfig(root=tmp_path / "videos", lists=write_csv(tmp_path / "list.csv", *rows)))
    files = {split: {clip.path for clip in dataset.of(split)} for split in ("train", "val", "test")}
    assert all(files.values()) and sum(map(len, files.values())) == len(names)


def test_official_lists_do_not_leak(real_clips, tmp_path):
    """Every split of the official UCF101 and HMDB51 lists passes, over empty files of the right names."""
    lists = real_clips.parent / "splits"
    ucf101 = [lists / "ucf101" / name for name in ("trainlist01.txt", "testlist01.txt")]
    touch(tmp_path / "ucf101", *(line.split()[0] for file in ucf101 for line in file.open()))
    for file in (lists / "hmdb51").glob("*_test_split1.txt"):
        label = file.name.split("_test_split")[0]
        touch(tmp_path / "hmdb51", *(f"{label}/{line.rsplit(maxsplit=1)[0]}" for line in file.open()))
    for split in (1, 2, 3):
        dataset = load_dataset(DataConfig(root=tmp_path / "ucf101", lists=lists / "ucf101", split=split))
        assert len(dataset.classes) == 101 and len(dataset.clips) == 13_320
        assert all({clip.label for clip in dataset.of(part)} == set(dataset.classes) for part in ("val", "test"))
        dataset = load_dataset(DataConfig(root=tmp_path / "hmdb51", lists=lists / "hmdb51", split=split))
        assert len(dataset.classes) == 51 and len(dataset.of("test")) == 1530


@pytest.mark.parametrize("clips", [1, 2])
def test_too_few_recordings_are_counted_per_class(tmp_path, clips):
    """Of all clips, before any are held out."""
    touch(tmp_path / "own", *(f"{label}/{label}{number}.mp4" for label in ("jump", "run") for number in range(clips)))
    touch(tmp_path / "ucf", *(f"{label}/v_{label}_g0{clips}_c0{c}.avi" for label in ("jump", "run") for c in range(3)))
    for folder, groups in (("own", clips), ("ucf", 1)):
        with pytest.raises(KinemaError, match=rf"No class has three recordings .*: jump {groups}, run {groups}; add"):
            load_dataset(DataConfig(root=tmp_path / folder))


def test_a_set_without_training_clips_is_refused(tmp_path):
    touch(tmp_path, "0.mp4")
    lists = write_csv(tmp_path / "list.csv", ("path", "label", "split"), ("0.mp4", "a", "test"))
    with pytest.raises(KinemaError, match="Cannot hold out any of 0 training clips"):
        load_dataset(DataConfig(root=tmp_path, lists=lists))


def test_classes_without_clips_in_a_split_are_named(tmp_path, capsys):
    rows = [("path", "label", "split"), ("0.mp4", "a", "train"), ("1.mp4", "a", "train"), ("2.mp4", "b", "test")]
    touch(tmp_path, *(f"{number}.mp4" for number in range(6)))
    with pytest.raises(KinemaError, match=r"Classes without train clips .*: b 1\."):
        load_dataset(DataConfig(root=tmp_path, lists=write_csv(tmp_path / "list.csv", *rows)))
    rows += [("3.mp4", "c", "train"), ("4.mp4", "b", "train"), ("5.mp4", "c", "train")]
    load_dataset(DataConfig(root=tmp_path, lists=write_csv(tmp_path / "list.csv", *rows)))
    output = capsys.readouterr().out
    assert re.search(r"Warning: Classes without test clips .*: a 2, c 2\.", output)
    assert re.search(r"Warning: Classes without val clips .*: b 2\.", output)
    rows = [(*row[:2], "train" if row[2] == "test" else row[2]) for row in rows]
    load_dataset(DataConfig(root=tmp_path, lists=write_csv(tmp_path / "list.csv", *rows)))
    output = capsys.readouterr().out
    assert re.search(r"Classes without test clips .*: a 2, b 2, c 2\. Add clips\.", output)


@pytest.mark.parametrize("seed", range(8))
def test_held_out_clips_have_all_classes_if_possible(seed):
    groups = "001122334455"
    clips = [Clip(id=str(n), path=Path(str(n)), label="ab"[group > "3"], group=group) for n, group in enumerate(groups)]
    held = hold_out(clips, 0.25, seed)
    assert {clip.label for clip, is_held in zip(clips, held, strict=True) if is_held} == {"a", "b"}


def test_no_more_than_half_is_held_out_if_a_group_is_large():
    groups = ["large"] * 70 + [str(number // 3) for number in range(30)]
    clips = [Clip(id=str(n), path=Path(str(n)), label="abc"[n % 3], group=group) for n, group in enumerate(groups)]
    for seed in range(5):
        assert 0 < hold_out(clips, 0.25, seed).sum() <= 50


groups_and_labels = st.lists(st.tuples(st.integers(0, 12), st.sampled_from("abc")), min_size=8, max_size=120).filter(
    lambda pairs: len({group for group, _ in pairs}) > 1
)


@settings(max_examples=50, deadline=None)
@given(groups_and_labels, st.floats(0.05, 0.5), st.integers(0, 5))
def test_holding_out_never_splits_a_group(pairs, fraction, seed):
    clips = [
        Clip(id=str(number), path=Path(str(number)), label=label, group=str(group))
        for number, (group, label) in enumerate(pairs)
    ]
    assume(max(Counter(clip.label for clip in clips).values()) > 1)
    held = hold_out(clips, fraction, seed)
    assert 0 < held.sum() < len(clips)
    assert (held == hold_out(clips, fraction, seed)).all()
    marked = [
        Clip(id=c.id, path=c.path, label=c.label, group=c.group, split="val" if h else "train")
        for c, h in zip(clips, held, strict=True)
    ]
    check_leaks(marked)
