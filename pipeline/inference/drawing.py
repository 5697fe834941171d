"""The picture of an explanation."""

import textwrap

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.inference.explanation import CELLS, Explanation, Gates
from pipeline.inference.occlusion import Evidence
from pipeline.video.decode import DecodedClip

COLOURS = {"input": "#0072b2", "forget": "#e69f00", "output": "#009e73"}  # Okabe and Ito: for all kinds of vision.


def draw(explanation: Explanation, clip: DecodedClip) -> Figure:
    """Draw the frames, how much each moment and each cell carried the decision, and the gates over time."""
    frames_THW3 = clip.frames.transpose(0, 2, 3, 1)
    figure = Figure(figsize=(10, 7), layout="constrained", facecolor="white")
    grid = figure.add_gridspec(3, 2, height_ratios=(1, 1.3, 2.2), width_ratios=(1, 1.6))
    figure.suptitle(f"{explanation.label}, {explanation.probability:.1%}", parse_math=False)
    strip = figure.add_subplot(grid[0, :])
    shown = np.linspace(0, len(frames_THW3) - 1, min(8, len(frames_THW3))).round().astype(int)
    strip.imshow(np.concatenate(frames_THW3[shown], 1))
    height, width = frames_THW3.shape[1:3]
    strip.set_xticks((np.arange(len(shown)) + 0.5) * width, [f"{clip.pts[place]:.2f} s" for place in shown])
    strip.set_yticks([])
    _draw_moments(figure.add_subplot(grid[1, :]), explanation.moments, clip.pts)
    _draw_cells(figure.add_subplot(grid[2, 0]), explanation.cells, frames_THW3[explanation.moments.order[0]])
    if explanation.gates:
        _draw_gates(figure.add_subplot(grid[2, 1]), explanation.gates, clip.pts)
    return figure


def _draw_moments(axes: Axes, moments: Evidence, pts_T: np.ndarray) -> None:
    times, spacing = pts_T[moments.order], np.ptp(pts_T) / max(len(pts_T) - 1, 1)
    axes.bar(times, moments.drops, 0.8 * spacing, color="#0072b2")
    for rank, (time, drop) in enumerate(zip(times, moments.drops, strict=True), 1):
        axes.annotate(str(rank), (time, max(drop, 0)), ha="center", va="bottom", fontsize=7)
    axes.set_xlim(pts_T[0] - spacing / 2, pts_T[-1] + spacing / 2)
    axes.margins(y=0.15)
    axes.set(title=f"Moments in the order of removal: {moments.verdict}", xlabel="s", ylabel="fall of log-odds")


def _draw_cells(axes: Axes, cells: Evidence, frame_HW3: np.ndarray) -> None:
    height, width = frame_HW3.shape[:2]
    axes.imshow(frame_HW3.mean(2), cmap="gray", extent=(0, CELLS, CELLS, 0), aspect=height / width)
    drops_K = np.zeros(CELLS**2)
    drops_K[cells.order] = cells.drops
    picture = axes.imshow(drops_K.reshape(CELLS, CELLS).clip(0), "viridis", extent=(0, CELLS, CELLS, 0), alpha=0.55)
    axes.set_aspect(height / width)
    axes.figure.colorbar(picture, ax=axes, label="fall of log-odds", shrink=0.8)
    axes.set_title("\n".join(textwrap.wrap(f"Cells: {cells.verdict}", 40)))
    axes.set(xticks=[], yticks=[])


def _draw_gates(axes: Axes, gates: Gates, pts_T: np.ndarray) -> None:
    for name, values in gates.means.items():
        gate, direction = name.split(", ")
        axes.plot(pts_T, values, "-" if direction == "forwards" else "--", color=COLOURS[gate], label=name)
    axes.set(title=f"Gates of the LSTM, a description (fusion weight {gates.weight:.2f})", xlabel="s", ylim=(0, 1))
    axes.legend(fontsize=7, ncols=2)
