import os
import subprocess
import sys

import av
import pytest

from pipeline.base.errors import ConfigError, KinemaError
from pipeline.config import DataConfig
from pipeline.data.clip import group_of
from pipeline.data.folder import read_folder
from pipeline.data.splits import load_dataset
from pipeline.video.timestamps import read_table

from conftest import REPOSITORY, paint, touch, write_csv


@pytest.fixture
def ucf(tmp_path):
    names = [f"{label}/v_{label}_g{group:02d}_c01.avi" for label in ("Run", "Sit") for group in range(1, 9)]
    touch(tmp_path / "videos", *names)
    lists = tmp_path / "lists"
    lists.mkdir()
    (lists / "classInd.txt").write_text("1 Run\n2 Sit\n", encoding="utf-8-sig")  # As Windows saves it.
    train = [name for name in names if int(name.split("_g")[1][:2]) > 2]
    (lists / "trainlist01.txt").write_text("".join(f"{name} {1 + name.startswith('Sit')}\r\n" for name in train))
    (lists / "testlist01.txt").write_text("".join(f"{name}\n" for name in names if name not in train))
    return DataConfig(root=tmp_path / "videos", lists=lists)


def test_ucf101_lists(ucf):
    dataset = load_dataset(ucf)
    assert dataset.classes == ["Run", "Sit"] and dataset.split == 1
    assert {clip.group for clip in dataset.of("test")} == {"g01", "g02"}
    assert len(dataset.of("train")) + len(dataset.of("val")) == 12
    assert {clip.label for clip in dataset.of("val")} == {"Run", "Sit"}


@pytest.mark.parametrize(
    ("file", "line", "message"),
    [
        ("trainlist01.txt", "Run/v_Run_g99_c01.avi 1", "1 of 17 listed files are not in .*: Run/v_Run_g99_c01.avi"),
        ("trainlist01.txt", "Fly/v_Fly_g03_c01.avi 1", "trainlist01.txt:13: .* as in classInd.txt, got 'Fly/v_Fly_g03"),
        ("trainlist01.txt", "Run/v_Run_g03_c01.avi 2", "trainlist01.txt:13: .* as in classInd.txt, got 'Run/v_Run_g03"),
        ("trainlist01.txt", "nonsense", "trainlist01.txt:13: expected '<class>/<file> <number>'"),
        ("trainlist01.txt", "Run/v_Run_g01_c01.avi 1", "listed more than once: Run/v_Run_g01_c01.avi"),
        ("classInd.txt", "Jump", "classInd.txt:3: expected '<number> <class>'"),
    ],
)
def test_wrong_lines_are_named(ucf, file, line, message):
    with (ucf.lists / file).open("a") as stream:
        stream.write(line + "\n")
    with pytest.raises(KinemaError, match=message) as caught:
        load_dataset(ucf)
    assert "\n" not in str(caught.value)


def test_folders_without_videos_are_reported(tmp_path, capsys):
    touch(tmp_path, *(f"a/{number}.mp4" for number in range(4)), "empty/notes.txt")
    assert load_dataset(DataConfig(root=tmp_path)).classes == ["a"]
    out = capsys.readouterr().out
    assert "Skipped folders without videos: empty." in out
    assert "only one class, a" in out


