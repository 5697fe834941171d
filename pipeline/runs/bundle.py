"""The run bundle: a folder with everything that a prediction needs.

`config.yaml` holds the settings, `classes.txt` the classes in the order of the logits, `clips.csv` the clips with their
splits and the SHA-256 of the files trained on, `backbone.safetensors` the CNN, `history.json` the epochs, and
`model.safetensors`, written last, the classifiers. `evaluate` adds results, those of other data in `other_data/`."""

import csv
import dataclasses
import functools
import json
import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
import torch
from torch import nn

from pipeline.base.device import resolve_device
from pipeline.base.errors import ConfigError, KinemaError, first_line, summarize
from pipeline.base.files import atomic_write, checksum, read_content
from pipeline.base.settings import build, to_yaml
from pipeline.config import OVERRIDABLE, Config
from pipeline.data.clip import Clip, clip_id, segment_of
from pipeline.data.formats import CSV_COLUMNS, read_clips
from pipeline.data.splits import Dataset
from pipeline.features.entry import Header
from pipeline.features.store import FeatureStore
from pipeline.models.classifier import Classifier
from pipeline.models.heads import Head
from pipeline.models.reduction import Reduction
from pipeline.models.windows import Window
from pipeline.runs.dataset import find_clips

FORMAT = "4"  # Increment when older bundles can no longer be read.
TEXT = {"encoding": "utf-8", "errors": "surrogateescape"}  # File names need not be valid text.


