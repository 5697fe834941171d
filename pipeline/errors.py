"""Problems that a user can expect and mend: one line each, never a traceback."""


class KinemaError(Exception):
    """The job failed. The message says what, where, and what to do next."""

    exit_code = 1


class ConfigError(KinemaError):
    """The arguments or the config are wrong."""

    exit_code = 2
