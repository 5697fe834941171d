"""Features -> trained heads in a run bundle: the head that the config asks for, and the `mean` baseline beside it.

kinema train --config configs/ucf101.yaml --run ucf101
"""

import dataclasses
import functools
import hashlib
import shlex
import time
from pathlib import Path

import torch
from tqdm import tqdm

from pipeline.base.device import resolve_device
from pipeline.base.errors import ConfigError, KinemaError
from pipeline.base.progress import progress
from pipeline.base.settings import to_yaml, yaml_differences
from pipeline.config import Config
from pipeline.data.clip import Clip
from pipeline.data.splits import load_dataset
from pipeline.features.entry import Header
from pipeline.features.store import FeatureStore
from pipeline.models.heads import Heads
from pipeline.runs.bundle import Bundle
from pipeline.runs.dataset import ClipSet, find_clips, load_reduced, warn_of_conflicts
from pipeline.runs.fusion import tune_fusion
from pipeline.runs.tracking import Tracker
from pipeline.runs.trainer import Checkpoint, fit
from pipeline.runs.tuning import tune, with_settings

PLACES = ("runs", "store", "device", "tracking", "decode", "max_missing")
"""Settings that do not change what a run learns."""


def train(config: Config, run: str) -> None:
    """Trains on the stored features and writes the bundle `<runs>/<run>`.

    Raises:
        ConfigError: the bundle exists with other settings, or its name is a path.
        KinemaError: features are missing, or the data cannot be used.
    """
    if Path(run).name != run or run == "..":
        raise ConfigError(f"--run {run}: a name, not a path; --runs names the folder of the bundles")
    bundle = Bundle(config.runs / run)
    if asked := bundle.asked():
        changed = yaml_differences(asked, to_yaml(config), ignore=PLACES)
        if changed:
            raise ConfigError(
                f"{bundle.folder} holds a run with other settings ({'; '.join(changed)}); "
                "give this one another name with --run, or delete that folder"
            )
    device = resolve_device(config.device)
    dataset = load_dataset(config.data)
    if len(dataset.classes) == 1:
        raise KinemaError("one class alone leaves nothing to learn; name the folder of all classes by data.root")
    store = FeatureStore.last(config.store, config.backbone, config.sampling, config.decode.min_readable)
    found = {split: find_clips(store, dataset, split, config.max_missing) for split in ("train", "val")}
    identity = _digest(f"{store.fingerprint} {config.head} {config.train} {dataset.classes}", found)
    trained_on = bundle.trained().get("identity")
    if trained_on == identity and not bundle.missing() and bundle.clips_file.exists():
        print(f"{bundle.folder} is trained already with these settings and clips")
        return
    if trained_on not in (None, identity):
        raise ConfigError(
            f"{bundle.folder} was trained on other clips or features; "
            "give this run another name with --run, or delete that folder"
        )

    for split in ("train", "val", "test"):
        clips_of = dataset.of(split)
        print(f"{split}: {len(clips_of)} clips in {len({clip.group for clip in clips_of})} groups")
    warn_of_conflicts(found["train"] | found["val"])
    learned_from = [*found["train"], *found["val"]]
    is_train_N = torch.tensor([clip.split == "train" for clip in learned_from])
    began = time.monotonic()
    reduction, clips = load_reduced(config, store, learned_from, dataset.classes, is_train_N)
    seconds = {"load features": time.monotonic() - began}
    if config.train.auto:
        tuning = bundle.tuning(identity)
        if not tuning:
            tried_on = [*found["train"]]

            def load(learns_N: torch.Tensor) -> ClipSet:
                return load_reduced(config, store, tried_on, dataset.classes, learns_N)[1]

            labels, groups = [clip.label for clip in tried_on], [clip.group for clip in tried_on]
            tuning = tune(config, load, labels, groups, device)
            bundle.keep_tuning(identity, config, tuning)
        print("tried on groups of the training split, held out in turn:", *tuning.tried, sep="\n  ")
        config = with_settings(config, tuning.chosen)
    bundle.begin(config, dataset, found["train"] | found["val"], store.backbone_file)
    tracker = Tracker(config, bundle.folder, "train")
    heads: dict[str, Heads] = {}
    history: dict[str, list[dict[str, float]]] = {}

    def fit_all(clips: ClipSet, learns_N: torch.Tensor, suffix: str) -> None:
        checked = hashlib.sha256(identity.encode())
        checked.update(clips.parts_NPK.numpy())  # Other threads may change these numbers, and then nothing is resumed.
        for kind in dict.fromkeys((config.head.kind, "mean")):
            name = kind + suffix
            with progress(f"train {name}", config.train.epochs, "epochs") as bar:
                heads[kind], history[name] = fit(
                    dataclasses.replace(config.head, kind=kind),
                    config.train,
                    clips,
                    learns_N.expand(config.train.heads, -1),
                    device,
                    functools.partial(_tell, bar, tracker, name),
                    validate=not learns_N.all(),
                    checkpoint=Checkpoint(bundle.folder / f"checkpoint-{name}.safetensors", checked.hexdigest()),
                )

    fit_all(clips, is_train_N, "")
    fusion_weights = {kind: tune_fusion(some.cpu(), clips.where(~is_train_N)) for kind, some in heads.items()}
    for kind, records in history.items():
        best = min(records, key=lambda record: record["val_loss"])
        print(f"{kind}: validation top-1 {records[-1]['val_top1']:.3f}, loss lowest after epoch {best['epoch']}")
        of_paths = fusion_weights[kind]["fusion_weights"].tolist()
        if len(of_paths) > 1:
            print(f"{kind}: fusion weights of its paths {', '.join(f'{value:.2f}' for value in of_paths)}")
    if config.train.refit:
        all_N = torch.ones_like(is_train_N)
        del clips  # Both in memory would be twice the space.
        began = time.monotonic()
        reduction, clips = load_reduced(config, store, learned_from, dataset.classes, all_N)
        seconds["load features"] += time.monotonic() - began
        fit_all(clips, all_N, "-refit")
        print("trained anew on all training clips, those of validation among them")
    for kind, some in heads.items():
        for head in some:
            head.load_state_dict(fusion_weights[kind], strict=False)
    bundle.finish(reduction, heads, history, identity, store.fingerprint, dataset.split)
    seconds |= {name: sum(record["seconds"] for record in records) for name, records in history.items()}
    tracker.summary({f"seconds/{name}": value for name, value in seconds.items()})
    for name in history:
        (bundle.folder / f"checkpoint-{name}.safetensors").unlink(missing_ok=True)  # Another process had the same run.
    tracker.finish()
    print(f"trained: {bundle.folder}; next: {shlex.join(('kinema', 'evaluate', str(bundle.folder)))}")


def _digest(settings: str, found: dict[str, dict[Clip, Header]]) -> str:
    """Digests all that the result of a training depends on."""
    digest = hashlib.sha256(settings.encode())
    for split, headers in found.items():
        for clip, header in headers.items():
            of_clip = split, clip.id, clip.label, clip.group, header.frames, header.source.sha256
            digest.update(f"{of_clip}\n".encode())
    return digest.hexdigest()


def _tell(bar: tqdm, tracker: Tracker, name: str, record: dict[str, float]) -> None:
    if not bar.n:
        bar.initial = bar.n = record["epoch"] - 1  # What a stopped run has done is not counted in the rate.
    shown = ("loss", "val_loss", "val_top1")
    bar.set_postfix_str(", ".join(f"{key} {record[key]:.3f}" for key in shown if key in record), False)
    bar.update(record["epoch"] - bar.n)
    tracker.log({f"{name}/{key}": value for key, value in record.items()})