class Bundle:
    def __init__(self, folder: Path):
        self.folder = folder
        self.model_file, self.backbone_file = folder / "model.safetensors", folder / "backbone.safetensors"
        self.config_file, self.classes_file = folder / "config.yaml", folder / "classes.txt"
        self.clips_file, self.history_file = folder / "clips.csv", folder / "history.json"

    @classmethod
    def load(cls, folder: Path, overrides: dict[str, Any], command: str) -> tuple["Bundle", Config, torch.device, dict]:
        """Check a run and load its classifiers, with the settings that a command can change."""
        bundle = cls(folder)
        if not folder.is_dir():
            raise ConfigError(f"{folder}: no such run; `kinema train` makes one, such as data/runs/demo")
        if missing := bundle.missing():
            raise KinemaError(f"{folder}: {missing[0]} is missing: training did not finish; run it again")
        bundle.metadata()
        config = build(Config, bundle.config_file, overrides, OVERRIDABLE[command])
        device = resolve_device(config.device)
        return bundle, config, device, bundle.load_models(config, device)

    def files(self) -> list[Path]:
        """Return the files that training writes, those that a prediction needs first."""
        needed = [self.config_file, self.classes_file, self.backbone_file, self.model_file]
        return [*needed, self.clips_file, self.history_file]

    def missing(self) -> list[str]:
        return [file.name for file in self.files()[:4] if not file.is_file()]

    @property
    def classes(self) -> list[str]:
        return self.classes_file.read_text(encoding="utf-8").splitlines()

    def history(self) -> dict[str, list[dict[str, float]]]:
        """Read the records of the epochs by stage."""
        try:
            return json.loads(self.history_file.read_text(encoding="utf-8"))
        except ValueError:
            raise KinemaError(f"{self.history_file}: damaged; delete {self.folder} and train again") from None

    def clips(self, root: Path) -> dict[Clip, str]:
        """Read the clips of the training's data set, in `root`, with the SHA-256 of those trained on, '' for others."""
        self._require_unchanged(self.clips_file)
        clips = {}
        with self.clips_file.open(newline="", **TEXT) as stream:
            for row in csv.DictReader(stream):
                start, end = (float(row[name]) if row[name] else None for name in ("start", "end"))
                place = {"id": clip_id(row["path"], start, end), "path": root / row["path"], "start": start, "end": end}
                clips[Clip(**place, **{name: row[name] for name in ("label", "group", "split")})] = row["sha256"]
        return clips

    @functools.cached_property
    def trained_on(self) -> dict[Clip, str]:
        """Train and val clips, with the SHA-256 of their files."""
        return {clip: digest for clip, digest in self.clips(Path()).items() if digest}

    def dataset(self, root: Path) -> Dataset:
        """Return the data set with the splits that it had in training."""
        return Dataset([*self.clips(root)], self.classes, json.loads(self.metadata()["split"]))

    def is_in(self, root: Path) -> bool:
        """Whether `root` holds this data set: some of its files, and the first of those trained on with its content."""
        there = {clip.path: digest for clip, digest in self.clips(root).items() if clip.path.is_file()}
        trained_on = [(path, digest) for path, digest in there.items() if digest]
        return bool(there) and all(read_content(path)[2] == digest for path, digest in trained_on[:1])

    def copies(self, found: dict[Clip, Header]) -> dict[Clip, Clip]:
        """Map test clips that are copies of files trained on to the clip trained on, of the same segment if possible.

        Raise if test clips share a file or a group with training clips. Where a file is its own group, the content
        decides, since two data sets may have files of the same name."""
        file_of = {clip: clip.id.removesuffix(segment_of(clip)) for clip in [*self.trained_on, *found]}
        files = {(file_of[clip], digest) for clip, digest in self.trained_on.items()}
        groups, seen = {clip.group for clip in self.trained_on}, []
        for clip, header in found.items():
            if (file_of[clip], header.sha256) in files or (clip.group in groups and clip.group != file_of[clip]):
                seen.append(clip.id)
        if seen:
            message = f"{len(seen)} of {len(found)} test clips share a file or a group with training clips"
            remedy = "remove them, or rename their groups if the recordings differ"
            raise KinemaError(f"{message}: {summarize(seen)}; {remedy}")
        of_file = {digest: clip for clip, digest in self.trained_on.items()}
        of_segment = {(digest, segment_of(clip)): clip for clip, digest in self.trained_on.items()}
        return {
            clip: of_segment.get((header.sha256, segment_of(clip)), of_file[header.sha256])
            for clip, header in found.items()
            if header.sha256 in of_file
        }

    def begin(self, config: Config, dataset: Dataset, found: dict[Clip, Header], backbone_file: Path) -> None:
        """Write everything except the classifiers; `found` are the train and val clips that have features."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(self.config_file) as temporary:
            temporary.write_text(to_yaml(config), encoding="utf-8")
        self.classes_file.write_text("".join(f"{name}\n" for name in dataset.classes), encoding="utf-8")
        with self.clips_file.open("w", newline="", **TEXT) as stream:
            writer = csv.DictWriter(stream, (*CSV_COLUMNS, "sha256"), extrasaction="ignore")
            writer.writeheader()
            for clip in dataset.clips:
                digest = found[clip].sha256 if clip in found else ""
                writer.writerow(vars(clip) | {"path": clip.path.relative_to(config.data.root), "sha256": digest})
        self.backbone_file.unlink(missing_ok=True)
        try:
            os.link(backbone_file, self.backbone_file)  # Takes no space on the same disk.
        except OSError:
            shutil.copyfile(backbone_file, self.backbone_file)

    def save_models(self, classifiers: dict[str, Classifier], history: dict, metadata: dict[str, str]) -> None:
        """Write history and classifiers, the run's own first, with `identity`, `fingerprint` and `split` (JSON)."""
        self.history_file.write_text(json.dumps(history, indent=1) + "\n", encoding="utf-8")
        state = nn.ModuleDict(classifiers).cpu().state_dict()
        tensors = {name: value.clone(memory_format=torch.contiguous_format) for name, value in state.items()}
        metadata = metadata | {"format": FORMAT, "kinds": " ".join(classifiers)}
        metadata |= {f"{file.stem}_sha256": read_content(file)[2] for file in (self.backbone_file, self.clips_file)}
        metadata["checksum"] = _checksum(tensors, metadata)
        with atomic_write(self.model_file) as temporary:
            temporary.write_bytes(safetensors.torch.save(tensors, metadata))

    def metadata(self) -> dict[str, str]:
        """Read what `save_models` was given; {} if the run is not trained yet."""
        if not self.model_file.exists():
            return {}
        try:
            self.model_file.open("rb").close()  # Raises PermissionError, which safetensors reports as a missing file.
            with safetensors.safe_open(self.model_file, framework="pt") as file:
                metadata = file.metadata() or {}
        except safetensors.SafetensorError as error:
            raise KinemaError(f"{self.model_file}: damaged ({error}); delete it and train again") from None
        if (version := metadata.get("format", "1")) != FORMAT:
            formats = f"format {version}, this version reads {FORMAT}"
            raise KinemaError(f"{self.folder}: by another version of Kinema ({formats}); delete it and train again")
        return metadata

    def window(self) -> Window | None:
        """Return how the run looks at recordings; None for a run of a version that only looked at clips."""
        window = self.metadata().get("window")
        return Window(**json.loads(window)) if window else None

    def load_models(self, config: Config, device: torch.device) -> dict[str, Classifier]:
        """Load the classifiers by kind, the run's own first; check that they and the CNN have not changed."""
        metadata, tensors = self.metadata(), safetensors.torch.load_file(self.model_file)
        if metadata.pop("checksum", None) != _checksum(tensors, metadata):
            raise KinemaError(f"{self.model_file}: damaged since training; delete it and train again")
        self._require_unchanged(self.backbone_file)
        classifiers = nn.ModuleDict()
        for kind in metadata["kinds"].split():
            basis, motion_basis = (tensors[f"{kind}.reduction.{name}"] for name in ("basis", "motion_basis"))
            reduction = Reduction(*basis.shape, motion_basis.shape[1])
            head = Head.build(reduction.widths, len(self.classes), dataclasses.replace(config.head, kind=kind))
            classifiers[kind] = Classifier(reduction, head)
        try:
            classifiers.load_state_dict(tensors)
        except RuntimeError as error:
            reason = f"does not fit config.yaml and classes.txt: {first_line(error)}"
            raise KinemaError(f"{self.model_file}: {reason}") from None
        return dict(classifiers.to(device).eval().items())

    def _require_unchanged(self, file: Path) -> None:
        if not file.exists() or read_content(file)[2] != self.metadata().get(f"{file.stem}_sha256"):
            raise KinemaError(f"{file}: missing, or changed since training; delete {self.model_file} and train again")


