"""All settings with their bounds, defaults and help texts."""

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from pipeline.base.settings import settings

Seed = Annotated[int, Field(ge=0, lt=2**32)]

OVERRIDABLE: dict[str, tuple[str, ...]] = {
    "evaluate": ("data", "store", "decode", "max_missing", "device", "tracking"),
    "predict": ("device", "decode", "backbone.engine", "backbone.precision"),
    "store": ("store",),
}
"""Settings and sections that a verb can change; the run or the store fixes the rest. `build` takes them as `allowed`.
A verb that is not listed takes all settings."""


@settings
class DataConfig:
    """Labelled clips."""

    root: Path = Path("data/videos")
    """Folder with the videos."""
    lists: Path | None = None
    """CSV file, or folder with the official lists of UCF101 or HMDB51. `null`: one folder per class in `data.root`."""
    split: Annotated[int, Field(ge=1, le=3)] = 1
    """Official split of UCF101 or HMDB51."""
    val_fraction: Annotated[float, Field(gt=0, le=0.5)] = 0.15
    """Fraction of the training clips used for validation if the data set has no validation split. Whole groups are
    held out, and the fraction is rounded to 1/n (0.15 to 1/7)."""
    test_fraction: Annotated[float, Field(gt=0, le=0.5)] = 0.25
    """Fraction of all clips used for the test if the data set has no splits. Whole groups, rounded to 1/n."""
    split_seed: Seed = 0
    """Random seed for choosing the groups that are held out."""


@settings
class SamplingConfig:
    """Frame sampling."""

    frames: PositiveInt = 16
    """Frames per clip, sampled at the centres of equal segments. Shorter clips yield fewer."""


@settings
class DecodeConfig:
    """Video decoding."""

    workers: NonNegativeInt = 0
    """Decoding processes. 0: one per core."""
    timeout: Annotated[float, Field(gt=0, le=86400)] = 60.0
    """Seconds per clip. The first attempt gets half; if its process hangs or crashes, PyAV alone gets the rest."""
    memory_limit: PositiveFloat = 4.0
    """Memory per decoding process in GiB. A process above it is killed and its clip recorded as failed."""
    min_readable: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Minimum fraction of sampled frames that must decode for a damaged clip to be kept (marked `partial`). 1.0 drops
    all damaged clips."""
    max_pixels: PositiveInt = 7680 * 4320
    """Largest frame size in pixels. Files with larger frames fail."""
    max_duration: PositiveFloat = 6 * 3600.0
    """Longest file in seconds. Longer files fail."""


@settings
class BackboneConfig:
    """Frozen CNN."""

    model: str = "tf_efficientnet_lite0"
    """timm model name. All but tf_efficientnet_lite0/1/2 are downloaded from the Hugging Face hub."""
    weights: Path | None = None
    """Local weights file (.safetensors or .pth). `null`: the published weights."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Inference precision. `auto`: fp16 on a GPU, bf16 on a CPU with bf16 instructions, else fp32."""
    crop: Literal["none", "timm"] = "none"
    """`none`: the whole frame, resized to the CNN's input. `timm`: timm's evaluation crop, usually the centre."""
    view: Literal["pooled", "grid"] = "grid"
    """Features kept per frame. `pooled`: global average of the last layer. `grid`: also a 4x4 spatial grid of the last
    three stages (4x the size, keeps location)."""
    engine: Literal["auto", "torch", "openvino"] = "auto"
    """Inference backend. `auto`: OpenVINO on a CPU if it is installed, else PyTorch."""


@settings
class HeadConfig:
    """Classifier on the cached features."""

    kind: Literal["bilstm", "transformer", "pyramid", "mean"] = "bilstm"
    """`mean`: linear layer on the average frame. `pyramid`: linear layer on averages of the clip, its halves, quarters
    and so on. `bilstm`, `transformer`: the pyramid and a sequence model."""
    pca_components: PositiveInt = 256
    """Maximum number of principal components of the features."""
    pyramid_levels: Annotated[int, Field(ge=1, le=8)] = 4
    """Levels of the temporal pyramid: 1 is the whole clip, 4 ends with eighths."""
    sequence_components: PositiveInt = 64
    """Leading principal components that the LSTM or Transformer reads."""
    hidden: PositiveInt = 128
    """Hidden units of the sequence model (per direction for the LSTM)."""
    layers: PositiveInt = 1
    """Layers of the sequence model."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Dropout in the sequence model."""


@settings
class TrainConfig:
    """Training of the head."""

    seed: Seed = 0
    """Random seed for initial weights, batch order and dropout."""
    epochs: PositiveInt = 60
    """Passes over the training clips."""
    refit: bool = True
    """Refit on train + val after model selection."""
    batch_size: NonNegativeInt = 0
    """Clips per step. 0: n/64 of n training clips, at least 32 and at most n/8 or 512."""
    learning_rate: PositiveFloat = 1e-3
    """Peak learning rate of AdamW."""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Fraction of the steps with a rising learning rate. It then follows a cosine to 0."""
    weight_decay: NonNegativeFloat = 0.05
    """Weight decay of AdamW."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Fraction of the target probability spread over all classes."""
    clip_grad: PositiveFloat = 5.0
    """Maximum gradient norm."""
    imbalance: Literal["none", "balanced_softmax"] = "none"
    """`balanced_softmax`: add the log class frequencies to the logits in training. Raises the recall of rare classes
    and may lower that of frequent ones."""


@settings
class Config:
    """Everything that a run depends on."""

    data: DataConfig = DataConfig()
    sampling: SamplingConfig = SamplingConfig()
    decode: DecodeConfig = DecodeConfig()
    backbone: BackboneConfig = BackboneConfig()
    head: HeadConfig = HeadConfig()
    train: TrainConfig = TrainConfig()
    store: Path = Path("data/features")
    """Folder of the feature store."""
    runs: Path = Path("data/runs")
    """Folder of the runs."""
    max_missing: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Maximum fraction of a split's clips (rounded up) that may lack features because they could not be read."""
    device: str = "auto"
    """`cpu`, `cuda`, `cuda:1` and so on. `auto`: the GPU if there is one."""
    # YAML 1.1 reads a bare `off` as false.
    tracking: Annotated[
        Literal["auto", "online", "offline", "off"], BeforeValidator(lambda value: "off" if value is False else value)
    ] = "auto"
    """Weights & Biases mode. `auto`: online if this machine is logged in, else offline."""

    OUTDATED: ClassVar[dict[str, str]] = {
        "decode.deadline": "renamed to decode.timeout",
        "decode.memory": "renamed to decode.memory_limit",
        "decode.partial": "renamed to decode.min_readable",
        "head.components": "renamed to head.pca_components",
        "head.levels": "renamed to head.pyramid_levels",
        "auto": "removed; compare runs with different settings by their validation accuracy",
        "head.kind=convolution": "removed; use bilstm, transformer, pyramid or mean",
        "train.heads": "removed; train several runs with different values of train.seed",
        "train.auto": "removed; compare runs with different settings by their validation accuracy",
        "train.imbalance=softmax": "renamed to train.imbalance=balanced_softmax",
        "train.imbalance=weights": "removed; use balanced_softmax or none",
        "train.imbalance=sampling": "removed; use balanced_softmax or none",
    }
    """Former names and values, and what became of them."""