def test_unreadable_folders_stop_the_run(tmp_path):
    touch(tmp_path, *(f"{label}/{number}.mp4" for label in "ab" for number in range(4)))
    (tmp_path / "b").chmod(0)
    as_user = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
    command = [*as_user, sys.executable, "-m", "pipeline.cli", "failures", "--data.root", str(tmp_path)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    (tmp_path / "b").chmod(0o755)
    message = f"kinema: {tmp_path / 'b'}: Permission denied; make it readable or move it out of data.root\n"
    assert (done.returncode, done.stderr) == (1, message)


def test_hmdb51_lists(tmp_path):
    names = [f"Film_{n}_run_f_cm_np1_ba_med_{c}.avi" for n in range(6) for c in range(2)]
    touch(tmp_path / "videos", *(f"run/{name}" for name in names))
    lists = tmp_path / "lists"
    lists.mkdir()
    use = {"Film_0": 2, "Film_1": 0}
    lines = [f"{name} {use.get(name[:6], 1)} \n" for name in names]
    (lists / "run_test_split2.txt").write_text("".join(lines))
    dataset = load_dataset(DataConfig(root=tmp_path / "videos", lists=lists, split=2))
    assert {clip.group for clip in dataset.of("test")} == {"run/Film_0"}
    assert len(dataset.clips) == 10
    group = group_of("shoot_bow/Return_of_the_King_7_shoot_bow_u_nm_np10_ba_med_2.avi", "shoot_bow")
    assert group == "shoot_bow/Return_of_the_King_7"
    (lists / "run_test_split2.txt").write_text("Film_0_run_f_cm_np1_ba_med_0.avi 3\n")
    with pytest.raises(KinemaError, match=r"run_test_split2.txt:1: expected '<file> 0\|1\|2'"):
        load_dataset(DataConfig(root=tmp_path / "videos", lists=lists, split=2))
    with pytest.raises(ConfigError, match=r"has neither classInd.txt \(UCF101\) nor \*_test_split3.txt"):
        load_dataset(DataConfig(root=tmp_path / "videos", lists=lists, split=3))


def test_one_folder_per_class(tmp_path):
    touch(tmp_path, *(f"{label}/sub/{n}.mp4" for label in "ab" for n in range(10)), "a/notes.txt")
    dataset = load_dataset(DataConfig(root=tmp_path))
    assert dataset.classes == ["a", "b"] and dataset.split == "by group, seed 0"
    assert {split: len(dataset.of(split)) for split in ("train", "val", "test")} == {"train": 13, "val": 2, "test": 5}


def test_videos_outside_of_class_folders_are_reported(tmp_path, capsys):
    touch(tmp_path, *(f"{label}/{number}.mp4" for label in ("a", "b") for number in range(4)), "loose.mp4")
    assert len(load_dataset(DataConfig(root=tmp_path)).clips) == 8
    assert "Skipped 1 videos outside of class folders: loose.mp4." in capsys.readouterr().out


def test_folder_with_given_splits(tmp_path):
    touch(tmp_path, *(f"{split}/a/{split}{n}.mp4" for split in ("train", "val", "test") for n in range(3)))
    dataset = load_dataset(DataConfig(root=tmp_path))
    assert dataset.split == "predefined" and [clip.id for clip in dataset.of("val")] == [
        f"val/a/val{n}.mp4" for n in range(3)
    ]


def test_train_and_val_folders_alone_are_refused(tmp_path):
    touch(tmp_path, "train/a/1.mp4", "val/a/2.mp4")
    with pytest.raises(KinemaError, match="needs both train and test"):
        load_dataset(DataConfig(root=tmp_path))


def test_split_folders_in_any_case(tmp_path):
    touch(tmp_path, *(f"{split}/a/{split}{n}.mp4" for split in ("Train", "Validation", "TEST") for n in range(3)))
    dataset = load_dataset(DataConfig(root=tmp_path))
    assert {split: len(dataset.of(split)) for split in ("train", "val", "test")} == {"train": 3, "val": 3, "test": 3}
    touch(tmp_path, "walk/1.mp4")
    with pytest.raises(KinemaError, match="has TEST, Train, Validation, walk; keep one folder per split"):
        load_dataset(DataConfig(root=tmp_path))


def test_links_are_followed_and_hidden_files_skipped(tmp_path, capsys):
    touch(tmp_path / "elsewhere", *(f"{n}.mp4" for n in range(9)))
    touch(
        tmp_path / "videos", *(f"walk/{n}.MTS" for n in range(9)), "walk/._0.mp4", "__MACOSX/walk/0.mp4", "walk/a.txt"
    )
    (tmp_path / "videos" / "run").symlink_to(tmp_path / "elsewhere")
    touch(tmp_path / "videos" / "run" / "folder.mp4", "frame.mp4")
    (tmp_path / "videos" / "walk" / "again").symlink_to(tmp_path / "videos")
    (tmp_path / "elsewhere" / "other").symlink_to(tmp_path / "videos" / "walk")
    (tmp_path / "videos" / "walk" / "other").symlink_to(tmp_path / "elsewhere")
    dataset = load_dataset(DataConfig(root=tmp_path / "videos"))
    assert dataset.classes == ["run", "walk"] and len(dataset.clips) == 2 * 19
    assert "Skipped 2 files without a video extension (2 x .txt)." in capsys.readouterr().out


def test_csv_with_segments_and_groups(tmp_path):
    touch(tmp_path / "videos", "x.mp4", "y.mp4", "z.mp4")
    rows = [("path", "label", "group", "split", "start", "end")]
    rows += [("x.mp4", "a", "1", "train", "0", "2.5"), ("x.mp4", "b", "1", "train", "2.5", "")]
    rows += [("y.mp4", "a", "2", "val", "", ""), ("z.mp4", "b", "3", "test", "", "")]
    dataset = load_dataset(DataConfig(root=tmp_path / "videos", lists=write_csv(tmp_path / "list.csv", *rows)))
    assert [clip.id for clip in dataset.clips] == ["x.mp4@0-2.5", "x.mp4@2.5-", "y.mp4", "z.mp4"]
    assert dataset.clips[1].start == 2.5 and dataset.clips[1].end is None


@pytest.mark.parametrize(
    ("header", "row", "message"),
    [
        ("path,label", "x.mp4,", "list.csv:2: empty label"),
        ("path,label", "x.mp4,a,b", "list.csv:2: expected 2 columns, got 3"),
        ("path,class", "x.mp4,a", "list.csv:1: the header lacks label"),
        ("path,label,split", "x.mp4,a,learn", "list.csv:2: unknown split 'learn'"),
        ("path,label,group", "x.mp4,a,1\ny.mp4,a,", "list.csv:3: empty group, which other rows have"),
        ("path,label,split", "x.mp4,a,\ny.mp4,a,val", "list.csv:2: empty split, which other rows have"),
        ("path,label,start,end", "x.mp4,a,3,2", "list.csv:2: .* seconds, end after start; got '3' and '2'"),
        ("path,label,start,end", "x.mp4,a,soon,2", "list.csv:2: start and end are seconds"),
        ("path,label,start,end", "x.mp4,a,-1,2", "list.csv:2: start and end are seconds"),
        ("path,label,start,end", "x.mp4,a,0,nan", "list.csv:2: start and end are seconds"),
        ("path,label,start,end", "x.mp4,a,0,inf", "list.csv:2: start and end are seconds"),
        pytest.param("path,label", 'x.mp4,"' + 200_000 * "a", "list.csv:2: not CSV: field larger", id="open quote"),
        ("path,label", "gone.mp4,a", "list.csv: 1 of 1 listed files are not in .*: gone.mp4; check data.root"),
        ("path;label", "x.mp4;a", "list.csv:1: the header lacks path, label; separate the columns by commas"),
        ("path,label,grup", "x.mp4,a,1", "list.csv:1: unknown column 'grup'; the columns are path, label, group"),
    ],
)
def test_wrong_csv_rows_are_named(tmp_path, header, row, message):
    touch(tmp_path, "x.mp4")
    (tmp_path / "list.csv").write_text(f"{header}\n{row}\n")
    with pytest.raises(KinemaError, match=message):
        load_dataset(DataConfig(root=tmp_path, lists=tmp_path / "list.csv"))


def test_blanks_and_capitals_in_a_csv_are_ignored(tmp_path):
    touch(tmp_path, *(f"{number}.mp4" for number in range(12)))
    lines = [f"{number}.mp4, run ,session {number % 4}{' ' * (number % 3)}" for number in range(12)]
    (tmp_path / "list.csv").write_text("Path , label,Group\n" + "\n".join(lines) + "\n,,\n")
    dataset = load_dataset(DataConfig(root=tmp_path, lists=tmp_path / "list.csv"))
    assert {clip.group for clip in dataset.clips} == {f"session {number}" for number in range(4)}
    assert dataset.classes == ["run"]


def test_a_csv_in_another_encoding_is_refused(tmp_path):
    (tmp_path / "list.csv").write_text("path,label\nx.mp4,Rückhand\n", encoding="latin-1")
    with pytest.raises(KinemaError, match="list.csv: not in UTF-8; save it as text in UTF-8"):
        load_dataset(DataConfig(root=tmp_path, lists=tmp_path / "list.csv"))


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "a/../../secret.mp4"])
def test_lists_cannot_name_files_outside_of_the_root(tmp_path, name):
    touch(tmp_path / "videos", "x.mp4")
    touch(tmp_path, "secret.mp4")
    lists = write_csv(tmp_path / "list.csv", ("path", "label"), ("x.mp4", "a"), (name, "b"))
    with pytest.raises(KinemaError, match=r"list.csv:3: .* is outside of data\.root") as caught:
        load_dataset(DataConfig(root=tmp_path / "videos", lists=lists))
    assert "\n" not in str(caught.value)


