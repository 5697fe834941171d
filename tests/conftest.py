"""Videos with the frame number painted in, to check which frame was decoded, and one small trained run."""

import contextlib
import csv
import io
import itertools
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from hypothesis import settings

from pipeline.cli import main

settings.register_profile("same each time", derandomize=True)
settings.load_profile("same each time")

REPOSITORY = Path(__file__).parents[1]
BITS, CELL = 8, 24


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests that need a GPU where there is none, and run the longest files first."""
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
    longest = [
        "test_readme",
        "test_extract",
        "test_export",
        "test_cli",
        "test_evaluate",
        "test_backbone",
        "test_tracking",
    ]
    items.sort(key=lambda item: longest.index(item.path.stem) if item.path.stem in longest else len(longest))


def paint(number: int, height: int = 96, width: int = BITS * CELL) -> np.ndarray:
    """Return a picture with `number` in its top row as black and white squares, lowest bit first; uint8 [H,W,3]."""
    picture = np.full((height, width, 3), 90, np.uint8)
    picture[height // 2 :, :, 1] = np.linspace(0, 255, width).astype(np.uint8)
    for bit in range(BITS):
        picture[:CELL, bit * CELL : (bit + 1) * CELL] = 255 * ((number >> bit) & 1)
    return picture


def painted_number(frame: np.ndarray) -> int:
    """Read the number that `paint` wrote."""
    return sum(int(frame[CELL // 2, bit * CELL + CELL // 2].mean() > 128) << bit for bit in range(BITS))


def write_video(
    path: Path,
    codec: str,
    frames: int = 40,
    options: dict[str, str] | None = None,
    pix_fmt: str = "yuv420p",
    ticks: list[int] | None = None,
    rotation: int = 0,
    matrix: list[int] | None = None,
    still: bool = False,
    size: tuple[int, int] = (96, BITS * CELL),
    rate: int = 25,
) -> Path:
    """Encode painted frames at `rate` frames/s, or shown at the given `ticks` of 1/25 s; `size` is height, width.

    `rotation` and `matrix` go to the display matrix; `still` repeats the first picture.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    same_each_time = {"x264-params": "mbtree=0"} if codec == "libx264" else {}  # Else x264's bytes vary a little.
    with av.open(path, "w") as container:
        stream = container.add_stream(codec, rate=rate, options=same_each_time | (options or {}))
        stream.height, stream.width = size
        stream.pix_fmt = pix_fmt
        if rotation:
            stream.set_display_rotation(rotation)
        if matrix:
            stream.set_display_matrix(matrix)
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(paint(0 if still else number, *size), format="rgb24")
            frame.pts, frame.time_base = (ticks[number] if ticks else number), Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def remux(
    source: Path, path: Path, shift: int = 0, options: dict[str, str] | None = None, frames: int | None = None
) -> Path:
    """Copy the packets, or the first `frames`, into another container, shown `shift` ticks of 1/25 s later."""
    with av.open(source) as before, av.open(path, "w", options=options or {}) as after:
        stream = after.add_stream_from_template(before.streams.video[0])
        for packet in itertools.islice(before.demux(video=0), frames):
            if packet.size:
                ticks = round(Fraction(shift, 25) / packet.time_base)
                packet.pts, packet.dts = packet.pts + ticks, packet.dts + ticks
                packet.stream = stream
                after.mux(packet)
    return path


def kinema(*arguments: object, code: int | None = 0) -> tuple[str, str]:
    """Run the command in this process and return what it wrote to stdout and stderr."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        got = main([str(argument) for argument in arguments])
    assert code in (None, got), err.getvalue()
    return out.getvalue(), err.getvalue()


def touch(root: Path, *names: str) -> None:
    """Create files that no decoder can read, for tests of names alone."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


def write_csv(path: Path, *rows: tuple) -> Path:
    """Write a list of clips; the first row has the names of the columns."""
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows(rows)
    return path


def quick_settings(folder: Path) -> list[object]:
    """Settings for `folder/videos`, two frames per clip, with a small CNN of random weights."""
    import timm  # Takes seconds, and decoding processes import this file.
    from safetensors.torch import save_file

    weights = folder / "cnn.safetensors"
    if not weights.exists():
        torch.manual_seed(0)
        save_file(timm.create_model("test_efficientnet", num_classes=0).state_dict(), weights)
    places = ["--data.root", folder / "videos", "--store", folder / "store", "--runs", folder, "--tracking", "off"]
    return [*places, "--sampling.frames", 2, "--backbone.model", "test_efficientnet", "--backbone.weights", weights]


@pytest.fixture(scope="session")
def small_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with videos/ and splits/: the generated set, 6 groups with one clip per class."""
    folder = tmp_path_factory.mktemp("small")
    script = REPOSITORY / "scripts" / "make_demo_data.py"
    subprocess.run(
        [sys.executable, script, folder, "--groups", "6", "--clips", "1"],
        check=True,
        capture_output=True,
    )
    return folder


@pytest.fixture(scope="session")
def settings_of_small_set(small_set: Path) -> list[object]:
    """Command-line settings for the small set with its store and runs beside it."""
    return [
        *("--data.root", small_set / "videos", "--data.lists", small_set / "splits", "--sampling.frames", 6),
        *("--store", small_set / "features", "--runs", small_set / "runs", "--tracking", "off"),
    ]


@pytest.fixture(scope="session")
def extracted(settings_of_small_set: list[object]) -> str:
    """The output of the extraction of the small set."""
    return kinema("extract", *settings_of_small_set)[0]


@pytest.fixture(scope="session")
def trained(small_set: Path, settings_of_small_set: list[object], extracted: str) -> Path:
    """The bundle of a run on the small set, evaluated."""
    kinema("train", *settings_of_small_set, "--run", "small", "--train.epochs", 12)
    kinema("evaluate", small_set / "runs" / "small")
    return small_set / "runs" / "small"


@pytest.fixture(scope="session")
def real_clips() -> Path:
    """The folder of real clips."""
    folder = os.environ.get("KINEMA_TEST_CLIPS")
    if not folder:
        pytest.skip("KINEMA_TEST_CLIPS names no folder of real clips")
    return Path(folder)


def join(path: Path, clips: list[Path], frames: int = 24, size: tuple[int, int] = (160, 160), gop: int = 24) -> Path:
    """Encode the first `frames` frames of clips one after the other, at 12 frames/s, and the last frame twice."""
    with av.open(path, "w") as container:
        stream = container.add_stream(
            "libx264", rate=12, options={"crf": "18", "g": str(gop), "x264-params": "mbtree=0"}
        )
        stream.height, stream.width = size
        stream.pix_fmt, number = "yuv420p", 0
        for place, clip in enumerate(clips, 1):
            with av.open(clip) as source:
                pictures = [frame for frame, _ in zip(source.decode(video=0), range(frames), strict=False)]
            for picture in [*pictures, pictures[-1]] if place == len(clips) else pictures:
                frame = picture.reformat(size[1], size[0], "yuv420p")
                frame.pts, frame.time_base, number = number, Fraction(1, 12), number + 1
                container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path
