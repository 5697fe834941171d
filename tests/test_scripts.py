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
