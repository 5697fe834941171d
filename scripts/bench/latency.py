"""Measure how long a person waits for `kinema predict`, and how much of that its libraries and its model need anyway.

    python scripts/bench/latency.py --run data/runs/demo --video data/demo/videos/Grow/v_Grow_g01_c01.avi

Each way is a process of its own, in alternating rounds. "What it needs anyway" imports the libraries, loads the CNN,
starts the engine, decodes the clip and sends its frames through the CNN, one after the other and in one process.
"""

import argparse
import statistics
import subprocess
import sys
from pathlib import Path

from rounds import alternate, publish, ratio

IMPORTS = """
import torch, torchvision, timm, av, decord, safetensors, pydantic, yaml, psutil, joblib, PIL.Image
try:
    import openvino
except ImportError:
    pass
"""
ANYWAY = """
import sys
from pathlib import Path
import numpy as np
from pipeline.runs.bundle import Bundle
from pipeline.features.backbone import Backbone
bundle, config, device, _ = Bundle.load(Path(sys.argv[1]), {}, "predict")
backbone = Backbone(config.backbone, device, bundle.backbone_file)
reader = decord.VideoReader(sys.argv[2])
wanted = np.linspace(0, len(reader) - 2, config.sampling.frames).astype(int)
frames = torch.from_numpy(reader.get_batch(wanted).asnumpy()).permute(0, 3, 1, 2)
backbone(backbone.transform(frames).contiguous().numpy())
"""
LOADED = """
import sys, time
from pathlib import Path
from pipeline.predict import Predictor
predictor, video = Predictor(Path(sys.argv[1])), Path(sys.argv[2])
for times in (1, 9):
    began = time.monotonic()
    for _ in range(times):
        list(predictor([video]))
print((time.monotonic() - began) / times)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--video", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="write OUT.md and OUT.json too")
    args = parser.parse_args()

    def process(*command: str) -> int:
        subprocess.run([sys.executable, *command], check=True, capture_output=True)
        return 1

    run, video = str(args.run), str(args.video)
    anyway, whole = "libraries, model and clip, what it needs anyway", "kinema predict"
    ways = {
        "python -c pass": lambda: process("-c", "pass"),
        "kinema --help": lambda: process("-m", "pipeline.cli", "--help"),
        "import of the libraries": lambda: process("-c", IMPORTS),
        anyway: lambda: process("-c", IMPORTS + ANYWAY, run, video),
        whole: lambda: process("-m", "pipeline.cli", "predict", run, video),
    }
    rates = alternate(ways, args.rounds)
    rows = [("", "seconds", "against what it needs anyway")]
    for name, values in rates.items():
        rows.append((name, f"{statistics.median(1 / v for v in values):.2f}", f"{ratio(rates[anyway], values):.2f}"))
    loaded = subprocess.run([sys.executable, "-c", LOADED, run, video], check=True, capture_output=True, text=True)
    seconds = float(loaded.stdout)
    rows.append(("a loaded Predictor, a file", f"{seconds:.2f}", f"{seconds * statistics.median(rates[anyway]):.2f}"))
    content = {"seconds": {name: [1 / value for value in values] for name, values in rates.items()}}
    publish(rows, f"{args.video.name}, medians of {args.rounds} rounds", content | {"loaded": seconds}, args.out)


if __name__ == "__main__":
    main()
