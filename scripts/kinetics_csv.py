"""Convert a Kinetics list to a CSV list of the clips that were downloaded.

    python scripts/kinetics_csv.py kinetics/validate.csv kinetics/videos kinetics/list.csv
    kinema extract --data.root kinetics/videos --data.lists kinetics/list.csv

Videos are named `<youtube_id>_000001_000011.mp4` (cut to the clip) or `<youtube_id>.mp4` (whole). Rows without a video
or a label are left out. If no test clip is left, as with the published test list, which has no labels, the validation
clips become the test split.
"""

import argparse
import csv
from pathlib import Path

from pipeline.data.folder import VIDEO_SUFFIXES, split_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kinetics", type=Path, help="list with label,youtube_id,time_start,time_end,split")
    parser.add_argument("videos", type=Path, help="folder of the videos, to be used as data.root")
    parser.add_argument("output", type=Path, help="list to write, to be used as data.lists")
    args = parser.parse_args()
    files = {path.stem: path for path in sorted(args.videos.rglob("*")) if path.suffix.lower() in VIDEO_SUFFIXES}
    clips, missing, unlabelled = [], 0, 0
    with args.kinetics.open(newline="", encoding="utf-8-sig") as stream:
        for row in csv.DictReader(stream):
            name, start, end = row["youtube_id"], float(row["time_start"]), float(row["time_end"])
            cut = files.get(f"{name}_{start:06.0f}_{end:06.0f}")
            path = cut or files.get(name)
            unlabelled += not row["label"]
            missing += bool(row["label"] and not path)
            if row["label"] and path:
                times = ("", "") if cut else (start, end)
                clips.append([path.relative_to(args.videos), row["label"], name, split_of(row["split"]), *times])
    if not any(clip[3] == "test" for clip in clips):
        clips = [[*clip[:3], "test" if clip[3] == "val" else clip[3], *clip[4:]] for clip in clips]
    with args.output.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([["path", "label", "group", "split", "start", "end"], *clips])
    print(f"{args.output}: {len(clips)} clips, {missing} without a file, {unlabelled} without a label")


if __name__ == "__main__":
    main()
