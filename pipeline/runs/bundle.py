"""The run bundle: a folder that holds all that a prediction needs, and what is known of the run.

`config.yaml` all settings, `classes.txt` a class a line in the order of the logits, `clips.csv` the clips of the data
set with their splits, and the digests of the files that the heads learned from, `backbone.safetensors` the CNN,
`model.safetensors` the heads and the reduction before them (the last to be written: with it a run is complete),
`history.json` the epochs, `tuning.json` what `--auto` chose; after `evaluate` also `metrics.json`, `predictions.csv`,
`report.md` and its pictures, for other data in `other_data/`.
"""

import csv
import functools
import json
import os
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from pipeline.base.errors import ConfigError, KinemaError, first_line, summarize
from pipeline.base.files import atomic_write, checksum, read_json
from pipeline.base.settings import build, to_yaml
from pipeline.config import Config
from pipeline.data.clip import Clip, Source, clip_id, part_of
from pipeline.data.formats import CSV_COLUMNS
from pipeline.data.splits import Dataset
from pipeline.features.entry import Header
from pipeline.models.heads import HEADS, Heads, SequenceHead
from pipeline.models.reduction import Reduction
from pipeline.runs.tuning import Tuning

AS_TEXT = {"newline": "", "encoding": "utf-8", "errors": "surrogateescape"}
"""Names of files need not be text."""


