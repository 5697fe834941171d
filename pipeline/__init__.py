"""Kinema: video action recognition from cached frozen-CNN features and a bidirectional LSTM.

The data flows one way, a file importing only from those before it:
`data` -> `sampling` -> `timeline` -> `decode` -> `workers` -> `frames` -> `engines` -> `backbone` -> `store` ->
`extract` and `upkeep`, then `head` -> `fit` -> `bundle` -> `tracking` -> `train` -> `metrics` -> `report` ->
`evaluate` and `predict`.
`settings`, `errors`, `atomic` (files whole or not at all) and `progress` stand below all of them; `config` composes the
settings; `cli` is the way in.
"""
