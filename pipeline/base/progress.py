"""Progress bar: live on a terminal, a line every ten seconds elsewhere."""

import sys
from collections.abc import Iterable

from tqdm import tqdm


def progress(what: str, total: int, unit: str, items: Iterable | None = None) -> tqdm:
    """Return a tqdm bar with rate and time left: an iterator over `items`, or a context manager."""
    if sys.stderr.isatty():
        return tqdm(items, total=total, desc=what, unit=f" {unit}", dynamic_ncols=True)
    line = "{desc}: {n_fmt}/{total_fmt}{unit}, {rate_noinv_fmt}, {remaining} left{postfix}\n"
    return tqdm(items, total=total, desc=what, unit=f" {unit}", mininterval=10, bar_format=line)