class Bundle:
    """A run's folder."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.model_file = folder / "model.safetensors"
        self.backbone_file = folder / "backbone.safetensors"
        self.config_file = folder / "config.yaml"
        self.clips_file = folder / "clips.csv"
        self.tuning_file = folder / "tuning.json"

    def require_complete(self) -> None:
        """Checks that the bundle can be used.

        Raises:
            ConfigError: there is no such folder.
            KinemaError: a file of it is missing.
        """
        if not self.folder.is_dir():
            raise ConfigError(f"{self.folder}: no such folder of a run, such as data/runs/demo; kinema train makes one")
        if missing := self.missing():
            raise KinemaError(
                f"{self.folder}: {missing[0]} is missing: training has not ended, or the file was lost; start it again"
            )

    def missing(self) -> list[str]:
        """Names the files of a complete run that are not there."""
        files = self.config_file, self.folder / "classes.txt", self.backbone_file, self.model_file
        return [file.name for file in files if not file.is_file()]

    def asked(self) -> str:
        """Returns the settings that the run was asked for, as YAML; an empty text if there is no run yet."""
        if self.tuning_file.exists():
            return read_json(self.tuning_file)["asked"]
        return self.config_file.read_text() if self.config_file.exists() else ""

    def tuning(self, identity: str) -> Tuning | None:
        """Returns the choice of settings that was made for the same settings and clips, if any."""
        if not self.tuning_file.exists():
            return None
        kept = read_json(self.tuning_file)
        return Tuning(kept["chosen"], kept["tried"]) if kept["identity"] == identity else None

    def keep_tuning(self, identity: str, asked: Config, tuning: Tuning) -> None:
        """Writes a choice of settings, so that a run that was stopped need not make it again."""
        self.folder.mkdir(parents=True, exist_ok=True)
        content = {"identity": identity, "asked": to_yaml(asked), **tuning._asdict()}
        with atomic_write(self.tuning_file) as temporary:
            temporary.write_text(json.dumps(content, indent=1) + "\n")

    def config(self, overrides: dict[str, str]) -> Config:
        """Reads the settings of the run."""
        return build(Config, self.config_file, overrides)

    @property
    def classes(self) -> list[str]:
        """The classes in the order of the logits."""
        return (self.folder / "classes.txt").read_text().splitlines()

    def begin(self, config: Config, dataset: Dataset, found: dict[Clip, Header], backbone_file: Path) -> None:
        """Writes all but the heads; `found` are the clips of training and validation that have features."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(self.config_file) as temporary:
            temporary.write_text(to_yaml(config))
        (self.folder / "classes.txt").write_text("".join(f"{name}\n" for name in dataset.classes))
        with self.clips_file.open("w", **AS_TEXT) as stream:
            writer = csv.DictWriter(stream, (*CSV_COLUMNS, "sha256"), extrasaction="ignore")
            writer.writeheader()
            for clip in dataset.clips:
                digest = found[clip].source.sha256 if clip in found else ""
                path = clip.path.relative_to(config.data.root)
                writer.writerow(vars(clip) | {"path": path, "sha256": digest})
        self.backbone_file.unlink(missing_ok=True)
        try:
            os.link(backbone_file, self.backbone_file)  # Costs no space on the same disk.
        except OSError:
            shutil.copyfile(backbone_file, self.backbone_file)

    def dataset(self, root: Path) -> Dataset:
        """Returns the clips of the training's data set, each in the split that it had then.

        Raises:
            ConfigError: there is no folder `root`.
        """
        if not root.is_dir():
            raise ConfigError(f"data.root: no such folder: {root.absolute()}; --data.root names that of the videos")
        return Dataset([clip for clip, _ in self._clips(root)], self.classes, json.loads(self.trained()["split"]))

    def require_unseen(self, clips: list[Clip]) -> None:
        """Checks that test clips are of the run's classes, and neither they nor others of their groups learned from.

        Raises:
            KinemaError: the run cannot be measured on them.
        """
        if unknown := sorted({clip.label for clip in clips} - {*self.classes}):
            raise KinemaError(f"{self.folder}: the run knows no class {summarize(unknown)}; train a new one")
        groups, names = {clip.group for clip in self.trained_on}, {clip.id for clip in self.trained_on}
        if seen := [clip.id for clip in clips if clip.group in groups or clip.id in names]:
            raise KinemaError(
                f"{self.folder}: {len(seen)} of {len(clips)} test clips, or others of their groups, were trained on by "
                f"their names, such as {seen[0]}; leave them out, or give clips of other sources other names and groups"
            )

    def copies(self, clips: dict[Clip, Header]) -> dict[Clip, Clip]:
        """Returns those clips whose file is a copy of one that the run learned from, and what they copy: the same part
        of it, if that was learned from."""
        of_file = {digest: clip for clip, digest in self.trained_on.items()}
        of_part = {(digest, part_of(clip.id)): clip for clip, digest in self.trained_on.items()}
        digests = {clip: header.source.sha256 for clip, header in clips.items()}
        return {
            clip: of_part.get((digest, part_of(clip.id)), of_file[digest])
            for clip, digest in digests.items()
            if digest in of_file
        }

    @functools.cached_property
    def trained_on(self) -> dict[Clip, str]:
        """The clips that the run learned from, and the digests of their files."""
        return {clip: digest for clip, digest in self._clips(Path()) if digest}

    def _clips(self, root: Path) -> list[tuple[Clip, str]]:
        """Reads the clips of the data set, and the digests of the files of those that were learned from, else ''."""
        if not self.clips_file.exists() or self._digest_of_clips() != self.trained().get("clips_sha256"):
            raise KinemaError(f"{self.clips_file}: missing, or changed since training; delete it and train again")
        clips = []
        with self.clips_file.open(**AS_TEXT) as stream:
            for row in csv.DictReader(stream):
                start, end = (float(row[name]) if row[name] else None for name in ("start", "end"))
                name, path = clip_id(row["path"], start, end), root / row["path"]
                of_clip = {column: row[column] for column in ("label", "group", "split")}
                clips.append((Clip(id=name, path=path, start=start, end=end, **of_clip), row["sha256"]))
        return clips

    def _digest_of_clips(self) -> str:
        return Source.of(self.clips_file).sha256

    def finish(
        self,
        reduction: Reduction,
        heads: dict[str, Heads],
        history: dict[str, Any],
        identity: str,
        fingerprint: str,
        split: int | str,
    ) -> None:
        """Writes the heads, the reduction before them, and the history of their training."""
        (self.folder / "history.json").write_text(json.dumps(history, indent=1) + "\n")
        states = {part: module.state_dict() for part, module in {"reduction": reduction, **heads}.items()}
        tensors = {f"{part}.{name}": value for part, state in states.items() for name, value in state.items()}
        with atomic_write(self.model_file) as temporary:
            about = {"identity": identity, "fingerprint": fingerprint, "split": json.dumps(split)}
            about |= {"backbone_sha256": self._cnn(), "clips_sha256": self._digest_of_clips()}
            temporary.write_bytes(safetensors.torch.save(tensors, about | {"checksum": _checksum(tensors, about)}))

    def trained(self) -> dict[str, str]:
        """Returns what the heads were trained on: the `identity` of all, the `fingerprint` of the features, and which
        `split`, in JSON; nothing if they are not trained yet."""
        if not self.model_file.exists():
            return {}
        with self._open() as file:
            return file.metadata() or {}

    def load(self, config: Config, device: torch.device) -> tuple[Reduction, dict[str, Heads]]:
        """Loads the reduction, and the run's heads and its baselines by kind, the run's own first.

        Raises:
            KinemaError: the file does not hold them, or it or the CNN has changed since training.
        """
        with self._open() as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no dict)
            about = file.metadata() or {}
        if about.pop("checksum", None) != _checksum(tensors, about):
            raise KinemaError(f"{self.model_file}: damaged since training; delete it and train again")
        if about["backbone_sha256"] != self._cnn():
            raise KinemaError(
                f"{self.backbone_file}: not the CNN that the heads were trained with; delete {self.model_file.name} "
                "and train again"
            )
        states: dict[str, dict[str, torch.Tensor]] = defaultdict(dict)
        for name, value in tensors.items():
            part, rest = name.split(".", 1)
            states[part][rest] = value
        loaded = {}
        try:
            reduction = Reduction(*states["reduction"]["basis"].shape, config.head.pyramid_levels)
            reduction.load_state_dict(states["reduction"])
            shape = *reduction.shape, len(self.classes)
            for kind in dict.fromkeys((config.head.kind, "mean")):
                loaded[kind] = Heads(HEADS[kind](*shape, config.head) for _ in range(config.train.heads))
                loaded[kind].load_state_dict(states[kind])
                if issubclass(HEADS[kind], SequenceHead):  # A path of it that learned apart.
                    loaded["pyramid"] = Heads(head.pyramid for head in loaded[kind])
        except (KeyError, RuntimeError) as error:
            reason = first_line(error)
            raise KinemaError(f"{self.model_file}: does not fit config.yaml and classes.txt: {reason}") from None
        return reduction.eval(), {kind: heads.to(device).eval() for kind, heads in loaded.items()}

    def _cnn(self) -> str:
        return Source.of(self.backbone_file).sha256

    def _open(self) -> safetensors.safe_open:
        try:
            self.model_file.open("rb").close()  # Safetensors calls a file that may not be read one that is not there.
            return safetensors.safe_open(self.model_file, framework="pt")
        except safetensors.SafetensorError as error:
            raise KinemaError(
                f"{self.model_file}: not a readable safetensors file ({error}); delete it and train again"
            ) from None


def _checksum(tensors: dict[str, torch.Tensor], about: dict[str, str]) -> str:
    arrays = {name: tensor.cpu().numpy() for name, tensor in tensors.items()}
    return checksum(arrays, json.dumps(about, sort_keys=True))
