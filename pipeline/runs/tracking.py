"""Weights & Biases: the same calls online, offline and off; off never imports wandb."""

import dataclasses
import os
import shlex
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from pipeline.base.errors import KinemaError
from pipeline.config import Config


class Tracker:
    """One W&B run, as a context manager, of a job, 'train' or 'evaluate'. Jobs of one bundle share a W&B group."""

    def __init__(self, config: Config, folder: Path, job: str):
        self.run, self.kind = None, config.head.kind
        mode = config.tracking if config.tracking != "auto" else os.environ.get("WANDB_MODE") or "auto"
        if mode in ("off", "disabled"):
            return
        import wandb

        try:
            if mode == "auto":
                mode = "offline"
                with suppress(wandb.Error):  # There is an account, but no connection.
                    mode = "online" if wandb.login(prompt=False) else "offline"
            self.run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "kinema"),
                name=f"{folder.name}-{job}",
                group=folder.name,
                job_type=job,
                dir=folder,
                mode=mode,
                config=dataclasses.asdict(config),
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
        if not self.run:
            return
        place = os.path.relpath(Path(self.run.dir).parent)
        self.run.finish(exit_code=1 if error else 0)
        if not error:
            upload = f"{place}, upload with: {shlex.join(['wandb', 'sync', place])}"
            print(f"W&B: {upload if self.run.offline else self.run.url}")

    def log_epoch(self, stage: str, record: dict[str, float]) -> None:
        """Log the record of an epoch as `<stage>/<key>`; validation of the run's own head also as `val/<key>`."""
        values = {f"{stage}/{key}": value for key, value in record.items()} | {"epoch": record["epoch"]}
        if stage == self.kind and "val_loss" in record:
            values |= {"val/top1": record["val_top1"], "val/loss": record["val_loss"]}
        if self.run:
            self.run.log(values)

    def summary(self, values: dict[str, Any]) -> None:
        if self.run:
            self.run.summary.update(values)