def test_lists_can_name_files_by_absolute_and_dotted_paths(tmp_path):
    names = [f"{letter}.mp4" for letter in "abcdefgh"]
    touch(tmp_path / "videos", *names)
    paths = [str(tmp_path / "videos" / name) if name < "e" else f"./{name}" for name in names]
    lists = write_csv(tmp_path / "list.csv", ("path", "label"), *((name, len(name) % 2) for name in paths))
    assert [clip.id for clip in load_dataset(DataConfig(root=tmp_path / "videos", lists=lists)).clips] == names


@pytest.mark.parametrize(
    ("train", "test"), [("training", "testing"), ("train", "eval"), ("train_set", "test_set"), ("Trn", "Evaluation")]
)
@pytest.mark.parametrize("inside", [False, True])
def test_common_names_of_splits(tmp_path, train, test, inside):
    for folder in (train, test):
        for label in ("run", "walk"):
            place = f"{label}/{folder}" if inside else f"{folder}/{label}"
            touch(tmp_path, *(f"{place}/{label}_{folder}{number}.mp4" for number in range(4)))
    dataset = load_dataset(DataConfig(root=tmp_path))
    assert (dataset.classes, dataset.split) == (["run", "walk"], "predefined")
    assert len(dataset.of("test")) == 8 and all(f"_{test}" in clip.id for clip in dataset.of("test"))


