"""Colours and the font of pictures."""

import functools

import matplotlib
from PIL import ImageFont

from pipeline.runs.recordings import BACKGROUND

DARK, GREY = "#202020", "#707070"
COLOURS = "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7", "#BBBBBB"
"""Colours that colour-blind people can tell apart (Okabe and Ito, 2008), and a light grey."""


def colours_of(labels: list[str]) -> dict[str, str]:
    """Return a colour for each label, in order of appearance; with more than eight labels, colours are repeated."""
    names = [name for name in dict.fromkeys(labels) if name.casefold() != BACKGROUND]
    colours = {name: COLOURS[number % len(COLOURS)] for number, name in enumerate(names)}
    return dict.fromkeys(labels, GREY) | colours


@functools.lru_cache(maxsize=32)
def font(size: float) -> ImageFont.FreeTypeFont:
    """Return DejaVu Sans, which has Latin, Greek and Cyrillic letters."""
    return ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", size)
