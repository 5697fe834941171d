"""Decoded frame -> RGB as players show it, rotated and mirrored by its display matrix. HDR is not tone-mapped."""

import av
import numpy as np


class Converter:
    """Converts the frames of a file to upright RGB of the size of the first, uint8 [H,W,3]."""

    def __init__(self) -> None:
        self.reformatter = av.video.reformatter.VideoReformatter()  # Reused, because its setup is most of the work.
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
    """Return whether to mirror the picture left-right, and the quarter turns counterclockwise after that."""
    for data in frame.side_data:
        if data.type == av.sidedata.sidedata.Type.DISPLAYMATRIX:
            matrix = np.frombuffer(bytes(data), np.int32).reshape(3, 3)[:2, :2] / 65536
            mirrored = bool(np.linalg.det(matrix) < 0)
            a, b = matrix[0] * (-1 if mirrored else 1)  # Where the stored x axis points, y down.
            turns = np.degrees(np.arctan2(-b, a)) / 90
            return mirrored, round(turns) % 4 if abs(turns - round(turns)) < 0.01 else 0
    return False, 0
