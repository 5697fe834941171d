"""Print what stronger backbones cost on this machine, as docs/backbones.md has it.

    python scripts/backbones.py

Weights do not change the cost, so random ones are used, loaded from a file as a user would load his own; nothing is
fetched. A multiplication with its addition counts as one operation.
"""

import argparse
import os
import tempfile
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file
from torch.utils.flop_counter import FlopCounterMode

from pipeline.backbone import Backbone
from pipeline.config import BackboneConfig
from pipeline.device import resolve_device

MODELS = (
    "tf_efficientnet_lite0.in1k",
    "tf_efficientnet_lite1.in1k",
    "tf_efficientnet_lite2.in1k",
    "tf_efficientnetv2_b0.in1k",
    "tf_efficientnetv2_s.in21k",
    "regnety_032.ra_in1k",
    "regnety_120.sw_in12k",
    "convnext_nano.in12k",
    "convnext_tiny.dinov3_lvd1689m",
    "convnext_base.dinov3_lvd1689m",
    "convnext_base.clip_laion2b_augreg",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=MODELS)
    args = parser.parse_args()
    device = resolve_device("auto")
    print("| `backbone.model` | picture | width | M weights | G operations a frame | frames/s | licence |")
    print("|:--|--:|--:|--:|--:|--:|:--|")
    with tempfile.TemporaryDirectory(prefix="kinema-backbones-") as folder:
        os.environ["XDG_CACHE_HOME"] = folder  # What is measured for random weights is not to be remembered.
        for name in args.models:
            torch.manual_seed(0)
            model = timm.create_model(name, num_classes=0).eval()
            about = model.pretrained_cfg
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                model(torch.zeros(1, *about["input_size"]))
            file = Path(folder) / "random.safetensors"
            save_file(model.state_dict(), file)
            choice = Backbone(BackboneConfig(model=name, weights=file), device).choice
            row = [f"`{name}`", f"{about['input_size'][1]}", f"{model.head_hidden_size}"]
            row += [f"{sum(weight.numel() for weight in model.parameters()) / 1e6:.1f}"]
            row += [f"{counter.get_total_flops() / 2e9:.1f}", f"{choice.rate:.1f} ({choice.engine} {choice.precision})"]
            print(f"| {' | '.join([*row, about['license']])} |", flush=True)


if __name__ == "__main__":
    main()
