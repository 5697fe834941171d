"""Print the cost of stronger backbones, for the table in docs/backbones.md.

    python scripts/backbones.py

Nothing is downloaded: weights do not change the cost.
"""

import argparse

import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

from pipeline.features.backbone import Grid

MODELS = (
    "tf_efficientnet_lite0",
    "tf_efficientnet_lite1",
    "tf_efficientnet_lite2",
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
    parser.add_argument("--models", nargs="+", default=MODELS, help="costs are relative to the first")
    args = parser.parse_args()
    print("| `backbone.model` | pixels | width | M weights | GFLOP per frame | cost | license of the weights |")
    print("|:--|--:|--:|--:|--:|--:|:--|")
    first = None
    for name in args.models:
        model = timm.create_model(name, num_classes=0).eval()
        about = model.pretrained_cfg
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            Grid(model)(torch.zeros(1, *about["input_size"]))
        cost = counter.get_total_flops() / 1e9
        first = first or cost
        weights = sum(weight.numel() for weight in model.parameters()) / 1e6
        row = [f"`{name}`", f"{about['input_size'][1]}", f"{model.head_hidden_size}", f"{weights:.1f}"]
        print(f"| {' | '.join([*row, f'{cost:.1f}', f'{cost / first:.1f}', about['license']])} |", flush=True)


if __name__ == "__main__":
    main()
