"""Measure how fast stored features come into memory: one entry per clip, as the store has them, or one packed file.

    python scripts/bench/loading.py --entries 5000

With "cold" the files were first thrown out of the cache of the system (Linux only). Entries are checked against their
checksums, the packed file is not.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from rounds import publish, ratio
from tqdm import tqdm

from pipeline.config import SamplingConfig
from pipeline.data.clip import Clip, Source
from pipeline.features.entry import ClipFeatures, entry_path
from pipeline.features.store import FeatureStore
from pipeline.runs.dataset import read_features

WIDTH = 5120


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--entries", type=int, default=5_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="on the disk to be measured (default: that of temporary files)")
    parser.add_argument("--out", type=Path, help="write OUT.md and OUT.json too")
    args = parser.parse_args()

    frames = SamplingConfig().frames
    with tempfile.TemporaryDirectory(prefix="kinema-bench-", dir=args.folder) as folder:
        store, packed = FeatureStore(Path(folder) / "store", 0.5), Path(folder) / "packed.bin"
        video = Path(folder) / "video.mp4"
        video.write_bytes(b"stands for all")
        clips = [Clip(id=f"{number}.mp4", path=video, label="", group="") for number in range(args.entries)]
        store.folder.mkdir()
        source, rng = Source.of(video), np.random.default_rng(0)
        with packed.open("wb") as stream:
            for clip in clips:
                values = rng.standard_normal((frames, WIDTH), np.float32).astype(np.float16)
                pts, indices = np.arange(frames, dtype=np.float32), np.arange(frames)
                store.write(clip, ClipFeatures(values, pts, indices, frames, "decord", source), "bench")
                stream.write(values.tobytes())

        def entries() -> None:
            for first in range(0, len(clips), 256):
                read_features(store, clips[first : first + 256])

        def one_file() -> None:
            with packed.open("rb") as stream:
                while content := stream.read(256 * frames * WIDTH * 2):
                    torch.frombuffer(bytearray(content), dtype=torch.float16)

        files = {entries: [entry_path(store.folder, clip.id) for clip in clips], one_file: [packed]}
        rates: dict[str, list[float]] = {}
        for number in tqdm(range(args.rounds + 1), "rounds", disable=None):
            for heat in ("warm", "cold") if hasattr(os, "posix_fadvise") else ("warm",):
                for read, paths in files.items():
                    seconds = timed(read, paths if heat == "cold" else [])
                    if number:
                        rates.setdefault(f"{read.__name__.replace('_', ' ')}, {heat}", []).append(len(clips) / seconds)
    rows = [("", "clips/s", "seconds for 13,320 clips", "against entries")]
    for name, values in rates.items():
        rate, entries_too = statistics.median(values), rates[f"entries, {name.split(', ')[1]}"]
        rows.append((name, f"{rate:.0f}", f"{13_320 / rate:.1f}", f"{ratio(values, entries_too):.2f}"))
    about = f"{args.entries} clips of {frames} frames, {WIDTH} values each; medians of {args.rounds} rounds"
    publish(rows, about, {"clips_per_second": rates}, args.out)


def timed(read: Callable[[], None], to_evict: list[Path]) -> float:
    os.sync()  # Only what is on the disk can be thrown out.
    for path in to_evict:
        with path.open("rb") as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    began = time.monotonic()
    read()
    return time.monotonic() - began


if __name__ == "__main__":
    main()
