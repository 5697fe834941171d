"""The command `kinema`: a table of verbs. Each verb's module is imported only when it is asked for."""

import argparse
import sys
from pathlib import Path
from typing import Any, NoReturn

from pipeline.errors import ConfigError, KinemaError

VERBS = {
    "extract": "compute and cache the features of a data set",
    "train": "train a head on cached features, and the mean-of-frames baseline beside it",
    "evaluate": "measure a trained run on its test split",
    "predict": "name the action in video files",
}

USAGE = {
    "extract": "[--config FILE]",
    "train": "[--config FILE] [--run NAME]",
    "evaluate": "RUN",
    "predict": "RUN VIDEO [VIDEO ...] [--json] [--top N]",
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see {self.prog} --help")


def main(argv: list[str] | None = None) -> int:
    """Runs one verb.

    Returns:
        The exit code: 0 done, 1 the job failed, 2 wrong arguments or config, 130 interrupted.
    """
    argv = sys.argv[1:] if argv is None else argv
    debug = "--debug" in argv
    try:
        _run([argument for argument in argv if argument != "--debug"])
    except (KinemaError, OSError) as error:
        if debug:
            raise
        print(f"kinema: {error}", file=sys.stderr)
        return getattr(error, "exit_code", 1)
    except KeyboardInterrupt:
        print("kinema: interrupted; what is done is kept, the same command goes on from here", file=sys.stderr)
        return 130
    return 0


def _run(argv: list[str]) -> None:
    top = _Parser(prog="kinema", description="Video action recognition from cached frozen-CNN features and a BiLSTM.")
    top.epilog = "kinema VERB --help shows a verb's arguments; --debug shows the traceback of an error"
    verbs = top.add_subparsers(title="verbs", metavar="VERB", required=True, dest="verb")
    for name, text in VERBS.items():
        verbs.add_parser(name, help=text, add_help=False)
    verb = top.parse_known_args(argv[:1])[0].verb

    if verb in ("extract", "predict") and "--help" not in argv:
        from pipeline.workers import warm_up

        warm_up()
    from pipeline.config import Config
    from pipeline.settings import build, flatten, nearest

    usage = f"kinema {verb} {USAGE[verb]} [--SETTING VALUE ...]"
    parser = _Parser(prog=f"kinema {verb}", usage=usage, description=VERBS[verb], allow_abbrev=False)
    if verb in ("extract", "train"):
        parser.add_argument("--config", type=Path, help="YAML file with settings; the defaults hold for the rest")
    if verb == "train":
        parser.add_argument("--run", help="name of the bundle in the folder `runs` (default: the config file's name)")
    if verb in ("evaluate", "predict"):
        parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run bundle")
    if verb == "predict":
        parser.add_argument("videos", type=Path, nargs="+", metavar="VIDEO", help="video file")
        parser.add_argument("--json", action="store_true", help="print one JSON object a file")
        parser.add_argument(
            "--top", type=int, choices=range(1, 1001), metavar="N", default=5, help="how many classes (default: 5)"
        )
    known = flatten(Config)
    if verb == "predict":  # The bundle settles the rest.
        known = {
            name: setting
            for name, setting in known.items()
            if name.startswith(("device", "decode", "backbone.e", "backbone.p"))
        }
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
    args, unknown = parser.parse_known_args(argv[1:])
    if unknown:
        option = unknown[0].split("=")[0]
        raise ConfigError(
            f"command line: unknown argument '{option}'{nearest(option, [f'--{name}' for name in known])}"
        )
    overrides = {name: value for name, value in vars(args).items() if name in known}

    if verb == "extract":
        from pipeline.extract import extract

        extract(build(Config, args.config, overrides))
    elif verb == "train":
        from pipeline.train import train

        train(build(Config, args.config, overrides), args.run or (args.config.stem if args.config else "run"))
    elif verb == "evaluate":
        from pipeline.evaluate import evaluate

        evaluate(args.run, overrides)
    else:
        from pipeline.predict import predict

        predict(args.run, args.videos, args.top, args.json, overrides)


if __name__ == "__main__":
    sys.exit(main())
