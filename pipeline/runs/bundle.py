"""The run bundle: a folder with everything that a prediction needs.

`config.yaml` holds the settings, `classes.txt` the classes in the order of the logits, `clips.csv` the clips with their
splits and the SHA-256 of the files trained on, `backbone.safetensors` the CNN, `history.json` the epochs and
`model.safetensors` the classifiers. The last is written last: with it a run is complete. `evaluate` adds
`metrics.json`, `predictions.csv`, `report.md` and its pictures; those of other data go to `other_data/`.
"""

import dataclasses
import functools
import json
import os
import shutil
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from pipeline.base.errors import ConfigError, KinemaError, first_line
from pipeline.base.files import atomic_write, checksum, read_json
from pipeline.base.settings import build, to_yaml
from pipeline.config import Config
from pipeline.data.clip import Clip
from pipeline.data.splits import Dataset
from pipeline.features.entry import Header
from pipeline.models.classifier import Classifier
from pipeline.models.heads import Head
from pipeline.models.reduction import Reduction
from pipeline.runs.clip_list import TEXT, ClipList, sha256

FORMAT = "2"
"""Version of the bundle. Increase it when an older bundle can no longer be read."""

METADATA = ("format", "identity", "fingerprint", "split", "kinds", "backbone_sha256", "clips_sha256", "checksum")


