"""Long videos as segments: the decoder of the sequence, the windows, the frames, and the command."""

import csv
import io
import itertools
import json
import shutil

import numpy as np
import pympi
import pysubs2
import pytest
import torch

from pipeline.base.errors import KinemaError
from pipeline.config import DecodeConfig
from pipeline.inference.predictor import Predictor
from pipeline.inference.printing import printer
from pipeline.models.segmenter import Segment, Segmenter
from pipeline.models.viterbi import Viterbi
from pipeline.models.windows import SlidingWindow, Window
from pipeline.runs.bundle import Bundle
from pipeline.video.recording import chunks, plan, read_chunk
from pipeline.video.timestamps import read_table

from conftest import join, kinema, painted_number, remux, write_video


def best_labels(logs_TC: np.ndarray, penalty: float) -> tuple[int, ...]:
    """Try all sequences."""
    steps, labels = logs_TC.shape

    def score(path: tuple[int, ...]) -> float:
        changes = sum(a != b for a, b in itertools.pairwise(path))
        return sum(logs_TC[step, label] for step, label in enumerate(path)) - penalty * changes

    return max(itertools.product(range(labels), repeat=steps), key=score)


@pytest.mark.parametrize("penalty", [0, 0.5, 2, 50])
def test_viterbi_finds_the_best_sequence(penalty):
    rng = np.random.default_rng(0)
    for _ in range(20):
        logs_TC = rng.normal(0, 1, (7, 3))
        viterbi, labels = Viterbi(penalty), []
        for logs_C in logs_TC:
            viterbi.push(logs_C)
            labels += viterbi.certain()
        assert (*labels, *viterbi.rest()) == best_labels(logs_TC, penalty)


def test_certain_labels_do_not_change_whatever_follows():
    rng = np.random.default_rng(0)
    first_TC = rng.normal(0, 2, (30, 4))
    viterbi, certain = Viterbi(3.0), []
    for logs_C in first_TC:
        viterbi.push(logs_C)
        certain += viterbi.certain()
    assert 5 < len(certain) < 30
    for seed in range(20):
        other = Viterbi(3.0)
        for logs_C in (*first_TC, *np.random.default_rng(seed).normal(0, 9, (9, 4))):
            other.push(logs_C)
        assert other.rest()[: len(certain)] == certain


def test_a_lag_limits_the_wait():
    viterbi, given = Viterbi(9.0, lag=5), []
    for step in range(40):  # Two labels that are equally likely for ever.
        viterbi.push(np.log([0.5, 0.5]))
        given += viterbi.certain()
        assert len(given) == max(0, step + 1 - 5)
    assert len(given + viterbi.rest()) == 40


def test_segments_end_at_changes_and_at_gaps():
    def logs(*labels):
        return [None if label is None else np.log(np.eye(2, dtype=np.float32)[label] * 0.8 + 0.1) for label in labels]

    segmenter = Segmenter(Window(4.0, 16, 2.0), ["a", "b"])  # Cells of half a second.
    found = segmenter.push(logs(0, 0, 1, 1, 1)) + segmenter.push(logs(1, None, None, 0, 1, 0, 0), 5.8)
    assert [segment[:3] for segment in found] == [(0, 1, "a"), (1, 3, "b"), (4, 5.8, "a")]
    assert found[1].probability == pytest.approx(0.9) and found[2].probability == pytest.approx((3 * 0.9 + 0.1) / 4)


@pytest.fixture(scope="module")
def predictor(trained):
    return Predictor(trained)


def test_windows_are_the_clips_around_their_cells(predictor):
    rng = np.random.default_rng(0)
    frames = list(rng.normal(0, 1, (50, predictor.classifier.reduction.mean.shape[0])).astype(np.float16))
    window = Window(2.0, 17, 0.0)
    assert window.hop == 2
    cells = SlidingWindow(predictor.classifier, window).push(frames, ended=True)
    assert len(cells) == 25
    for cell, start in ((0, 0), (3, 0), (4, 1), (10, 13), (21, 33), (24, 33)):
        clip = torch.from_numpy(np.stack(frames[start : start + 17]))[None].float()
        with torch.inference_mode():
            expected = predictor.classifier(clip, torch.tensor([17])).log_softmax(-1)[0].numpy()
        np.testing.assert_allclose(cells[cell], expected, atol=1e-4)
    in_parts = SlidingWindow(predictor.classifier, window)
    streamed = [cell for n in range(0, 50, 5) for cell in in_parts.push(frames[n : n + 5], ended=n == 45)]
    np.testing.assert_allclose(streamed, cells, atol=1e-4)
    assert len(in_parts.kept) <= 17
    short = SlidingWindow(predictor.classifier, window).push(frames[:3], ended=True)
    assert len(short) == 2 and (short[0] == short[1]).all()


