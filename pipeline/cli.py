"""The command `kinema`. A verb's module is imported only when it runs."""

import argparse
import atexit
import importlib
import os
import shutil
import signal
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn

from pipeline.base.errors import ConfigError, KinemaError, first_line, printable
from pipeline.base.settings import Setting, build, flatten, is_among, nearest


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see {self.prog} --help")


def main(argv: list[str] | None = None) -> int:
    """Run one verb.

    Returns:
        Exit code: 0 done, 1 the job failed, 2 wrong arguments or settings, 128 + signal number if stopped.

    Raises:
        KeyboardInterrupt: Ctrl-C, after its message; the process then ends without a traceback.
    """
    argv = sys.argv[1:] if argv is None else argv
    end = argv.index("--") if "--" in argv else len(argv)
    files = [f"./{name}" if name.startswith("-") else name for name in argv[end + 1 :]]
    options = [argument for argument in argv[:end] if argument != "--debug"]
    debug = len(options) < end
    _prepare_process()
    try:
        try:
            _run(options, files)
        finally:
            sys.stdout.flush()  # Raises BrokenPipeError here, where it is caught.
    except BrokenPipeError:  # The reader has closed the pipe. Python would complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except (KinemaError, OSError) as error:
        if debug:
            raise
        for line in str(error).splitlines():
            print(f"kinema: {printable(line)}", file=sys.stderr)
        return getattr(error, "exit_code", KinemaError.exit_code)
    except RuntimeError as error:  # PyTorch reports a full GPU by several types.
        reason = first_line(error).partition(". GPU ")[0]
        if debug or "out of memory" not in reason:
            raise
        print(f"kinema: {reason}; stop other programs on the GPU or use --device cpu", file=sys.stderr)
        return KinemaError.exit_code
    except KeyboardInterrupt as stop:
        resumable = options[:1] in (["extract"], ["train"])
        hint = " Finished work is kept; run the same command to resume." if resumable else ""
        print(f"kinema: Interrupted.{hint}", file=sys.stderr)
        if signal.SIGTERM in stop.args:
            return 128 + signal.SIGTERM
        sys.excepthook = lambda *_: None  # Ends by the signal itself, so that a shell loop stops too.
        raise
    return 0


