"""All settings: what each means, its bounds and its default."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from pipeline.base.settings import settings

Seed = Annotated[int, Field(ge=0, lt=2**32)]


@settings
class DataConfig:
    """The labelled clips."""

    root: Path = Path("data/videos")
    """The folder with the videos."""
    lists: Path | None = None
    """The folder of official lists (UCF101, HMDB51) or a CSV file (yours, Kinetics); none for one folder per class."""
    split: Annotated[int, Field(ge=1, le=3)] = 1
    """Which of the three official splits."""
    val_fraction: Annotated[float, Field(gt=0, le=0.5)] = 0.15
    """Share of the training clips held out for validation, in whole groups, where the data set has no validation split;
    rounded to 1/n: 0.15 is a seventh."""
    test_fraction: Annotated[float, Field(gt=0, le=0.5)] = 0.25
    """Share of all clips held out for the test, in whole groups, where the data set has none; rounded to 1/n."""
    split_seed: Seed = 0
    """Which groups are held out."""


@settings
class SamplingConfig:
    """Which frames of a clip are looked at."""

    frames: PositiveInt = 16
    """Frames per clip: the middle frame of each of so many equal segments; a shorter clip gives fewer. The last frame
    of a file, often announced but not there, is not used."""


@settings
class DecodeConfig:
    """How video files are read."""

    workers: NonNegativeInt = 0
    """Decoding processes; 0 takes one per core."""
    timeout: Annotated[float, Field(gt=0, le=86400)] = 60.0
    """Time limit per clip, seconds. The first try, with all decoders, gets half; if its process hangs or crashes, PyAV
    alone gets the rest."""
    memory_limit: PositiveFloat = 4.0
    """GiB that a decoding process may take before it is ended and the clip recorded as failed."""
    min_readable: Annotated[float, Field(ge=0, le=1)] = 0.5
    """A damaged clip is kept, and marked as partial, if this share of its planned frames can be read; 1 keeps none."""
    max_pixels: PositiveInt = 7680 * 4320
    """Pixels of a frame; files with larger ones are not decoded."""
    max_duration: PositiveFloat = 6 * 3600.0
    """Seconds of a file; longer ones are not decoded."""


@settings
class BackboneConfig:
    """The frozen CNN."""

    model: str = "tf_efficientnet_lite0"
    """Any timm model (see timm.list_models(pretrained=True)); all but tf_efficientnet_lite0/1/2 come from the hub."""
    weights: Path | None = None
    """A local weight file (.safetensors or .pth) instead of the published weights."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Arithmetic of the CNN; auto takes the fastest whose features agree with fp32 to a cosine of 0.999: fp16 on a GPU,
    bf16 in the deeper layers on a CPU that is built for it, else fp32."""
    crop: Literal["none", "timm"] = "none"
    """What of each frame the CNN sees; none: all of it, squeezed to the shape of its input, for actions happen
    anywhere; timm: what timm's evaluation of the model cuts out, as a rule the middle, 43 % of a frame of 16:9."""
    view: Literal["pooled", "grid"] = "grid"
    """What is kept of each frame; pooled: the last layer averaged over the picture; grid: beside it the last three
    stages on a grid of 4x4 cells, four times the size, which knows where things are."""
    engine: Literal["auto", "torch", "openvino"] = "auto"
    """What runs the CNN; auto takes the faster on this machine. openvino is for CPUs."""


@settings
class HeadConfig:
    """The classifier."""

    kind: Literal["bilstm", "transformer", "convolution", "pyramid", "mean"] = "bilstm"
    """pyramid: linear layers on the averages of the whole clip, its halves, quarters, ...; bilstm, transformer and
    convolution: beside them such a model over the finest of these; mean: a linear layer on the average frame."""
    pca_components: PositiveInt = 256
    """Upper limit on the principal components that the head sees; never more than the clips they are computed from."""
    pyramid_levels: Annotated[int, Field(ge=1, le=8)] = 4
    """Levels of the temporal pyramid: 4 end with eighths, so that the LSTM makes eight steps."""
    sequence_components: PositiveInt = 64
    """Leading components that the LSTM, Transformer or convolution sees, projected to `hidden` values."""
    hidden: PositiveInt = 128
    """Units of the projection, and of the LSTM in each direction."""
    layers: PositiveInt = 1
    """Layers of the LSTM, Transformer or convolution."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Share of values dropped before and after the projection and before the last layer, and in a Transformer."""


@settings
class TrainConfig:
    """Training of the head."""

    seed: Seed = 0
    """Decides initial weights, order and dropout."""
    heads: PositiveInt = 1
    """Heads that are trained side by side, with seeds `seed`, `seed` + 1000, ...; they answer together."""
    auto: bool = False
    """Try other values of the settings that matter most, by cross-validation over groups of training clips, and train
    with the best."""
    epochs: PositiveInt = 60
    """Passes over the training clips."""
    refit: bool = True
    """Train again on training and validation clips together; false keeps the first training, in which validation clips
    only set the fusion weights of a head's paths."""
    batch_size: NonNegativeInt = 0
    """Clips per step; 0: n // 64 of n training clips, raised to 32, but at most n // 8 and 512."""
    learning_rate: PositiveFloat = 1e-3
    """Peak learning rate of AdamW."""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the steps in which the learning rate rises; after it falls along a cosine."""
    weight_decay: NonNegativeFloat = 0.05
    """Decoupled weight decay."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the target spread over all classes, evenly, or by their frequency where `imbalance` is softmax."""
    clip_grad: PositiveFloat = 5.0
    """Largest gradient norm."""
    imbalance: Literal["none", "weights", "sampling", "softmax"] = "none"
    """What is done about classes of uneven size. weights: the loss of a clip by the inverse frequency of its class;
    sampling: every class drawn equally often; softmax: logits that add to the frequency of the class, and so do not
    learn it (balanced softmax). All of them raise the recall of rare classes and may lower that of frequent ones."""


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
    """The feature store's folder."""
    runs: Path = Path("data/runs")
    """The folder of the run bundles."""
    max_missing: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Share of a split's clips, rounded up, that may be without features, because they could not be read."""
    device: str = "auto"
    """cpu, cuda, cuda:1, ...; auto takes the GPU if there is one."""
    # YAML 1.1 reads a bare `off` as false.
    tracking: Annotated[
        Literal["auto", "online", "offline", "off"], BeforeValidator(lambda value: "off" if value is False else value)
    ] = "auto"
    """Weights & Biases; auto is online with an account on this machine, else offline."""