def test_windows_without_half_of_their_frames_have_no_answer(predictor):
    frames = [np.ones(predictor.classifier.reduction.mean.shape[0], np.float16)] * 60
    frames[20:40] = [None] * 20
    cells = SlidingWindow(predictor.classifier, Window(2.0, 16, 0.0)).push(frames, ended=True)
    lost = [number for number, cell in enumerate(cells) if cell is None]
    assert lost == [*range(10, 20)]


@pytest.mark.parametrize("gop", [10, 1000])
def test_each_frame_of_the_grid_is_read_once(tmp_path, gop):
    path = write_video(tmp_path / "x.mp4", "libx264", 250, {"g": str(gop), "bf": "2"})
    decode = DecodeConfig()
    recording = plan(path, 0.05, decode)  # 25 frames/s, so some are repeated.
    assert recording.duration == pytest.approx(249 / 25) and recording.frame_rate == pytest.approx(25)
    expected = (np.arange(199) * 0.05 + 0.025) * 25
    np.testing.assert_array_equal(recording.indices_T, expected.astype(int))
    parts = chunks(recording)
    assert len(parts) == (5 if gop == 10 else 1)
    keys = [row for row, packet in enumerate(read_table(path).packets) if packet.key]
    assert all(min(abs(part.indices[0] - key) for key in keys) < 2 for part in parts)
    read = [read_chunk(part, decode, lambda frames_T3HW: frames_T3HW) for part in parts]
    indices = np.concatenate([decoded.indices for decoded in read])
    assert [painted_number(frame.transpose(1, 2, 0)) for part in read for frame in part.frames] == indices.tolist()
    np.testing.assert_array_equal(indices, np.unique(recording.indices_T))


class CountingBackbone:
    """A backbone that notes how many frames it was given."""

    def __init__(self, backbone, numbers):
        self.backbone, self.numbers = backbone, numbers

    def __getattr__(self, name):
        return getattr(self.backbone, name)

    def __call__(self, frames_N3HW):
        self.numbers.append(len(frames_N3HW))
        return self.backbone(frames_N3HW)


@pytest.fixture(scope="module")
def recording(small_set, tmp_path_factory):
    """Sixteen clips in a row, and their labels; those of a training group, so that the small run knows them."""
    clips = sorted((small_set / "videos").glob("*/*_g02_*")) * 2
    return join(tmp_path_factory.mktemp("recording") / "day.mp4", clips), [clip.parent.name for clip in clips]


def test_a_long_video_is_answered_as_segments(trained, recording, tmp_path):
    path, labels = recording
    out, error = kinema("predict", trained, path, "--json")
    segments = [json.loads(line) for line in out.splitlines()]
    assert error == f"{path}: 32.0 s, more than 3 windows of 2.0 s: shown as segments (--whole: as one clip)\n"
    assert segments[0]["start"] == 0 and segments[-1]["end"] == 32
    assert all(a["end"] == b["start"] and a["label"] != b["label"] for a, b in itertools.pairwise(segments))
    at = [next(s["label"] for s in segments if s["start"] <= 2 * n + 1 < s["end"]) for n in range(16)]
    assert sum(a == b for a, b in zip(at, labels, strict=True)) >= 12
    rows = list(csv.DictReader(io.StringIO(kinema("predict", trained, path, "--csv", "--segments")[0])))
    assert [(float(row["start"]), row["label"]) for row in rows] == [(s["start"], s["label"]) for s in segments]
    assert len(json.loads(kinema("predict", trained, path, "--json", "--whole", "--top", 3)[0])["top"]) == 3


def test_a_segment_is_a_row_of_the_table(capsys):
    printer("table", 5, ["Run", "Sit down"])("a\x1b.mp4", Segment(59.5, 3725.129, "Run", 0.91234))
    assert capsys.readouterr().out == "     0:59.50   1:02:05.13  Run       91.2%  a\\x1b.mp4\n"


