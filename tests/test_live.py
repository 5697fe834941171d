"""Live sources: a loopback stream that is lost and comes back, and a reader that is too slow."""

import socket
import sys
import time

import numpy as np

from pipeline.inference.live import LiveReader, is_live
from pipeline.inference.sources import expand

from conftest import REPOSITORY, write_video

sys.path.append(str(REPOSITORY / "scripts"))
from bench_live import start


def test_what_is_live():
    live = ["rtsp://camera/1", "udp://127.0.0.1:5000", "/dev/video0"]
    assert all(map(is_live, live)) and not any(map(is_live, ["a.mp4", "http://x/a.mp4", "/dev/vid.mp4"]))
    assert list(expand(live)) == live


def test_frames_are_those_of_the_grid_and_the_oldest_are_dropped():
    notes = []
    source = "lavfi:color=black:size=32x32:rate=20,fade=in:0:200:color=white,realtime"
    reader = LiveReader(source, 0.2, 5, lambda frames: frames, notes.append)
    time.sleep(2.5)
    taken = reader.take()
    places = [place for place, _ in taken]
    assert len(taken) == 5 and np.diff(places).tolist() == [1] * 4
    assert reader.dropped >= 3
    brightness = [picture.mean() for _, picture in taken]
    assert np.diff(brightness).max() < 0  # In order: white fades to black.
    reader.close()


def test_a_source_that_cannot_be_reached_is_tried_again():
    notes = []
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
        reader = LiveReader(address, 0.2, 5, lambda frames: frames, notes.append)
        assert reader.take() == []
        time.sleep(1)
        reader.close()
    assert [note.rpartition("in ")[2] for note in notes][:2] == ["0.5 s", "1 s"] and "refused" in notes[0]


def test_a_stream_that_is_lost_is_opened_again(tmp_path):
    video = write_video(tmp_path / "day.mp4", "libx264", 50, {"g": "25"})
    notes = []
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    reader = LiveReader(address, 0.1, 100, lambda frames: frames, notes.append)
    sender, places, lost = start(video, address), [], False
    try:
        began = time.monotonic()
        while (not places or max(np.diff(places), default=0) < 5) and time.monotonic() - began < 60:
            places += [place for place, _ in reader.take()]
            if len(places) >= 8 and not lost:
                sender.kill()
                sender.wait()
                sender, lost = start(video, address), True
        assert places[:8] == [*range(places[0], places[0] + 8)] and max(np.diff(places)) >= 5  # Time went on meanwhile.
        assert any(note.startswith(address) and "connecting again in" in note for note in notes)
        assert reader.dropped == 0
    finally:
        sender.kill()
        reader.close()
