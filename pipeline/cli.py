"""The command `kinema`: a table of verbs. Each verb's module is imported only when it is asked for."""

import argparse
import os
import signal
import sys
from pathlib import Path
from typing import Any, NoReturn

from pipeline.base.errors import ConfigError, KinemaError, first_line, printable

VERBS = {
    "extract": "compute and cache the features of a data set",
    "train": "train a head on cached features, and the mean-of-frames baseline beside it",
    "evaluate": "measure a trained run on its test split",
    "predict": "name the action in video files",
    "failures": "show which clips could not be read and why",
    "store": "list, verify or prune the cached features",
}

USAGE = {
    "extract": "[--config FILE] [--shard I/N] [--retry-failed]",
    "train": "[--config FILE] [--run NAME] [--auto]",
    "evaluate": "RUN",
    "predict": "RUN VIDEO [VIDEO ...] [--json] [--top N]",
    "failures": "[--config FILE] [--clip ID]",
    "store": "[list | verify [--deep] [--mend] | prune [FINGERPRINT ...] [--orphans]] [--config FILE]",
}


OF_VERB = {
    "evaluate": ("data", "store", "decode", "max_missing", "device", "tracking"),
    "predict": ("device", "decode", "backbone.engine", "backbone.precision"),
    "store": ("store",),
}
"""What can be set, where the bundle or the store itself settles the rest: names that begin so."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see {self.prog} --help")


def main(argv: list[str] | None = None) -> int:
    """Runs one verb.

    Returns:
        The exit code: 0 done, 1 the job failed, 2 wrong arguments or config, 128 and the signal's number: interrupted.

    Raises:
        KeyboardInterrupt: Ctrl-C, told in a line; it ends the process without another.
    """
    argv = sys.argv[1:] if argv is None else argv
    debug = "--debug" in argv
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    try:
        try:
            _run([argument for argument in argv if argument != "--debug"])
        finally:
            sys.stdout.flush()  # While the next line can still tell that the reader has gone.
    except BrokenPipeError:  # Whoever reads has read enough; Python would complain when it closes the pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except (KinemaError, OSError) as error:
        if debug:
            raise
        for line in str(error).splitlines():
            print(f"kinema: {printable(line)}", file=sys.stderr)
        return getattr(error, "exit_code", 1)
    except RuntimeError as error:
        reason = first_line(error).partition(". GPU ")[0]
        if debug or "out of memory" not in reason:  # PyTorch has several errors that say so.
            raise
        print(f"kinema: {reason}; end what else uses the GPU, or use --device cpu", file=sys.stderr)
        return KinemaError.exit_code
    except KeyboardInterrupt as stop:
        goes_on = {"extract", "train"} & {*argv}
        kept = "; what is done is kept, the same command goes on from here" if goes_on else ""
        print(f"kinema: interrupted{kept}", file=sys.stderr)
        if signal.SIGTERM in stop.args:
            return 128 + signal.SIGTERM
        # A shell ends its loop only if Ctrl-C has ended the command itself, which Python then does, after its tidying.
        sys.excepthook = lambda *_: None
        raise
    return 0


def _stop(number: int, _: object) -> NoReturn:
    """Ends the work in good order at the first Ctrl-C or SIGTERM, at once at the second."""
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


def _run(argv: list[str]) -> None:
    top = _Parser(prog="kinema", description="Video action recognition from cached frozen-CNN features and a BiLSTM.")
    top.epilog = "kinema VERB --help shows a verb's arguments; --debug shows the traceback of an error"
    verbs = top.add_subparsers(title="verbs", metavar="VERB", required=True, dest="verb")
    for name, text in VERBS.items():
        verbs.add_parser(name, help=text, add_help=False)
    top.add_argument("--version", action="store_true", help="show the version")
    if argv == ["--version"]:
        from importlib.metadata import version

        print(f"kinema {version('kinema')}")
        return
    verb = top.parse_known_args(argv[:1])[0].verb

    if verb in ("extract", "predict") and "--help" not in argv:
        from pipeline.video.workers import preload

        preload()
    from pipeline.base.settings import build, flatten, nearest
    from pipeline.config import Config

    usage = f"kinema {verb} {USAGE[verb]} [--SETTING VALUE ...]"
    parser = _Parser(prog=f"kinema {verb}", usage=usage, description=VERBS[verb], allow_abbrev=False)
    if verb in ("extract", "train", "failures", "store"):
        parser.add_argument("--config", type=Path, help="YAML file with settings; the defaults hold for the rest")
    if verb == "extract":
        parser.add_argument("--shard", type=_shard, metavar="I/N", default=(1, 1), help="only the I-th of N parts")
        parser.add_argument("--retry-failed", action="store_true", help="try clips again that ended two processes")
    if verb == "failures":
        parser.add_argument("--clip", metavar="ID", help="show what each decoder says of this clip")
    if verb == "store":
        parser.add_argument("action", nargs="?", choices=("list", "verify", "prune"), default="list", metavar="ACTION")
        parser.add_argument("fingerprints", nargs="*", metavar="FINGERPRINT", help="prune: settings to remove")
        parser.add_argument("--deep", action="store_true", help="verify: compare the content of the videos too")
        parser.add_argument("--mend", action="store_true", help="verify: remove what is wrong, note what was touched")
        parser.add_argument("--orphans", action="store_true", help="prune: remove entries whose video is gone")
    if verb == "train":
        parser.add_argument("--run", help="name of the bundle in the folder `runs` (default: the config file's name)")
        parser.add_argument(
            "--auto",
            action="store_const",
            const="true",
            default=argparse.SUPPRESS,
            dest="train.auto",
            help="the same as --train.auto true",
        )
    if verb in ("evaluate", "predict"):
        parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run bundle")
    if verb == "predict":
        parser.add_argument("videos", type=Path, nargs="+", metavar="VIDEO", help="video files, such as folder/*")
        parser.add_argument("--json", action="store_true", help="print one JSON object per file")
        parser.add_argument("--top", type=_top, metavar="N", default=5, help="how many classes (default: 5)")
    everywhere = flatten(Config)
    known = {name: setting for name, setting in everywhere.items() if name.startswith(OF_VERB.get(verb, ""))}
    groups: dict[str, Any] = {"": parser.add_argument_group("settings")}
    for name, setting in known.items():
        section = name.rpartition(".")[0]
        if section not in groups:
            groups[section] = parser.add_argument_group(f"settings: {section}")
        help_text = f"{setting.help} (default: {setting.default})".replace("%", "%%")
        choices = getattr(setting.type, "__args__", (setting.type,))
        is_literal = all(isinstance(choice, str) for choice in choices)
        metavar = "{" + ",".join(choices) + "}" if is_literal else choices[0].__name__.upper()
        groups[section].add_argument(f"--{name}", metavar=metavar, default=argparse.SUPPRESS, help=help_text)
    canonical = {f"--{name.replace('_', '-')}": f"--{name}" for name in known}  # --max-missing is --max_missing.
    named = [argument.partition("=") for argument in argv[1:]]
    args, unknown = parser.parse_known_intermixed_args(
        [canonical.get(name, name) + equals + value for name, equals, value in named]
    )
    if unknown:
        option = unknown[0].split("=")[0]
        if option.startswith("--") and option[2:].replace("-", "_") in everywhere:
            raise ConfigError(f"command line: {option} has no effect on kinema {verb}, so it is not taken")
        raise ConfigError(
            f"command line: unknown argument '{option}'{nearest(option, [f'--{name}' for name in known])}"
        )
    overrides = {name: value for name, value in vars(args).items() if name in known}

    if verb == "extract":
        from pipeline.extract import extract

        extract(build(Config, args.config, overrides), args.shard, args.retry_failed)
    elif verb == "train":
        from pipeline.train import train

        train(build(Config, args.config, overrides), args.run or (args.config.stem if args.config else "run"))
    elif verb == "evaluate":
        from pipeline.evaluate import evaluate

        evaluate(args.run, overrides)
    elif verb == "failures":
        from pipeline.failures import show_failures

        show_failures(build(Config, args.config, overrides), argv[1:], args.clip)
    elif verb == "store":
        from pipeline import store

        root = build(Config, args.config, overrides).store
        if (args.fingerprints or args.orphans) and args.action != "prune":
            raise ConfigError(f"store {args.action}: FINGERPRINT and --orphans are for prune")
        if (args.deep or args.mend) and args.action != "verify":
            raise ConfigError(f"store {args.action}: --deep and --mend are for verify")
        if args.action == "list":
            store.list_store(root)
        elif args.action == "verify":
            store.verify_store(root, args.deep, args.mend)
        else:
            store.prune_store(root, args.fingerprints, args.orphans)
    else:
        from pipeline.predict import predict

        predict(args.run, args.videos, args.top, args.json, overrides)


if __name__ == "__main__":
    sys.exit(main())