@pytest.mark.parametrize(
    ("names", "warned"),
    [
        (["train/{}.mp4", "bus/{}.mp4"], ": train not read as splits"),
        (["train/{}.mp4", "test/t{}.mp4"], "test, train not read as splits"),
        (["train1/a/{}.mp4", "test1/a/{}.mp4"], "test1, train1 not read as splits"),
        (["run/train/a{}.mp4", "run/test/b{}.mp4", "walk/c{}.mp4"], "run/test, run/train not read as splits"),
        (["valley/{}.mp4", "trainer/{}.mp4"], ""),
    ],
)
def test_folders_that_only_look_like_splits_are_reported(tmp_path, capsys, names, warned):
    touch(tmp_path, *(name.format(number) for name in names for number in range(4)))
    assert load_dataset(DataConfig(root=tmp_path)).split == "by group, seed 0"
    warnings = [line for line in capsys.readouterr().out.splitlines() if "splits" in line]
    assert len(warnings) == bool(warned) and all(warned in line for line in warnings)


def test_two_folders_for_one_split_are_refused(tmp_path):
    touch(tmp_path, *(f"{split}/a/{split}{n}.mp4" for split in ("train", "test", "eval") for n in range(3)))
    with pytest.raises(KinemaError, match="has eval, test, train; keep one folder per split"):
        load_dataset(DataConfig(root=tmp_path))


