"""Kinema: video action recognition from cached frozen-CNN features and a bidirectional LSTM.

A verb a file at the top, `cli` before them; below them rooms, each importing only from those before it: `base`,
`config`, `data` and `models`, `video`, `features`, `runs`, `inference`. `make lint` checks the order.
"""

import os

# OpenMP's threads spin while they wait for each other, and so hold the core that another program or thread needs: the
# default is 300,000 turns. It is read when PyTorch is imported.
os.environ.setdefault("GOMP_SPINCOUNT", "5000")
