import filecmp
import runpy
import subprocess
import sys

import pytest

from conftest import REPOSITORY

IMPORT = """
import runpy, sys
for script in sys.argv[1:]:
    sys.path[0] = script.rpartition("/")[0]
    runpy.run_path(script, run_name="imported")
"""


def test_scripts_find_what_they_import():
    scripts = sorted(map(str, (REPOSITORY / "scripts").rglob("*.py")))
    assert len(scripts) > 5
    subprocess.run([sys.executable, "-c", IMPORT, *scripts], check=True)


def test_accuracy_prints_gains_over_groups(settings_of_small_set, extracted, tmp_path, monkeypatch, capsys):
    config = tmp_path / "small.yaml"
    config.write_text("train:\n  epochs: 5\n")
    script = REPOSITORY / "scripts" / "accuracy.py"
    command = [script, "--config", config, "--splits", "1", "--seeds", "0", *settings_of_small_set, "--runs", tmp_path]
    monkeypatch.setattr(sys, "argv", list(map(str, command)))
    runpy.run_path(str(script), run_name="__main__")
    printed = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in printed.splitlines()]
    assert "ECE" in rows[-3][2] and rows[-1][0] == "small, bilstm" and 0 < float(rows[-1][2]) < 1
    rows = rows[-9:-6]
    assert [row[2] for row in rows] == ["pyramid", "mean", "majority"] and rows[0][0] == "small, bilstm"
    row = rows[1]
    assert float(row[1].split()[0]) - float(row[3].split()[0]) == pytest.approx(float(row[4].split()[0]), abs=0.002)


def test_the_demo_is_the_same_each_time(small_set, tmp_path):
    script = REPOSITORY / "scripts" / "make_demo_data.py"
    subprocess.run(
        [sys.executable, script, tmp_path, "--groups", "3", "--clips", "1"],
        check=True,
        capture_output=True,
    )
    videos = sorted(path.relative_to(tmp_path) for path in tmp_path.glob("videos/*/*"))
    assert {video.suffix for video in videos} == {".avi", ".mp4", ".webm"}
    assert filecmp.cmpfiles(tmp_path, small_set, videos, shallow=False) == (videos, [], [])
