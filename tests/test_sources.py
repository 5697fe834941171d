"""Sources of `kinema predict`: folders, globs, lists and addresses."""

import csv
import functools
import io
import json
import os
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pipeline.inference.sources import expand, fetched
from pipeline.video.workers import Failure

from conftest import kinema, touch


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def address(small_set):
    """An address below which the videos of the small set are served."""
    handler = functools.partial(QuietHandler, directory=small_set / "videos")
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_what_sources_stand_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    touch(tmp_path, "a/1.mp4", "a/b/2.AVI", "a/notes.md", "a/.hidden.mp4", "c[1].mp4", "empty/notes.md")
    Path("list.txt").write_text("a/1.mp4\n\n  a/*/*.AVI\n-\n", encoding="utf-8")
    monkeypatch.setattr("sys.stdin", io.StringIO("list.txt\nhttp://x/y.mp4\n"))
    assert list(expand(["a", "a/*.mp4", "./c[1].mp4"])) == ["a/1.mp4", "a/b/2.AVI", "a/1.mp4", "c[1].mp4"]
    assert list(expand(["-"])) == ["a/1.mp4", "a/b/2.AVI", "http://x/y.mp4"]
    assert list(expand(["none*.mp4", "empty", "none.txt"])) == ["none*.mp4", "empty", "none.txt"]


def test_an_address_is_downloaded_and_its_file_removed(small_set, address):
    video = next((small_set / "videos" / "Grow").iterdir())
    with fetched(f"{address}/Grow/{video.name}") as path:
        assert path.read_bytes() == video.read_bytes()
    assert not path.parent.exists()
    with fetched(f"{address}/none.mp4") as failure:
        assert failure == Failure("cannot be downloaded: File not found")


def test_all_kinds_of_sources_in_one_call(small_set, trained, address, tmp_path):
    folder = small_set / "videos" / "Grow"
    first, second, *_, last = sorted(map(str, folder.iterdir()))
    url = f"{address}/Grow/{Path(first).name}"
    unreachable = "http://127.0.0.1:9/x.mp4"
    (tmp_path / "list.txt").write_text(f"{second}\n{first}\n")
    sources = [last, unreachable, tmp_path / "list.txt", url, folder, tmp_path / "none*.mp4"]
    out, error = kinema("predict", trained, *sources, "--json", code=1)
    answers = {answer["path"]: answer for answer in map(json.loads, out.splitlines())}
    others = sorted({*map(str, folder.iterdir())} - {first, second, last})
    assert [*answers] == [last, unreachable, second, first, url, *others, str(tmp_path / "none*.mp4")]
    assert answers[url]["top"] == answers[first]["top"]
    assert error.count("\n") == 2 and f"{unreachable}: cannot be read: cannot be downloaded" in error


def test_csv_and_table_have_a_row_for_each_video(small_set, trained, tmp_path):
    videos = sorted(map(str, (small_set / "videos" / "Open").iterdir()))
    (tmp_path / "empty, or not.mp4").touch()
    out, _ = kinema("predict", trained, *videos, tmp_path / "empty, or not.mp4", "--csv", code=1)
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [row["path"] for row in rows] == [*videos, str(tmp_path / "empty, or not.mp4")]
    assert rows[-1]["error"] == "empty file" and all(0 < float(row["probability"]) <= 1 for row in rows[:-1])
    table, _ = kinema("predict", trained, *videos, "--top", 2)
    assert [line.split()[0] for line in table.splitlines()] == [row["label"] for row in rows[:-1]]
    assert [line.split()[-1] for line in table.splitlines()] == videos
    assert len({line.index(os.sep) for line in table.splitlines()}) == 1
