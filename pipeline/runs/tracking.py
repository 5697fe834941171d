"""Weights & Biases: the same calls online, offline and off; off never imports wandb.

All jobs on a bundle log to one W&B run, whose id is in the bundle. Metrics have the same names for every head:
`train/`, `val/` and `refit/` over `epoch`; `throughput/` over the seconds of the extraction; `extract/`, `best/`,
`test/` and `baseline/<name>/` in the summary."""

import hashlib
import importlib.metadata
import os
import re
import shlex
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from pipeline.base.errors import KinemaError
from pipeline.base.files import read_content
from pipeline.base.settings import flat_values
from pipeline.config import Config

PACKAGES = "kinema", "torch", "timm", "av", "decord2"
ENVIRONMENT = ("train.seed", "store", "runs", "device", "tracking", "tracking_media", "decode.workers")
"""Settings in which runs of one W&B group may differ."""


class Tracker:
    """The W&B run of the bundle in `folder`, as a context manager; `run` is None if tracking is off."""

    def __init__(self, config: Config, folder: Path, fingerprint: str):
        self.run, self.folder, self.best = None, folder, (-1.0, 0.0)  # Validation accuracy and -loss.
        self.set_data_folder = False
        mode = config.tracking if config.tracking != "auto" else os.environ.get("WANDB_MODE") or "auto"
        if mode in ("off", "disabled"):
            return
        import wandb

        settings = flat_values(config)
        shared = {name: str(value) for name, value in settings.items() if name not in ENVIRONMENT}
        facts = {"fingerprint": fingerprint, "clips_sha256": read_content(folder / "clips.csv")[2]}
        facts |= {f"version.{name}": importlib.metadata.version(name) for name in PACKAGES}
        data = (config.data.lists or config.data.root).stem
        try:
            if mode == "auto":
                mode = "offline"
                with suppress(wandb.Error):  # There is an account, but no connection.
                    mode = "online" if wandb.login(prompt=False) else "offline"
            self.run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "kinema"),
                id=_run_id(folder),
                resume="allow",
                name=folder.name,
                group=f"{data}-{config.head.kind}-{hashlib.sha256(str(shared).encode()).hexdigest()[:8]}",
                job_type=config.head.kind,
                tags=[config.head.kind, config.backbone.model[:64], data[:64]],
                dir=folder,
                mode=mode,
                config=settings | facts,
                # Several runs of one process are independent of each other.
                settings=wandb.Settings(silent=True, console="off", reinit="create_new"),
            )
        except (wandb.Error, ValueError) as error:  # ValueError: its own settings are wrong.
            reason = " ".join(str(error).split()).partition(" [type=")[0][:200]
            raise KinemaError(f"tracking: W&B cannot start ({reason}); use --tracking offline or off") from None
        self.run.define_metric("epoch", hidden=True)
        for stage in ("train", "val", "refit"):
            self.run.define_metric(f"{stage}/*", step_metric="epoch")
        self.run.define_metric("throughput/*", step_metric="throughput/seconds")
        if "WANDB_DATA_DIR" not in os.environ:  # Where W&B keeps the content of tables and artifacts until the upload.
            os.environ["WANDB_DATA_DIR"], self.set_data_folder = str(folder.absolute() / "wandb" / "data"), True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error: object, *_: object) -> None:
        if not self.run:
            return
        place = os.path.relpath(Path(self.run.dir).parent)
        self.run.finish(exit_code=1 if error else 0)
        if self.set_data_folder:
            del os.environ["WANDB_DATA_DIR"]
        if not error:
            upload = f"{place}, upload from this machine with: {shlex.join(['wandb', 'sync', place])}"
            print(f"W&B: {upload if self.run.offline else self.run.url}")

    def log_epoch(self, stage: str, record: dict[str, float]) -> None:
        """Log the record of an epoch, and keep the best validation accuracy in the summary."""
        if not self.run:
            return
        part = "refit" if stage.endswith("-refit") else "train"
        values = {"epoch": record["epoch"]}
        for key, value in record.items():
            if key != "epoch":
                values[f"val/{key.removeprefix('val_')}" if key.startswith("val_") else f"{part}/{key}"] = value
        self.run.log(values)
        if "val/top1" in values and (values["val/top1"], -values["val/loss"]) > self.best:
            self.best = values["val/top1"], -values["val/loss"]
            self.summary({"best/top1": values["val/top1"], "best/loss": values["val/loss"]})
            self.summary({"best/epoch": values["epoch"]})

    def log_extraction(self, record: dict[str, Any]) -> None:
        """Log the curve of an extraction's throughput, and its totals to the summary."""
        for point in record.get("throughput", ()):
            if self.run:
                self.run.log({f"throughput/{name}": value for name, value in point.items()})
        self.summary({name: value for name, value in record.items() if name != "throughput"})

    def summary(self, values: dict[str, Any]) -> None:
        if self.run:
            self.run.summary.update(values)

    def log_model(self, files: list[Path], store: Path) -> None:
        """Log the files of the bundle as the model artifact of the run's name, and the manifest of the feature store by
        reference. A model online is `best` if none of its name had a better validation accuracy."""
        if not self.run:
            return
        import wandb

        features = wandb.Artifact(f"features-{store.name}", "features", metadata={"folder": str(store.absolute())})
        features.add_reference((store / "manifest.json").absolute().as_uri())
        (self.run.log_artifact if self.run.offline else self.run.use_artifact)(features)
        name = re.sub(r"[^\w.-]", "-", self.folder.name, flags=re.ASCII)
        model = wandb.Artifact(name, "model", metadata={"best/top1": self.best[0], "best/loss": -self.best[1]})
        for file in files:
            model.add_file(str(file), policy="immutable")  # Not copied: a run does not change once it is trained.
        self.run.log_artifact(model, aliases=["latest", *(["best"] if self._is_best(name) else [])])

    def _is_best(self, name: str) -> bool:
        if self.run.offline:
            return False  # Not known before the upload.
        import wandb

        try:
            known = wandb.Api().artifact(f"{self.run.entity}/{self.run.project}/{name}:best").metadata
        except (wandb.Error, ValueError):
            return True  # The first of its name.
        return self.best[0] >= known.get("best/top1", 0)


def download_model(name: str) -> Path:
    """Download the bundle of a model artifact, such as `entity/project/ucf101:best`, and return its folder."""
    import wandb

    try:
        return Path(wandb.Api().artifact(name, type="model").download())
    except (wandb.Error, ValueError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise KinemaError(f"wandb:{name}: cannot be downloaded ({reason}); see `wandb login`") from None


def _run_id(folder: Path) -> str:
    """Return the id in the bundle; write it if there is none, that of W&B's agent if one has started this process."""
    file = folder / "wandb_id.txt"
    if not file.exists():
        file.write_text(f"{os.environ.get('WANDB_RUN_ID') or uuid.uuid4().hex[:8]}\n", encoding="utf-8")
    return file.read_text(encoding="utf-8").strip()
