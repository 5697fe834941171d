"""Many damaged files and killed processes at once: nothing is lost, and nothing wrong is stored."""

import subprocess
import sys

import pytest

from conftest import REPOSITORY


@pytest.mark.slow
def test_torture():
    command = [sys.executable, REPOSITORY / "scripts" / "torture.py", "--files", "15", "--kills", "1"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
    assert done.returncode == 0 and "passed: seed 0, 15 damaged files" in done.stdout, done.stdout + done.stderr
