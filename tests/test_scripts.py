import filecmp
import subprocess
import sys

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


def test_splits_are_those_of_all_settings(tmp_path):
    """Not of the config file alone: the list that an argument names has one split."""
    rows = ["path,label,split"]
    for number, split in enumerate(("train", "val", "test")):
        for label in "ab":
            (tmp_path / f"{label}{number}.mp4").touch()
            rows.append(f"{label}{number}.mp4,{label},{split}")
    (tmp_path / "list.csv").write_text("\n".join(rows))
    command = [sys.executable, REPOSITORY / "scripts" / "splits_and_seeds.py", "--config", "configs/folder.yaml"]
    command += ["--data.root", tmp_path, "--data.lists", tmp_path / "list.csv"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.stderr.endswith("names its one split: add --splits 1\n") and done.returncode == 1


def test_the_demo_is_the_same_each_time(small_set, tmp_path):
    script = REPOSITORY / "scripts" / "make_demo_data.py"
    subprocess.run(
        [sys.executable, script, tmp_path, "--pairs", "changes", "--groups", "3", "--clips", "1"],
        check=True,
        capture_output=True,
    )
    videos = sorted(path.relative_to(tmp_path) for path in tmp_path.glob("videos/*/*"))
    assert {video.suffix for video in videos} == {".avi", ".mp4", ".webm"}
    assert filecmp.cmpfiles(tmp_path, small_set, videos, shallow=False) == (videos, [], [])
