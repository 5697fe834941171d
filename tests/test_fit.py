import pytest
import torch

from pipeline.config import HeadConfig, TrainConfig
from pipeline.fit import FeatureSet, fit


@pytest.mark.parametrize(
    ("imbalance", "expected"), [("none", 0.75), ("weights", 0.5), ("sampling", 0.5), ("softmax", 0.5)]
)
def test_uneven_classes(tmp_path, imbalance, expected):
    """From features that tell nothing, only the plain loss learns that three of four clips are of class 0."""
    clips = FeatureSet(torch.zeros(40, 2, 4), torch.full((40,), 2), (torch.arange(40) >= 30).long())
    config = TrainConfig(learning_rate=0.05, label_smoothing=0, weight_decay=0, imbalance=imbalance)
    cpu, checkpoint = torch.device("cpu"), tmp_path / "checkpoint.safetensors"
    head, _ = fit(HeadConfig(kind="mean"), config, clips, None, 100, 2, cpu, checkpoint, "", lambda record: None)
    assert head(*clips[:2])[0].exp()[0].item() == pytest.approx(expected, abs=0.04)
