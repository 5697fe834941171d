"""All settings in one object."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from pipeline.backbone import BackboneConfig
from pipeline.data import DataConfig
from pipeline.decode import DecodeConfig
from pipeline.fit import TrainConfig
from pipeline.head import HeadConfig
from pipeline.sampling import SamplingConfig
from pipeline.settings import settings


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
    """Share of a split's clips that may be without features, because they could not be read, before a job stops."""
    device: str = "auto"
    """cpu, cuda, cuda:1, ...; auto takes the GPU if there is one."""
    # YAML 1.1 reads a bare `off` as false.
    tracking: Annotated[
        Literal["auto", "online", "offline", "off"], BeforeValidator(lambda value: "off" if value is False else value)
    ] = "auto"
    """Weights & Biases; auto is online with an account on this machine, else offline."""