def test_what_follows_does_not_change_what_was_answered(predictor, recording, tmp_path):
    path, _ = recording
    segments = list(predictor.segments(path))
    cut = remux(path, tmp_path / "cut.mp4", frames=250)
    before = list(predictor.segments(cut))
    assert before[-1].end == pytest.approx(249 / 12, abs=0.1)
    certain = [segment for segment in segments if segment.end < 14]
    assert len(certain) >= 4
    for first, second in zip(certain, before, strict=False):
        assert first[:3] == second[:3] and first.probability == pytest.approx(second.probability, abs=1e-3)


def test_segments_come_while_the_video_is_read(predictor, recording, monkeypatch):
    planned, read = predictor.plan([recording[0]])[recording[0]], []
    monkeypatch.setattr(predictor.backbone, "batch", 6)
    monkeypatch.setattr(predictor, "backbone", CountingBackbone(predictor.backbone, read))
    segments = predictor.segments_of(planned._replace(edges=[*range(0, 97, 6)]))
    next(segments)
    assert sum(read) < 60
    list(segments)
    assert sum(read) == 96  # Each sampled frame once.


def test_other_programs_read_the_files(trained, recording, tmp_path):
    path, _ = recording
    out, _ = kinema(
        "predict",
        trained,
        path,
        path.parent / "." / path.name,
        "--json",
        "--out",
        tmp_path / "a",
        "--save",
        "srt,vtt,eaf,activitynet,labelstudio",
    )
    segments = [json.loads(line) for line in out.splitlines()]
    expected = [(round(s["start"] * 1000), round(s["end"] * 1000), s["label"]) for s in segments]
    for kind in ("srt", "vtt"):
        lines = pysubs2.load(tmp_path / "a" / f"day.{kind}")
        assert [(line.start, line.end, line.plaintext.split()[0]) for line in lines] == expected
    document = pympi.Elan.Eaf(tmp_path / "a" / "day.eaf")
    assert sorted(document.get_annotation_data_for_tier("label")) == expected
    likely = sorted(document.get_ref_annotation_data_for_tier("probability"))
    assert [float(value[2]) for value in likely] == pytest.approx([s["probability"] for s in segments], abs=1e-4)
    results = json.loads((tmp_path / "a" / "activitynet.json").read_text())["results"]["day"]
    assert [(*(round(t * 1000) for t in r["segment"]), r["label"]) for r in results] == expected
    [task] = json.loads((tmp_path / "a" / "labelstudio.json").read_text())
    values = [region["value"] for region in task["predictions"][0]["result"]]
    assert [(v["ranges"][0]["start"], v["timelinelabels"][0]) for v in values] == [
        (round(start * 12 / 1000) + 1, label) for start, _, label in expected
    ]
    kinema("predict", trained, path, "--save", "srt,docx", code=2)


def test_damaged_time_has_no_answer(trained, recording, tmp_path):
    path, _ = recording
    content = bytearray(path.read_bytes())
    begin = read_table(path).packets[130].pos
    content[begin : read_table(path).packets[230].pos] = bytes(read_table(path).packets[230].pos - begin)
    (tmp_path / "bad.mp4").write_bytes(content)
    out, error = kinema("predict", trained, tmp_path / "bad.mp4", "--json")
    segments = [json.loads(line) for line in out.splitlines()]
    gaps = [(a["end"], b["start"]) for a, b in itertools.pairwise(segments) if a["end"] < b["start"]]
    assert len(gaps) == 1 and 10 <= gaps[0][0] < gaps[0][1] <= 21
    assert f"no answer from {gaps[0][0]:.2f} to {gaps[0][1]:.2f} s: damaged" in error


def test_a_run_without_a_window_takes_files_as_clips(trained, recording, tmp_path):
    for name in ("config.yaml", "classes.txt", "backbone.safetensors", "clips.csv"):
        shutil.copyfile(trained / name, tmp_path / name)
    bundle, _, _, classifiers = Bundle.load(trained, {}, "predict")
    kept = ("identity", "fingerprint", "split")
    Bundle(tmp_path).save_models(classifiers, {}, {name: bundle.metadata()[name] for name in kept})
    out, error = kinema("predict", tmp_path, recording[0], "--json")
    assert "top" in json.loads(out) and "so every file is one clip" in error
    with pytest.raises(KinemaError, match="delete it and train again"):
        list(Predictor(tmp_path).segments(recording[0]))
    assert "delete it and train again" in kinema("predict", tmp_path, recording[0], "--segments", code=1)[1]
