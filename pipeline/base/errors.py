"""Expected problems: one line each, without a traceback."""

import shlex
import shutil
import sys
from pathlib import Path


class KinemaError(Exception):
    """The job failed. The message says what, where, and what to do next."""

    exit_code = 1


class ConfigError(KinemaError):
    """The arguments or the settings are wrong."""

    exit_code = 2


def first_line(error: BaseException) -> str:
    """Return an error's message as one line of at most 200 characters, or its type if it has none."""
    lines = (str(error).strip() or type(error).__name__).splitlines()
    return " ".join(line.strip() for line in lines[: 2 if lines[0].endswith(":") else 1])[:200]


def printable(name: object) -> str:
    """Escape characters that are not text or could control a terminal: `\\x1b`, `\\n`."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(name))


def summarize(names: list[str], most: int = 3) -> str:
    """Join the first names: "a, b, c and 2 more"."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def command(*arguments: object) -> str:
    """Return a `kinema` command to paste into a shell, with the path of `kinema` if the shell would not find it."""
    installed = Path(sys.executable).with_name("kinema")
    program = [installed] if installed.exists() else [sys.executable, "-m", "pipeline.cli"]
    return printable(shlex.join(map(str, [*(["kinema"] if shutil.which("kinema") else program), *arguments])))
