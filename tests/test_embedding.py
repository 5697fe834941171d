"""Importing the package changes no global state."""

import pkgutil
import subprocess
import sys

import pytest

import pipeline
from pipeline.inference.predictor import Predictor

ROOMS = ["base", "config", "data", "models", "video", "features", "runs", "inference"]
FOUND = [module.name for module in pkgutil.walk_packages(pipeline.__path__, "pipeline.") if not module.ispkg]
IN_ROOMS = [name for room in ROOMS for name in FOUND if name.split(".")[1] == room]
MODULES = IN_ROOMS + [name for name in FOUND if name not in IN_ROOMS and name != "pipeline.cli"]
"""Lower rooms first, so that the module that changes something is named."""
CHECK = """
import importlib, os, signal, sys
import matplotlib, torch, av, timm, decord, sklearn  # Imported first, so that only the module's own effects are seen.

def state():
    return {
        "environment": dict(os.environ),
        "signals": [signal.getsignal(number) for number in sorted(signal.valid_signals())],
        "matplotlib backend": matplotlib.rcParams._get("backend"),
        "matplotlib settings": {key: str(value) for key, value in dict.items(matplotlib.rcParams) if key != "backend"},
        "torch": (
            torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32,
            torch.backends.cuda.matmul.allow_tf32, torch.get_float32_matmul_precision(), torch.get_num_threads(),
            torch.backends.mha.get_fastpath_enabled(), torch.are_deterministic_algorithms_enabled(),
            torch.get_default_dtype(), torch.is_grad_enabled(),
        ),
        "stderr": os.fstat(2)[:3],
        "av logging": av.logging.get_level(),
        "exception hook": sys.excepthook,
    }

for name in sys.argv[1:]:
    before = state()
    importlib.import_module(name)
    after = state()
    for key in before:
        if before[key] != after[key]:
            print(f"{name}: {key}")
"""


def test_imports_change_no_global_state():
    done = subprocess.run([sys.executable, "-c", CHECK, *MODULES], capture_output=True, text=True, check=True)
    assert done.stdout == ""


def test_predictor_is_imported_when_asked_for():
    code = "import sys, pipeline; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert pipeline.Predictor is Predictor
    with pytest.raises(ImportError):
        exec("from pipeline import Unknown")