class Tested(NamedTuple):
    bundle: Bundle
    config: Config
    device: torch.device
    classifiers: dict[str, Classifier]  # By kind, the run's own first.
    dataset: Dataset
    is_own: bool  # Whether this is the data set that the run was trained on.
    store: FeatureStore
    found: dict[Clip, Header]  # The test clips that have features.


def open_tested(run: Path, overrides: dict[str, str]) -> Tested:
    """Load a run and find its test clips, or those of other data, named by overrides; without splits, all are test."""
    bundle, config, device, classifiers = Bundle.load(run, overrides, "evaluate")
    changed = {name for name in overrides if name.startswith("data.")}
    is_own = not changed or (changed == {"data.root"} and bundle.is_in(config.data.root))
    if is_own:
        dataset = bundle.dataset(config.data.root)
    else:
        clips, _, split = read_clips(config.data)
        clips = [dataclasses.replace(clip, split="test") for clip in clips if clip.split in ("test", "")]
        if unknown := sorted({clip.label for clip in clips} - {*bundle.classes}):
            raise KinemaError(f"{run}: the run has no class {summarize(unknown)}; train a new one")
        dataset = Dataset(clips, bundle.classes, split)
    store = FeatureStore(config.store / bundle.metadata()["fingerprint"], config.decode.min_readable)
    found = find_clips(store, dataset, "test", config.max_missing)
    return Tested(bundle, config, device, classifiers, dataset, is_own, store, found)


def _checksum(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> str:
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    return checksum(arrays, json.dumps(metadata, sort_keys=True))
