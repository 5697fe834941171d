"""Problems that a user can expect and mend: one line each, never a traceback."""


class KinemaError(Exception):
    """The job failed. The message says what, where, and what to do next."""

    exit_code = 1


class ConfigError(KinemaError):
    """The arguments or the config are wrong."""

    exit_code = 2


def first_line(error: BaseException) -> str:
    """Returns what an error says, cut to one line; its kind if it says nothing."""
    lines = (str(error).strip() or type(error).__name__).splitlines()
    return " ".join(line.strip() for line in lines[: 2 if lines[0].endswith(":") else 1])[:200]


def printable(name: object) -> str:
    """Returns a name with all that is no text, or could steer a terminal, written as `\\x1b`, `\\n`."""
    text = str(name)
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def summarize(names: list[str], most: int = 3) -> str:
    """Returns the first names, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
