"""Compare the CPU time of reading a clip's frames with that of a bare PyAV decode of the whole file.

    python scripts/bench/decode.py data/videos

Both run in this process, one thread, interleaved. The first decodes 16 frames of each clip and resizes them to 224x224,
as extraction does; the second decodes every frame and keeps none.
"""

import argparse
import statistics
import time
from pathlib import Path

import av
import torch
from rounds import machine_in_words

from pipeline.config import DecodeConfig, SamplingConfig
from pipeline.data.clip import Clip
from pipeline.video.timestamps import _read_table
from pipeline.video.transform import ResizeAndCrop, read_frames


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("videos", type=Path, help="folder of videos")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--frames", type=int, default=16, help="frames per clip")
    args = parser.parse_args()
    torch.set_num_threads(1)
    paths = sorted(path for path in args.videos.rglob("*.*") if path.is_file())
    transform = ResizeAndCrop((224, 224), (224, 224), "bilinear")

    def read(path: Path) -> None:
        _read_table.cache_clear()  # As if the file were seen for the first time.
        clip = Clip(id=path.name, path=path, label="", group="")
        read_frames(clip, SamplingConfig(frames=args.frames), DecodeConfig(), transform)

    def bare(path: Path) -> None:
        with av.open(str(path)) as container:
            container.streams.video[0].codec_context.thread_count = 1
            for _ in container.decode(video=0):
                pass

    seconds: dict[str, list[float]] = {"read": [], "bare": []}
    for number in range(args.rounds + 1):
        spent = {"read": 0.0, "bare": 0.0}
        for path in paths:
            for name, way in (("read", read), ("bare", bare)):
                began = time.process_time()
                way(path)
                spent[name] += time.process_time() - began
        if number:  # The first round warms up.
            for name in seconds:
                seconds[name].append(spent[name] / len(paths))
    ratios = [mine / other for mine, other in zip(seconds["read"], seconds["bare"], strict=True)]
    print(machine_in_words())
    print(f"{len(paths)} clips, {args.frames} frames each, CPU time per clip, medians of {args.rounds} rounds")
    print(f"decode and resize {1000 * statistics.median(seconds['read']):.1f} ms, ", end="")
    print(f"bare PyAV decode {1000 * statistics.median(seconds['bare']):.1f} ms")
    print(f"ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
