"""Progress bar: live on a terminal, a line every ten seconds elsewhere."""

import sys
from typing import TextIO

from tqdm import tqdm


class _Lines:
    """A stream that writes each redraw of tqdm's bar as a line."""

    def __init__(self, stream: TextIO):
        self.stream = stream

    def write(self, text: str) -> None:
        if text := text.replace("\r", "").strip():
            self.stream.write(text + "\n")

    def flush(self) -> None:
        self.stream.flush()


def progress(what: str, total: int, unit: str) -> tqdm:
    """Return a tqdm bar with rate and time left, to be used as a context manager."""
    if sys.stderr.isatty():
        return tqdm(total=total, desc=what, unit=f" {unit}", dynamic_ncols=True)
    layout = "{desc}: {n_fmt}/{total_fmt}{unit}, {rate_fmt}, {remaining} left{postfix}"
    lines = _Lines(sys.stderr)
    return tqdm(total=total, desc=what, unit=f" {unit}", file=lines, mininterval=10, bar_format=layout)
