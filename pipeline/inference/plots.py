"""Pictures of answers: probabilities over time, and a contact sheet of clips."""

import functools
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

from pipeline.base.errors import printable
from pipeline.config import DecodeConfig, SamplingConfig
from pipeline.data.clip import Clip
from pipeline.inference.style import COLOURS, DARK, colours_of, font
from pipeline.models.segmenter import Segment
from pipeline.video.transform import read_frames
from pipeline.video.workers import Failure, run_isolated

THUMBNAILS = 10
MOST_CURVES = 8
HEIGHT = 90
RIGHT, WRONG = COLOURS[4], COLOURS[5]  # Blue and vermilion.


def thumbnail(frames_T3HW: torch.Tensor) -> torch.Tensor:
    """Resize frames to a height of `HEIGHT`."""
    size = HEIGHT, max(round(HEIGHT * frames_T3HW.shape[3] / frames_T3HW.shape[2]), 1)
    return torch.nn.functional.interpolate(frames_T3HW, size, mode="bilinear", antialias=True)


def thumbnails(videos: list[Path], number: int, decode: DecodeConfig) -> dict[Path, np.ndarray]:
    """Return `number` frames of each video, uint8 [T,H,W,3], where they can be read."""
    clips = [Clip(id=str(path), path=path.absolute(), label="", group="") for path in videos]
    job = functools.partial(read_frames, sampling=SamplingConfig(frames=number), decode=decode, transform=thumbnail)
    outcomes = run_isolated(job, clips, 2, decode.timeout, decode.memory_limit)
    return {Path(c.id): o.frames.transpose(0, 2, 3, 1) for c, o in outcomes if not isinstance(o, Failure)}


def plot_recording(
    out: Path, title: str, probabilities_KC: np.ndarray, classes: list[str], segments: list[Segment], frames: np.ndarray
) -> None:
    """Draw the probabilities of the classes over time, the segments, and thumbnails under the axis.

    Where there is no answer, `probabilities_KC` is NaN."""
    duration = segments[-1].end if segments else 1.0
    colours = colours_of([segment.label for segment in segments])
    figure = Figure(figsize=(12, 4.6), layout="constrained", facecolor="white")
    curves, bar, pictures = figure.subplots(3, 1, height_ratios=(8, 1, 3), sharex=True)
    shown = sorted(colours, key=lambda name: -sum(s.end - s.start for s in segments if s.label == name))[:MOST_CURVES]
    times_K = (np.arange(len(probabilities_KC)) + 0.5) * duration / max(len(probabilities_KC), 1)
    for name in shown:
        curves.plot(times_K, probabilities_KC[:, classes.index(name)], color=colours[name], label=printable(name))
    curves.set(ylim=(0, 1.02), ylabel="probability")
    curves.set_title(printable(title), parse_math=False)
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # No font has a glyph for some class names.
        for text in curves.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False).get_texts():
            text.set_parse_math(False)
        for segment in segments:
            bar.axvspan(*segment[:2], color=colours[segment.label], linewidth=0)
        width = duration / max(len(frames), 1)
        for number, frame in enumerate(frames):
            margin = 0.02 * width
            pictures.imshow(frame, extent=(number * width + margin, (number + 1) * width - margin, 0, 1), aspect="auto")
        pictures.set(xlim=(0, duration), ylim=(0, 1), xlabel="seconds", yticks=[])
        bar.set(yticks=[])
        for axes in (bar, pictures):
            axes.spines[:].set_visible(False)
        figure.savefig(out, dpi=110)


class SheetClip(NamedTuple):
    path: Path
    label: str
    probability: float


def contact_sheet(out: Path, clips: list[SheetClip], classes: list[str], decode: DecodeConfig) -> None:
    """Draw the middle frame of each clip, the least certain first. The folder of a clip is its true class if it has the
    name of one; the frame of its picture is then blue if the answer is right, else vermilion."""
    frames = thumbnails([clip.path for clip in clips], 1, decode)
    shown = sorted((clip for clip in clips if clip.path in frames), key=lambda clip: clip.probability)
    if not shown:
        return
    width = min(max(frames[clip.path].shape[2] for clip in shown), 2 * HEIGHT) + 12
    columns = min(max(round((len(shown) * 1.2) ** 0.5), 4), 10)
    cell = width, HEIGHT + 44
    sheet = Image.new("RGB", (columns * cell[0], -(-len(shown) // columns) * cell[1]), DARK)
    draw = ImageDraw.Draw(sheet)
    for number, clip in enumerate(shown):
        x, y = number % columns * cell[0], number // columns * cell[1]
        truth = clip.path.parent.name if clip.path.parent.name in classes else None
        picture = Image.fromarray(frames[clip.path][0])
        picture.thumbnail((width - 12, HEIGHT))
        left = x + (width - picture.width) // 2
        colour = DARK if truth is None else RIGHT if truth == clip.label else WRONG
        draw.rectangle((left - 4, y + 2, left + picture.width + 3, y + picture.height + 9), fill=colour)
        sheet.paste(picture, (left, y + 6))
        text = f"{printable(clip.label)} {clip.probability:.0%}"
        lines = [text] if truth in (None, clip.label) else [text, f"is {printable(truth)}"]
        for line, content in enumerate(lines):
            while draw.textlength(content, font(11)) > width - 6:
                content = content[:-2] + "…"
            draw.text((x + width / 2, y + HEIGHT + 18 + 14 * line), content, "white", font(11), anchor="mm")
    sheet.save(out)
