"""All settings with their bounds, help texts and defaults."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Gt, Interval

PositiveInt = Annotated[int, Gt(0)]
PositiveFloat = Annotated[float, Gt(0)]
Fraction = Annotated[float, Interval(ge=0, le=1)]
BelowOne = Annotated[float, Interval(ge=0, lt=1)]
HeldOut = Annotated[float, Interval(gt=0, le=0.5)]
Seed = Annotated[int, Interval(ge=0, lt=2**32)]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
View = Literal["pooled", "grid"]
Imbalance = Literal["none", "balanced_softmax"]
Tracking = Literal["auto", "online", "offline", "off"]

OVERRIDABLE: dict[str, tuple[str, ...]] = {
    "evaluate": ("data", "store", "decode", "max_missing", "device", "tracking", "tracking_media"),
    "probe": ("data", "store", "decode", "max_missing", "device"),
    "report": ("data.root", "decode"),
    "compare": (),
    "predict": ("device", "decode", "backbone.engine", "backbone.precision"),
    "explain": ("device", "decode", "backbone.engine", "backbone.precision"),
    "export": ("data.root", "decode"),
    "store": ("store",),
}
"""Settings and sections that a command can change; the run or the store fixes the rest. Other commands take all."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    root: Annotated[Path, "Folder with the videos."] = Path("data/videos")
    lists: Annotated[Path | None, "CSV file or folder of official lists. `null`: one folder per class."] = None
    split: Annotated[int, Interval(ge=1, le=3), "Official split of UCF101 or HMDB51."] = 1
    val_fraction: Annotated[HeldOut, "Fraction of training clips for validation if the data has no such split."] = 0.15
    test_fraction: Annotated[HeldOut, "Fraction of all clips for the test if the data has no splits."] = 0.25
    split_seed: Annotated[Seed, "Random seed for choosing the groups that are held out."] = 0


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    frames: Annotated[PositiveInt, "Frames per clip, at the centres of equal segments. Shorter clips yield fewer."] = 16
    rate: Annotated[PositiveFloat | None, "Frames per second, up to `frames`. `null`: always `frames`."] = None


@dataclass(frozen=True, kw_only=True)
class DecodeConfig:
    workers: Annotated[int, Ge(0), "Decoding processes. 0: one per core."] = 0
    timeout: Annotated[float, Interval(gt=0, le=86400), "Seconds per attempt. The second is with PyAV."] = 60.0
    memory_limit: Annotated[PositiveFloat, "GiB per decoding process. The second attempt is with PyAV."] = 4.0
    min_readable: Annotated[Fraction, "Fraction of the sampled frames that a damaged clip needs to be kept."] = 0.5
    max_pixels: Annotated[PositiveInt, "Largest frame size in pixels. Files with larger frames fail."] = 7680 * 4320
    max_duration: Annotated[PositiveFloat, "Longest file in seconds. Longer files fail."] = 6 * 3600.0


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    model: Annotated[str, "timm model. Weights are downloaded, except for the default."] = "tf_efficientnet_lite0"
    weights: Annotated[Path | None, "Local .safetensors or .pth file. `null`: the published weights."] = None
    precision: Annotated[Precision, "`auto`: fp16 on a GPU, bf16 on CPUs with it (OpenVINO), else fp32."] = "auto"
    crop: Annotated[Literal["none", "timm"], "`none`: the whole frame. `timm`: timm's evaluation crop."] = "none"
    view: Annotated[
        View, "`pooled`: average of the last layer. `grid`: also a 4x4 grid of three stages (4x the size)."
    ] = "grid"
    engine: Annotated[Literal["auto", "torch", "openvino"], "`auto`: OpenVINO on a CPU if it is installed."] = "auto"


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    kind: Annotated[
        Literal["bilstm", "lstm", "transformer", "lstm_transformer", "pyramid", "mean"],
        "`mean`: linear layer on the average frame. `pyramid`: linear layer on averages of the clip, its halves, "
        "quarters and so on. Others: the pyramid and a sequence model over all frames.",
    ] = "bilstm"
    pca_components: Annotated[PositiveInt, "Maximum number of principal components of the frames."] = 256
    pyramid_levels: Annotated[int, Interval(ge=1, le=8), "1 averages the whole clip, 4 goes down to eighths."] = 4
    motion_components: Annotated[PositiveInt, "Maximum number of components of the motion within clips."] = 128
    hidden: Annotated[PositiveInt, "Hidden units of the sequence model (per direction for the LSTM)."] = 128
    layers: Annotated[PositiveInt, "Layers of the sequence model."] = 2
    dropout: Annotated[BelowOne, "Dropout in the sequence model."] = 0.65


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    seed: Annotated[Seed, "Random seed for initial weights, batch order and dropout."] = 0
    epochs: Annotated[PositiveInt, "Passes over the training clips."] = 48
    refit: Annotated[bool, "Refit on train + val after model selection."] = True
    batch_size: Annotated[int, Ge(0), "Clips per step. 0: chosen from the number of training clips."] = 0
    learning_rate: Annotated[PositiveFloat, "Peak learning rate of AdamW."] = 2e-3
    warmup: Annotated[BelowOne, "Fraction of the steps with a rising learning rate; then cosine to 0."] = 0.1
    weight_decay: Annotated[float, Ge(0), "Weight decay of AdamW."] = 0.05
    label_smoothing: Annotated[BelowOne, "Fraction of the target probability spread over all classes."] = 0.1
    clip_grad: Annotated[PositiveFloat, "Maximum gradient norm."] = 5.0
    imbalance: Annotated[Imbalance, "`balanced_softmax`: add the log class frequencies to the logits."] = "none"


@dataclass(frozen=True, kw_only=True)
class Config:
    data: DataConfig = DataConfig()
    sampling: SamplingConfig = SamplingConfig()
    decode: DecodeConfig = DecodeConfig()
    backbone: BackboneConfig = BackboneConfig()
    head: HeadConfig = HeadConfig()
    train: TrainConfig = TrainConfig()
    store: Annotated[Path, "Folder of the feature store."] = Path("data/features")
    runs: Annotated[Path, "Folder of the runs."] = Path("data/runs")
    max_missing: Annotated[Fraction, "Maximum fraction of a split's clips (rounded up) without features."] = 0.05
    device: Annotated[str, "`cpu`, `cuda`, `cuda:1` and so on. `auto`: the GPU if there is one."] = "auto"
    tracking: Annotated[Tracking, "W&B mode. `auto`: online if this machine is logged in, else offline."] = "auto"
    tracking_media: Annotated[int, Ge(0), "Test clips logged to W&B with previews, which may be private. 0: none."] = 0

    RENAMED: ClassVar[dict[str, str]] = {
        "decode.deadline": "decode.timeout",
        "decode.memory": "decode.memory_limit",
        "decode.partial": "decode.min_readable",
        "head.components": "head.pca_components",
        "head.levels": "head.pyramid_levels",
        "head.sequence_components": "head.motion_components",
    }
