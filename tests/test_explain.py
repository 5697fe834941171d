"""Explanations: the order of removal, the gates, and a clip whose decisive second and place are known."""

import json
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.inference.gates import lstm_gates
from pipeline.inference.occlusion import cover_cells, fill_moments, remove_parts

from conftest import kinema, quick_settings

RATE, SECONDS = 8, 5


@pytest.mark.parametrize("bidirectional", [False, True])
def test_gates_agree_with_pytorch(bidirectional):
    torch.manual_seed(0)
    lstm, inputs = torch.nn.LSTM(5, 7, 2, batch_first=True, bidirectional=bidirectional), torch.randn(9, 5)
    with torch.inference_mode():
        gates, states = lstm_gates(lstm, inputs)
        torch.testing.assert_close(states, lstm(inputs[None])[0][0], atol=1e-5, rtol=0)
    assert len(gates) == 3 * (1 + bidirectional) and all(values.shape == (9,) for values in gates.values())


def test_an_open_forget_gate_is_seen_in_its_direction():
    lstm = torch.nn.LSTM(2, 3, 1, batch_first=True, bidirectional=True)
    with torch.inference_mode():
        for name, parameter in lstm.named_parameters():
            parameter.zero_()
            if name == "bias_ih_l0_reverse":
                parameter[3:6] = 20  # PyTorch's order: input, forget, candidate, output.
        gates, _ = lstm_gates(lstm, torch.randn(4, 2))
    assert gates["forget, backwards"].min() > 0.99
    assert all(values.max() == 0.5 for name, values in gates.items() if name != "forget, backwards")


def test_parts_are_removed_by_what_they_carry():
    def log_odds(gone):
        return 4.0 * ~gone[:, 1] + 2 * ~gone[:, 3] - 3

    evidence = remove_parts(log_odds, 6, 19)
    assert evidence.order[:2] == [1, 3] and len(evidence.order) == 5 and evidence.drops == [4, 2, 0, 0, 0]
    assert evidence.area < min(evidence.random_areas) and "chance" not in evidence.verdict
    assert "no better than chance" in remove_parts(lambda gone: np.ones(len(gone)), 6, 19).verdict


def test_moments_are_filled_from_their_neighbours():
    features = np.array([[0.0], [9], [9], [3], [5]], np.float32)
    gone = np.array([[0, 1, 1, 0, 0], [1, 0, 0, 0, 1]], bool)
    assert fill_moments(features, gone)[..., 0].tolist() == [[0, 1, 2, 3, 5], [9, 9, 9, 3, 3]]


def test_cells_are_covered():
    frames = np.random.default_rng(0).integers(0, 256, (2, 3, 9, 8), np.uint8)
    covered = cover_cells(frames, np.eye(4, dtype=bool)[1], 2)
    changed = (covered != frames).any((0, 1))
    assert changed[:5, 4:].all() and changed.sum() == 20


def write_flash(path: Path, label: str, seed: int) -> float:
    """Write noise with a bright square in the upper or lower half for one second; return its start."""
    rng = np.random.default_rng(seed)
    start = int(rng.integers(1, SECONDS - 2))
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(path, "w") as container:
        stream = container.add_stream("mpeg4", rate=RATE)
        stream.width = stream.height = 96
        for number in range(RATE * SECONDS + 1):
            picture = rng.integers(90, 130, (96, 96, 3), np.uint8)
            if start <= number / RATE < start + 1:
                picture[slice(4, 44) if label == "Top" else slice(52, 92), 28:68] = (255, 240, 0)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return start


def test_a_planted_second_is_named(tmp_path):
    for label in ("Top", "Bottom"):
        for number in range(8):
            write_flash(tmp_path / "videos" / label / f"{number}.mp4", label, number)
    settings = [*quick_settings(tmp_path), "--sampling.frames", 10]
    kinema("extract", *settings)
    kinema("train", *settings, "--run", "flash", "--train.epochs", 20)
    start = write_flash(tmp_path / "new.mp4", "Top", 99)
    out, _ = kinema("explain", tmp_path / "flash", tmp_path / "new.mp4", "--out", tmp_path / "out")
    found = json.loads((tmp_path / "out" / "new_explained.json").read_text())
    assert found["label"] == "Top" and "Top" in out
    assert start - 0.01 <= found["moments"]["removed"][0]["time"] < start + 1
    assert found["moments"]["area"] < min(found["moments"]["random_areas"])
    assert len(found["cells"]["removed"]) == 15
    assert found["gates"]["difference"] < 1e-5 and len(found["gates"]["means"]) == 6
    with Image.open(tmp_path / "out" / "new_explained.png") as picture:
        assert picture.size == (1000, 700)


def test_unreadable_videos_are_one_line(tmp_path, trained):
    (tmp_path / "x.mp4").write_bytes(b"x")
    _, error = kinema("explain", trained, tmp_path / "x.mp4", code=1)
    assert error.count("\n") == 1 and "cannot be read" in error
