"""Weights & Biases: the same calls online, offline and off; off never imports wandb."""

import os
import shlex
from pathlib import Path
from types import ModuleType
from typing import Any, Self

from pipeline.base.errors import KinemaError
from pipeline.base.settings import to_yaml
from pipeline.config import Config


class Tracker:
    """One W&B run, as a context manager. Training and evaluation of a bundle are two runs of one W&B group."""

    def __init__(self, config: Config, folder: Path, job: str):
        """Start the run.

        Args:
            config: `tracking` is the mode; all settings are logged.
            folder: the bundle; offline runs are written into it and its name is the group.
            job: 'train' or 'evaluate'.

        Raises:
            KinemaError: W&B is to be online and cannot be reached, or its own settings are wrong.
        """
        self.run, self.kind = None, config.head.kind
        mode = config.tracking if config.tracking != "auto" else os.environ.get("WANDB_MODE") or "auto"
        if mode in ("off", "disabled"):
            return
        import wandb
        import yaml

        try:
            if mode == "auto":
                mode = "online" if _has_account(wandb) else "offline"
            self.run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "kinema"),
                name=f"{folder.name}-{job}",
                group=folder.name,
                job_type=job,
                dir=folder,
                mode=mode,
                config=yaml.safe_load(to_yaml(config)),
                # Several runs of one process are independent of each other.
                settings=wandb.Settings(silent=True, console="off", reinit="create_new"),
            )
        except (wandb.Error, ValueError) as error:  # ValueError: its own settings are wrong.
            reason = " ".join(str(error).split()).partition(" [type=")[0][:200]
            raise KinemaError(f"tracking: W&B cannot start ({reason}); use --tracking offline or off") from None
        if job == "train":
            self.run.define_metric("*", step_metric="epoch")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error: object, *_: object) -> None:
        """Finish the run and print where it is."""
        if not self.run:
            return
        run, folder = self.run, Path(self.run.dir).parent
        run.finish(exit_code=1 if error else 0)
        if error:
            return
        if run.offline:
            place = os.path.relpath(folder)
            print(f"W&B: {place}, upload with: {shlex.join(['wandb', 'sync', place])}")
        else:
            print(f"W&B: {run.url}")

    def log_epoch(self, stage: str, record: dict[str, float]) -> None:
        """Log the record of an epoch as `<stage>/<key>` over the axis `epoch`.

        Validation results of the run's own head are also logged as `val/top1` and `val/loss`, whatever its kind.
        """
        if not self.run:
            return
        values = {f"{stage}/{key}": value for key, value in record.items()} | {"epoch": record["epoch"]}
        if stage == self.kind and "val_loss" in record:
            values |= {"val/top1": record["val_top1"], "val/loss": record["val_loss"]}
        self.run.log(values)

    def log(self, values: dict[str, Any]) -> None:
        """Log pictures and pages by name.

        Tables are not suited: they are artifacts, which an offline run stores under absolute paths, so that it could
        not be uploaded from elsewhere.
        """
        if self.run:
            self.run.log(values)

    def summary(self, values: dict[str, Any]) -> None:
        """Set columns of the list of runs."""
        if self.run:
            self.run.summary.update(values)


def _has_account(wandb: ModuleType) -> bool:
    """Whether this machine has an account and reaches it."""
    try:
        return wandb.login(prompt=False)
    except wandb.Error:
        return False
