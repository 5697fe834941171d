"""Kinema: video action recognition from cached frozen-CNN features and a bidirectional LSTM.

Each command is a module here, started by `cli`. Packages import only from those before them: `base`, `config`,
`data` and `models`, `video`, `features`, `runs`, `inference`. `make lint` checks the order."""

from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "Predictor":  # Imports PyTorch, so only when asked for.
        from pipeline.inference.predictor import Predictor

        return Predictor
    raise AttributeError(f"module 'pipeline' has no attribute '{name}'")
