"""The commands of the README and the Python code of it and of docs/how-it-works.md run, on a smaller demo."""

import json
import os
import re
import shutil
import subprocess

import pytest
import yaml

from conftest import REPOSITORY

README, HOW_IT_WORKS = ((REPOSITORY / name).read_text() for name in ("README.md", "docs/how-it-works.md"))
BLOCKS = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
PROGRAMS = re.findall(r"```python\n(.*?)```", README + HOW_IT_WORKS, re.DOTALL)
THIS_VERY_TEST = "make test"
AS_TEXT = {"capture_output": True, "text": True}


@pytest.mark.slow
def test_the_commands_of_the_readme(tmp_path):
    if not (REPOSITORY / ".venv" / ".done").exists():
        pytest.skip("the README's environment .venv is not there: make setup")
    copy = tmp_path / "kinema"
    tracked = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    for name in tracked.split():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(REPOSITORY / name, copy / name)
    (copy / ".venv").mkdir()
    for part in ("bin", "lib", "pyvenv.cfg"):
        (copy / ".venv" / part).symlink_to(REPOSITORY / ".venv" / part)
    (copy / ".venv" / ".done").write_text(f"{copy}\n")
    for file in (copy / "configs").iterdir():
        settings = yaml.safe_load(file.read_text()) | {"train": {"epochs": 3}, "sampling": {"frames": 4}}
        settings["store"] = "data/demo/features"  # Features are kept by content, so they are computed once.
        settings["tracking"] = "off"  # Saves ten seconds.
        file.write_text(yaml.safe_dump(settings))

    environment = {**os.environ, "DEMO_GROUPS": "4", "DEMO_CLIPS": "1", "WANDB_MODE": "offline"}
    environment["PYTHONPATH"] = str(copy)
    environment.pop("MAKEFLAGS", None)  # Variables given to `make test` are not meant for the README's targets.
    environment.pop("ARGS", None)
    outputs = []
    for block in BLOCKS:
        if "configs/folder.yaml" in block:  # The demo's clips stand for the user's.
            shutil.copytree(copy / "data/demo/videos", copy / "data/videos")
        block = block.replace(THIS_VERY_TEST, "")
        done = subprocess.run(["bash", "-ec", block], cwd=copy, env=environment, **AS_TEXT)
        assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
        outputs.append(done.stdout)
    assert "40 done, 0 skipped, 0 failed" in outputs[0] and "BiLSTM" in outputs[0]
    assert json.loads(outputs[2])["top"][0]["probability"] > 0
    code = "\n".join(["from pathlib import Path", *PROGRAMS])
    code = code.replace('"garden.mp4"', '*Path("data/demo/videos/Grow").iterdir()')
    done = subprocess.run([copy / ".venv/bin/python", "-"], cwd=copy, env=environment, input=code, **AS_TEXT)
    assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}"
    assert "holiday.mp4 No such file" in done.stdout and done.stdout.count("'label'") == 4
    assert " clips, 5120 features" in done.stdout
    for run in ("demo", "mine"):
        assert json.loads((copy / "data/runs" / run / "metrics.json").read_text())["n_clips"] > 0
