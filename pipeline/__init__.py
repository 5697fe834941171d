"""Kinema: video action recognition from cached frozen-CNN features and a bidirectional LSTM.

The data flows one way, a file importing only from those before it:
`data` -> `sampling` -> `timeline` -> `decode` -> `workers` -> `frames` -> `views` -> `engines` -> `backbone` -> `store`
-> `extract`, `upkeep` and `failures`, then `head` -> `fit` -> `choose` -> `bundle` -> `tracking` -> `train` ->
`metrics` -> `report` -> `evaluate` and `predict`.
`config` (all settings, declared and read by `settings`), `device`, `errors`, `atomic` (files whole or not at all) and
`progress` stand below all of them; `cli` is the way in.
"""
