"""Weights & Biases: the same calls online, offline and off; off never imports wandb."""

import os
import shlex
from pathlib import Path
from types import ModuleType
from typing import Any

from pipeline.base.errors import KinemaError
from pipeline.base.settings import to_yaml
from pipeline.config import Config


class Tracker:
    """One W&B run. Training and evaluation of a bundle are two runs of one W&B group, since a run that ended offline
    cannot be continued."""

    def __init__(self, config: Config, folder: Path, job: str):
        """Starts the run.

        Args:
            config: `tracking` says how; the whole is logged.
            folder: the bundle, where offline runs are kept and whose name names the group.
            job: 'train' or 'evaluate'.

        Raises:
            KinemaError: W&B was asked to be online and cannot be reached, or its own settings are wrong.
        """
        self.run = None
        mode = config.tracking if config.tracking != "auto" else os.environ.get("WANDB_MODE") or "auto"
        if mode in ("off", "disabled"):
            return
        import wandb
        import yaml

        # Pictures of offline tables wait here for the sync; by default that is somewhere in the home folder.
        os.environ.setdefault("WANDB_DATA_DIR", str((folder / "wandb").resolve()))
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
                settings=wandb.Settings(silent=True, console="off"),
            )
        except (wandb.Error, ValueError) as error:  # What is wrong with its own settings is a ValueError.
            reason = " ".join(str(error).split()).partition(" [type=")[0][:200]
            raise KinemaError(f"tracking: W&B cannot start ({reason}); use --tracking offline or off") from None

    def log(self, values: dict[str, Any]) -> None:
        """Logs numbers, pictures and tables by name."""
        if self.run:
            self.run.log(values)

    def summary(self, values: dict[str, Any]) -> None:
        """Sets what the run shows in the list of runs."""
        if self.run:
            self.run.summary.update(values)

    def finish(self) -> None:
        """Ends the run and prints where it is."""
        if not self.run:
            return
        run, folder = self.run, Path(self.run.dir).parent
        run.finish()
        if run.offline:
            place = os.path.relpath(folder)
            print(f"W&B: {place}, upload with: {shlex.join(['wandb', 'sync', place])}")
        else:
            print(f"W&B: {run.url}")


def _has_account(wandb: ModuleType) -> bool:
    """Whether this machine has an account and reaches it."""
    try:
        return wandb.login(prompt=False)
    except wandb.Error:
        return False
