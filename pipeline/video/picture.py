"""A decoded frame -> RGB as players show it: rotated and mirrored by its display matrix."""

import av
import numpy as np

from pipeline.video.timestamps import display_matrix


class Converter:
    """Converts the frames of a file to upright RGB of the size of the first, uint8 [H,W,3]."""

    def __init__(self) -> None:
        self.reformatter = av.video.reformatter.VideoReformatter()  # One for all: to set it up is most of the work.
        self.shape: tuple[int, int] | None = None

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        mirrored, turns = orientation(frame)
        height, width = frame.height, frame.width
        if self.shape:
            height, width = self.shape if turns % 2 == 0 else self.shape[::-1]
        rgb = self.reformatter.reformat(frame, width, height, "rgb24", threads=1).to_ndarray()
        picture = np.rot90(rgb[:, ::-1] if mirrored else rgb, turns)
        self.shape = self.shape or picture.shape[:2]
        return picture


def orientation(frame: av.VideoFrame) -> tuple[bool, int]:
    """Return whether the picture is mirrored left-right, and the quarter turns counterclockwise after that."""
    matrix = display_matrix(frame)
    if matrix is None:
        return False, 0
    mirrored = bool(np.linalg.det(matrix) < 0)
    (a, b), _ = np.diag([-1, 1]) @ matrix if mirrored else matrix  # Row 0: where the stored x axis points, y down.
    angle = np.degrees(np.arctan2(-b, a))
    return mirrored, round(angle / 90) % 4 if abs(angle / 90 - round(angle / 90)) < 0.01 else 0
