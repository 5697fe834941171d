"""The clips of a run (`clips.csv`): their splits, and the SHA-256 of the files that it was trained on."""

import csv
import functools
import hashlib
from pathlib import Path

from pipeline.base.errors import KinemaError, summarize
from pipeline.data.clip import Clip, clip_id, segment_of
from pipeline.data.formats import CSV_COLUMNS
from pipeline.features.entry import Header

TEXT = {"encoding": "utf-8", "errors": "surrogateescape"}
"""File names need not be valid text."""


class ClipList:
    """The clips of the data set that a run was trained on; `data.lists` can name the file too."""

    def __init__(self, path: Path):
        self.path = path

    def write(self, clips: list[Clip], root: Path, found: dict[Clip, Header]) -> None:
        """Write all clips, with the SHA-256 of those in `found`, which are trained on."""
        with self.path.open("w", newline="", **TEXT) as stream:
            writer = csv.DictWriter(stream, (*CSV_COLUMNS, "sha256"), extrasaction="ignore")
            writer.writeheader()
            for clip in clips:
                digest = found[clip].sha256 if clip in found else ""
                writer.writerow(vars(clip) | {"path": clip.path.relative_to(root), "sha256": digest})

    def read(self, root: Path) -> dict[Clip, str]:
        """Return the clips as files of `root`, with the SHA-256 of those trained on, else ""."""
        clips = {}
        with self.path.open(newline="", **TEXT) as stream:
            for row in csv.DictReader(stream):
                start, end = (float(row[name]) if row[name] else None for name in ("start", "end"))
                name, path = clip_id(row["path"], start, end), root / row["path"]
                columns = {column: row[column] for column in ("label", "group", "split")}
                clips[Clip(id=name, path=path, start=start, end=end, **columns)] = row["sha256"]
        return clips

    @functools.cached_property
    def trained_on(self) -> dict[Clip, str]:
        """Train and val clips, with the SHA-256 of their files."""
        return {clip: digest for clip, digest in self.read(Path()).items() if digest}

    def is_in(self, root: Path) -> bool:
        """Whether `root` holds this data set: some of its files, and the first of those trained on with its content."""
        there = {clip.path: digest for clip, digest in self.read(root).items() if clip.path.is_file()}
        trained_on = [(path, digest) for path, digest in there.items() if digest]
        return bool(there) and all(sha256(path) == digest for path, digest in trained_on[:1])

    def require_unseen(self, clips: list[Clip]) -> None:
        """Check that neither the files nor the groups of test clips were trained on.

        Where a file is its own group, the content decides, since two data sets may have files of the same name.

        Raises:
            KinemaError: some were.
        """
        groups = {clip.group for clip in self.trained_on}
        digests = {_file(clip): digest for clip, digest in self.trained_on.items()}
        seen = [
            clip.id
            for clip in clips
            if (clip.group in groups and clip.group != _file(clip))
            or (_file(clip) in digests and digests[_file(clip)] == sha256(clip.path))
        ]
        if seen:
            raise KinemaError(
                f"{len(seen)} of {len(clips)} test clips, or others of their groups, were trained on: "
                f"{summarize(seen)}; leave them out, or rename the groups if they are of other recordings"
            )

    def copies(self, clips: dict[Clip, Header]) -> dict[Clip, Clip]:
        """Map clips whose file was trained on, by whatever name, to that clip: of the same segment if there is one."""
        of_file = {digest: clip for clip, digest in self.trained_on.items()}
        of_segment = {(digest, segment_of(clip)): clip for clip, digest in self.trained_on.items()}
        return {
            clip: of_segment.get((header.sha256, segment_of(clip)), of_file[header.sha256])
            for clip, header in clips.items()
            if header.sha256 in of_file
        }


def sha256(path: Path) -> str:
    """Return the digest of a file's content."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _file(clip: Clip) -> str:
    """Return the file's path below the data root."""
    return clip.id.removesuffix(segment_of(clip))