def _prepare_process() -> None:
    """Set signal handlers, encodings and environment, before PyTorch is imported."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # Terminals that are not UTF-8 get escapes instead of an error.
            stream.reconfigure(errors="backslashreplace")
    os.environ.setdefault("GOMP_SPINCOUNT", "5000")  # OpenMP's default keeps cores busy while they wait.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # Reproducible matrix products on a GPU.
    if not os.access(os.path.expanduser("~"), os.W_OK):
        folder = tempfile.mkdtemp(prefix="kinema-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        for name in ("MPLCONFIGDIR", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
            os.environ.setdefault(name, folder)


def _interrupt(number: int, _: object) -> NoReturn:
    """Stop in good order at the first signal, at once at the second."""
    signal.signal(number, signal.SIG_DFL)
    raise KeyboardInterrupt(number)


def _shard(text: str) -> tuple[int, int]:
    part, _, parts = text.partition("/")
    if not (part.isdigit() and parts.isdigit() and 1 <= int(part) <= int(parts)):
        raise argparse.ArgumentTypeError(f"expected I/N with I from 1 to N, such as 1/4, got {text!r}")
    return int(part), int(parts)


def _top(text: str) -> int:
    if not (text.isdigit() and 1 <= int(text) <= 1000):
        raise argparse.ArgumentTypeError(f"expected a number from 1 to 1000, got {text!r}")
    return int(text)


CONFIG = {"--config": dict(type=Path, metavar="FILE", help="YAML file with settings")}
RUN = {"run": dict(type=Path, metavar="RUN", help="folder of a run")}
VERBS: dict[str, tuple[str, dict[str, dict[str, Any]]]] = {
    "extract": (
        "Compute the features of a data set and cache them.",
        {
            **CONFIG,
            "--shard": dict(type=_shard, metavar="I/N", default=(1, 1), help="process only the I-th of N parts"),
            "--retry-failed": dict(action="store_true", help="try clips again that failed before"),
        },
    ),
    "train": (
        "Train a head on cached features, with the mean of frames as baseline.",
        {**CONFIG, "--run": dict(metavar="NAME", help="name of the run (default: name of the config file)")},
    ),
    "evaluate": ("Measure a trained run on its test split.", RUN),
    "predict": (
        "Classify video files.",
        {
            **RUN,
            "videos": dict(type=Path, nargs="*", metavar="VIDEO", help="put -- before names that begin with a dash"),
            "--json": dict(action="store_true", dest="as_json", help="print a JSON object per file"),
            "--top": dict(type=_top, metavar="N", default=5, help="number of classes to show (default: 5)"),
        },
    ),
    "failures": (
        "Show which clips could not be read and why.",
        {**CONFIG, "--clip": dict(dest="clip_id", metavar="ID", help="show what each decoder reports for this clip")},
    ),
    "store": (
        "List, verify or prune the cached features.",
        {
            **CONFIG,
            "action": dict(nargs="?", choices=("list", "verify", "prune"), default="list", metavar="list|verify|prune"),
            "fingerprints": dict(nargs="*", metavar="FINGERPRINT", help="prune: remove the features of these settings"),
            "--repair": dict(action="store_true", help="verify: remove damaged entries"),
        },
    ),
}
"""Help text and arguments of each verb. The arguments' names are those of the verb's function."""


def _run(options: list[str], files: list[str]) -> None:
    """Run a verb: its options and settings in any order, then the files that came after `--`."""
    top = _Parser(
        prog="kinema", description="Video action recognition with a frozen CNN, cached features and a BiLSTM."
    )
    top.epilog = "`kinema VERB --help` lists the arguments of a verb. --debug shows the traceback of an error."
    top.add_argument("--version", action="store_true", help="show the version")
    verbs = top.add_subparsers(title="verbs", metavar="VERB", required=True, dest="verb")
    for name, (text, _) in VERBS.items():
        verbs.add_parser(name, help=text, add_help=False)
    if options == ["--version"]:
        return print(f"kinema {metadata.version('kinema')}")
    verb = top.parse_known_args(options[:1])[0].verb
    if verb in ("extract", "predict") and not {"-h", "--help"} & {*options}:
        from pipeline.video.workers import preload

        preload()
    from pipeline.config import OVERRIDABLE, Config

    allowed = OVERRIDABLE.get(verb)
    parser, known = _parser(verb, allowed)
    parts = [option.partition("=") for option in options[1:]]
    for name in (option.removeprefix("--").replace("-", "_") for option, _, _ in parts if option.startswith("--")):
        if name not in known and (name in flatten(Config) or name in Config.OUTDATED):
            build(Config, None, {name: None}, allowed)  # Raises: fixed by the run, renamed or removed.
    spellings = {f"--{name.replace('_', '-')}": f"--{name}" for name in known}  # --max-missing is --max_missing.
    args, unknown = parser.parse_known_intermixed_args(
        ["".join((spellings.get(name, name), equals, value)) for name, equals, value in parts] + files
    )
    if unknown:
        option = unknown[0].partition("=")[0]
        hint = nearest(option, parser._option_string_actions)
        hint += f"; if it is a file, put -- before it: kinema predict RUN -- {unknown[0]}" if verb == "predict" else ""
        raise ConfigError(f"unknown argument '{option}'{hint}")
    values = vars(args)
    overrides = {name: values.pop(name) for name in known if name in values}
    if verb in ("evaluate", "predict"):
        values["overrides"] = overrides
    else:
        file = values["config"]
        values["config"] = build(Config, file, overrides)
    if verb == "train":
        values["run"] = values["run"] or (file.stem if file else "run")
    elif verb == "failures":
        values["arguments"] = options[1:]
    elif verb == "store":
        return _store(**values)
    elif verb == "predict" and not args.videos:
        raise ConfigError("no video given; see kinema predict --help")
    module = importlib.import_module(f"pipeline.{verb}")
    getattr(module, "show_failures" if verb == "failures" else verb)(**values)


def _parser(verb: str, allowed: tuple[str, ...] | None) -> tuple[argparse.ArgumentParser, dict[str, Setting]]:
    """Return the parser of a verb, and the settings that it takes."""
    from pipeline.config import Config

    text, arguments = VERBS[verb]
    parser = _Parser(prog=f"kinema {verb}", description=text, allow_abbrev=False)
    for name, keywords in arguments.items():
        parser.add_argument(name, **keywords)
    parser.usage = f"{parser.format_usage().partition(': ')[2].strip()} [--SETTING VALUE ...]"
    known = {name: setting for name, setting in flatten(Config).items() if allowed is None or is_among(name, allowed)}
    groups: dict[str, Any] = {}
    for name, setting in known.items():
        section = name.rpartition(".")[0]
        if section not in groups:
            groups[section] = parser.add_argument_group(f"settings: {section}".removesuffix(": "))
        text = f"{setting.help} (default: {setting.default_text})".replace("%", "%%")
        groups[section].add_argument(f"--{name}", metavar=setting.values, default=argparse.SUPPRESS, help=text)
    return parser, known


def _store(config: Any, action: str, fingerprints: list[str], repair: bool) -> None:
    from pipeline import store

    if (fingerprints and action != "prune") or (repair and action != "verify"):
        raise ConfigError(f"store {action}: FINGERPRINT is for prune and --repair for verify")
    if action == "list":
        store.list_store(config.store)
    elif action == "verify":
        store.verify_store(config.store, repair)
    else:
        store.prune_store(config.store, fingerprints)


if __name__ == "__main__":
    sys.exit(main())