def test_backslashes_in_a_csv_are_read(tmp_path):
    touch(tmp_path / "videos", *(f"walk/take{number}.mp4" for number in range(4)), "walk\\literal.mp4")
    rows = [(f"walk\\take{number}.mp4", "walk") for number in range(4)] + [("walk\\literal.mp4", "walk")]
    lists = write_csv(tmp_path / "list.csv", ("path", "label"), *rows)
    clips = load_dataset(DataConfig(root=tmp_path / "videos", lists=lists)).clips
    assert [clip.id for clip in clips] == [*(f"walk/take{n}.mp4" for n in range(4)), "walk\\literal.mp4"]


@pytest.mark.parametrize("suffix", [".gif", ".ogv", ".vob", ".asf", ".mxf", ".m2v", ".h264", ".264", ".hevc", ".m2ts"])
def test_videos_with_rare_extensions_are_found_and_open(tmp_path, suffix):
    codecs = {".gif": "gif", ".ogv": "libvpx", ".vob": "mpeg2video", ".asf": "mpeg4", ".mxf": "mpeg2video"}
    codecs |= {".m2v": "mpeg2video", ".hevc": "libx265"}
    form = {".264": "h264", ".m2v": "mpeg2video", ".m2ts": "mpegts"}.get(suffix, suffix[1:])
    path = tmp_path / f"a/clip{suffix}"
    path.parent.mkdir()
    codec = codecs.get(suffix, "libx264")
    with av.open(path, "w", format=form) as container:
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width, stream.pix_fmt = 96, 192, "rgb8" if codec == "gif" else "yuv420p"
        for number in range(8):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(paint(number), format="rgb24")))
        container.mux(stream.encode())
    assert [clip.path for clip in read_folder(tmp_path)] == [path]
    assert len(read_table(path).times_N) >= 7


def test_a_kinetics_list_names_the_script(tmp_path):
    touch(tmp_path, "x.mp4")
    lists = write_csv(tmp_path / "k.csv", ("label", "youtube_id", "time_start", "time_end", "split"))
    with pytest.raises(KinemaError, match=r"scripts/kinetics_csv\.py"):
        load_dataset(DataConfig(root=tmp_path, lists=lists))


def test_kinetics_lists_are_converted(tmp_path):
    touch(tmp_path / "videos", *(f"id{n}_000010_000020.mp4" for n in range(6)), "whole.mp4")
    rows = [("label", "youtube_id", "time_start", "time_end", "split")]
    rows += [("run", f"id{n}", "10", "20", "train" if n < 4 else "validate") for n in range(6)]
    rows += [("run", "whole", "5", "15", "train"), ("run", "gone", "0", "10", "train"), ("", "id0", "0", "10", "test")]
    source, lists = write_csv(tmp_path / "k.csv", *rows), tmp_path / "list.csv"
    command = [sys.executable, REPOSITORY / "scripts/kinetics_csv.py", source, tmp_path / "videos", lists]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert "7 clips, 1 without a file, 1 without a label" in done.stdout
    dataset = load_dataset(DataConfig(root=tmp_path / "videos", lists=lists))
    assert len(dataset.of("test")) == 2 and len(dataset.clips) == 7
    [whole] = [clip for clip in dataset.clips if clip.group == "whole"]
    assert (whole.id, whole.start, whole.end) == ("whole.mp4@5.0-15.0", 5.0, 15.0)


def test_missing_folders_and_lists_are_config_errors(tmp_path):
    with pytest.raises(ConfigError, match=r"data\.root: no such folder"):
        load_dataset(DataConfig(root=tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match=r"data\.lists: no such file or folder: .*nowhere"):
        load_dataset(DataConfig(root=tmp_path, lists=tmp_path / "nowhere"))
    with pytest.raises(KinemaError, match="no clips found"):
        load_dataset(DataConfig(root=tmp_path))
