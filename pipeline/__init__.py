"""Kinema: video action recognition from cached frozen-CNN features and a bidirectional LSTM.

Verbs are files at the top, started by `cli`. The rooms below them import only from rooms before: `base`, `config`,
`data` and `models`, `video`, `features`, `runs`, `inference`. `make lint` checks the order."""

from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "Predictor":  # Imports PyTorch, so only when asked for.
        from pipeline.inference.predictor import Predictor

        return Predictor
    raise AttributeError(f"module 'pipeline' has no attribute '{name}'")