class Bundle:
    """The folder of a run."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.model_file = folder / "model.safetensors"
        self.backbone_file = folder / "backbone.safetensors"
        self.config_file = folder / "config.yaml"
        self.classes_file = folder / "classes.txt"
        self.clips_file = folder / "clips.csv"
        self.history_file = folder / "history.json"

    def require_complete(self) -> None:
        """Check that the bundle can be used.

        Raises:
            ConfigError: the folder does not exist.
            KinemaError: a file is missing, or another version of Kinema wrote the bundle.
        """
        if not self.folder.is_dir():
            raise ConfigError(f"{self.folder}: no such run; `kinema train` makes one, such as data/runs/demo")
        if missing := self.missing():
            raise KinemaError(f"{self.folder}: {missing[0]} is missing: training did not finish; run it again")
        self.metadata()

    def missing(self) -> list[str]:
        """Name the missing files of a complete run."""
        files = self.config_file, self.classes_file, self.backbone_file, self.model_file
        return [file.name for file in files if not file.is_file()]

    def config(self, overrides: dict[str, Any], allowed: tuple[str, ...] | None = None) -> Config:
        """Read the settings of the run; `allowed` are those that may be overridden."""
        return build(Config, self.config_file, overrides, allowed)

    @property
    def classes(self) -> list[str]:
        """Classes in the order of the logits."""
        return self.classes_file.read_text(**TEXT).splitlines()

    def begin(self, config: Config, dataset: Dataset, found: dict[Clip, Header], backbone_file: Path) -> None:
        """Write everything except the classifiers; `found` are the train and val clips that have features."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(self.config_file) as temporary:
            temporary.write_text(to_yaml(config), encoding="utf-8")
        self.classes_file.write_text("".join(f"{name}\n" for name in dataset.classes), **TEXT)
        ClipList(self.clips_file).write(dataset.clips, config.data.root, found)
        self.backbone_file.unlink(missing_ok=True)
        try:
            os.link(backbone_file, self.backbone_file)  # Takes no space on the same disk.
        except OSError:
            shutil.copyfile(backbone_file, self.backbone_file)

    def dataset(self, root: Path) -> Dataset:
        """Return the data set of the training, with the splits that it had then.

        Raises:
            ConfigError: there is no folder `root`.
        """
        if not root.is_dir():
            raise ConfigError(f"data.root: no such folder: {root.absolute()}; --data.root names that of the videos")
        return Dataset([*self.clip_list.read(root)], self.classes, json.loads(self.metadata()["split"]))

    @functools.cached_property
    def clip_list(self) -> ClipList:
        """The clips of the training's data set.

        Raises:
            KinemaError: the file is missing, or changed since training.
        """
        if not self.clips_file.exists() or sha256(self.clips_file) != self.metadata().get("clips_sha256"):
            raise KinemaError(f"{self.clips_file}: missing, or changed since training; delete it and train again")
        return ClipList(self.clips_file)

    def save_models(
        self, classifiers: dict[str, Classifier], history: dict[str, Any], metadata: dict[str, str]
    ) -> None:
        """Write the history and the classifiers by kind, the run's own first.

        `metadata` has the `identity` of the training, the `fingerprint` of the features and the `split` as JSON.
        """
        self.history_file.write_text(json.dumps(history, indent=1) + "\n", encoding="utf-8")
        tensors = {
            f"{kind}.{name}": value.detach().cpu().clone(memory_format=torch.contiguous_format)
            for kind, classifier in classifiers.items()
            for name, value in classifier.state_dict().items()
        }
        metadata = metadata | {"format": FORMAT, "kinds": " ".join(classifiers)}
        metadata |= {"backbone_sha256": sha256(self.backbone_file), "clips_sha256": sha256(self.clips_file)}
        metadata |= {"checksum": _checksum(tensors, metadata)}
        with atomic_write(self.model_file) as temporary:
            temporary.write_bytes(safetensors.torch.save(tensors, metadata))

    def metadata(self) -> dict[str, str]:
        """Return what `save_models` was given; {} if the run is not trained yet.

        Raises:
            KinemaError: the file is damaged, or of another version.
        """
        if not self.model_file.exists():
            return {}
        metadata = self._open().metadata() or {}
        if metadata.get("format") != FORMAT or not metadata.keys() >= {*METADATA}:
            raise KinemaError(
                f"{self.model_file}: of another version of Kinema (format {metadata.get('format', 1)}, this version "
                f"reads {FORMAT}); delete {self.folder} and train again"
            )
        return metadata

    def load_models(self, config: Config, device: torch.device) -> dict[str, Classifier]:
        """Load the classifiers by kind, the run's own first.

        Raises:
            KinemaError: the file is damaged, or it or the CNN has changed since training.
        """
        metadata, file = self.metadata(), self._open()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no dict)
        if metadata.pop("checksum") != _checksum(tensors, metadata):
            raise KinemaError(f"{self.model_file}: damaged since training; delete it and train again")
        if metadata["backbone_sha256"] != sha256(self.backbone_file):
            raise KinemaError(
                f"{self.backbone_file}: not the CNN that the run was trained with; delete {self.model_file.name} "
                "and train again"
            )
        loaded = {}
        try:
            for kind in metadata["kinds"].split():
                prefix = f"{kind}."
                state = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
                head = dataclasses.replace(config.head, kind=kind)
                reduction = Reduction(*state["reduction.basis"].shape, state["reduction.motion_basis"].shape[1])
                classifier = Classifier(reduction, Head.build(reduction.widths, len(self.classes), head))
                classifier.load_state_dict(state)
                loaded[kind] = classifier.to(device).eval()
        except (KeyError, ValueError, RuntimeError) as error:
            reason = first_line(error)
            raise KinemaError(f"{self.model_file}: does not fit config.yaml and classes.txt: {reason}") from None
        return loaded

    def history(self) -> dict[str, list[dict[str, float]]]:
        """Read the records of the epochs, by kind.

        Raises:
            KinemaError: the file is damaged or missing.
        """
        try:
            stages = read_json(self.history_file).items()
            return {
                kind: [{key: float(value) for key, value in record.items()} for record in records]
                for kind, records in stages
            }
        except (OSError, AttributeError, TypeError, ValueError):
            raise KinemaError(f"{self.history_file}: damaged; delete {self.folder} and train again") from None

    def _open(self) -> safetensors.safe_open:
        try:
            self.model_file.open("rb").close()  # Raises PermissionError, which safetensors reports as a missing file.
            return safetensors.safe_open(self.model_file, framework="pt")
        except safetensors.SafetensorError as error:
            raise KinemaError(
                f"{self.model_file}: not a readable safetensors file ({error}); delete it and train again"
            ) from None


def _checksum(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> str:
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    return checksum(arrays, json.dumps(metadata, sort_keys=True))
