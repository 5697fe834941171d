"""Kinema: video action recognition from cached frozen-CNN features and a bidirectional LSTM.

The data flows one way, a file importing only from those before it. Below all stand `errors`, `atomic` (files whole or
not at all), `progress`, `settings` (how settings are declared and read), `config` (all of them) and `device`. Then
`clip` -> `layouts` -> `data` -> `sampling` -> `timeline` -> `decode` -> `workers` -> `frames` -> `views` -> `bf16` ->
`engines` -> `backbone` -> `entry` and `ledger` -> `store` -> `extract`, `upkeep` and `failures`, then `head` ->
`loading` -> `fit` -> `fusion` -> `tuning` -> `bundle` -> `tracking` -> `train` -> `metrics` -> `report` -> `evaluate`
and `predict`. `cli` is the way in.
"""

import os

# OpenMP's threads spin while they wait for each other, and so hold the core that another program or thread needs: the
# default is 300,000 turns. It is read when PyTorch is imported.
os.environ.setdefault("GOMP_SPINCOUNT", "5000")
