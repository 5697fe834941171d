"""Compare decoding in worker processes with decoding in threads, and measure the parent's memory.

    python scripts/bench/isolation.py --clips 10000

Both decode and resize the same small clips with PyAV, in alternating rounds; the ratio is computed per round. Then all
clips are extracted in one run, while the parent's memory is measured.
"""

import argparse
import functools
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import joblib
import numpy as np
import psutil
import torch

from pipeline.config import BackboneConfig, DecodeConfig, SamplingConfig
from pipeline.data.clip import Clip
from pipeline.features.backbone import Backbone
from pipeline.features.extraction import clip_features
from pipeline.video.transform import read_frames
from pipeline.video.workers import run_isolated


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--frames", type=int, default=8, help="frames per clip in the comparison")
    args = parser.parse_args()
    backbone = Backbone(BackboneConfig(), torch.device("cpu"))
    torch.set_num_threads(1)  # As in the processes: there is a thread for each core.
    decode, workers = DecodeConfig(), joblib.cpu_count()
    with tempfile.TemporaryDirectory(prefix="kinema-bench-") as temporary:
        root = Path(temporary)
        script = Path(__file__).parents[1] / "make_demo_data.py"
        subprocess.run([sys.executable, script, root, "--groups", "6", "--clips", "2"], check=True, capture_output=True)
        sources = sorted((root / "videos").rglob("*.*"))
        clips = []
        for number in range(args.clips):
            source = sources[number % len(sources)]
            path = root / f"{number:06d}{source.suffix}"
            os.link(source, path)
            clips.append(Clip(id=path.name, path=path, label="", group=path.name))

        load = functools.partial(
            read_frames,
            sampling=SamplingConfig(frames=args.frames),
            decode=decode,
            transform=backbone.transform,
            decoders=("pyav",),
        )

        def in_threads(part: list[Clip]) -> None:
            with ThreadPoolExecutor(workers) as pool:
                for _ in pool.map(load, part):
                    pass

        def in_processes(part: list[Clip]) -> None:
            for _ in run_isolated(load, part, workers, decode.timeout, decode.memory_limit):
                pass

        ratios, rates = [], []
        size = min(1000, args.clips)
        for number in range(args.rounds + 1):
            seconds = []
            for way in (in_threads, in_processes):
                began = time.monotonic()
                way(clips[:size])
                seconds.append(time.monotonic() - began)
            if number:  # The first round warms up.
                ratios.append(seconds[1] / seconds[0])
                rates.append(size / np.array(seconds))
        threads, processes = np.median(rates, axis=0)
        print(f"{size} clips, {args.frames} frames each, {workers} workers, medians of {args.rounds} rounds")
        print(f"threads {threads:.0f} clips/s, processes {processes:.0f} clips/s, start of the processes included")
        print(f"time in processes / in threads: {np.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")

        memory = [psutil.Process().memory_info().rss / 1e6]
        milestones = {round(args.clips * share) for share in (0.1, 0.25, 0.5, 0.75, 1)}
        few = SamplingConfig(frames=2)
        for done, _ in enumerate(clip_features(clips, backbone, few, decode), 1):
            if done in milestones:
                memory.append(psutil.Process().memory_info().rss / 1e6)
        values = ", ".join(f"{value:.0f}" for value in memory)
        print(f"memory of the parent over {args.clips} clips, at the start, 10, 25, 50, 75, 100 %: {values} MB")


if __name__ == "__main__":
    main()
