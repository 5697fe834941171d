"""usage: kinema COMMAND [ARGUMENTS]

Video action recognition with a frozen CNN, cached features and a BiLSTM.

  extract   Compute the features of a data set and cache them.
  train     Train a head and its linear baselines on cached features.
  sweep     Try settings by cross-validation, and train with the best.
  evaluate  Evaluate a trained run on its test split.
  report    Write an HTML report of evaluated runs.
  compare   Compare evaluated runs on the same test clips.
  probe     Test whether a trained run depends on the order of frames.
  predict   Classify videos.
  explain   Explain a prediction, as a picture and JSON.
  export    Write a trained run as one ONNX file.
  failures  Show which clips could not be read and why.
  store     List, verify or prune the cached features.

`kinema COMMAND --help` lists its arguments, `--version` prints the version, `--debug` shows tracebacks."""

import argparse
import atexit
import importlib
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from pipeline import __version__
from pipeline.base.errors import ConfigError, KinemaError, first_line, printable
from pipeline.base.settings import build, flatten, is_among, nearest
from pipeline.config import OVERRIDABLE, Config


def main(argv: list[str] | None = None) -> int:
    """Run a command and return the exit code: 0 done, 1 the job failed, 2 wrong arguments or settings, 128 + signal."""
    argv = sys.argv[1:] if argv is None else argv
    _prepare_process()
    try:
        _run([argument for argument in argv if argument != "--debug"])
        sys.stdout.flush()
    except BrokenPipeError:  # The reader has closed the pipe. Python would complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except (KinemaError, OSError, RuntimeError) as error:
        hint = "; stop other programs on the GPU or use --device cpu" if "out of memory" in str(error) else ""
        if "--debug" in argv or (isinstance(error, RuntimeError) and not hint):
            raise
        lines = [first_line(error) + hint] if hint else str(error).splitlines()
        print(*(f"kinema: {printable(line)}" for line in lines), sep="\n", file=sys.stderr)
        return getattr(error, "exit_code", KinemaError.exit_code)
    except KeyboardInterrupt as stop:
        print("kinema: Interrupted. Computed features are kept; run the same command again.", file=sys.stderr)
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
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # OpenMP's default keeps cores busy while they wait.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # Reproducible matrix products on a GPU.
    if not os.access(os.path.expanduser("~"), os.W_OK):
        folder = tempfile.mkdtemp(prefix="kinema-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        for name in ("MPLCONFIGDIR", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR"):
            os.environ.setdefault(name, folder)


def _interrupt(number: int, _: object) -> None:
    signal.signal(number, signal.SIG_DFL)  # A second signal stops at once.
    raise KeyboardInterrupt(number)


def _shard(text: str) -> tuple[int, int]:
    part, _, parts = text.partition("/")
    if not (part.isdigit() and parts.isdigit() and 1 <= int(part) <= int(parts)):
        raise argparse.ArgumentTypeError(f"expected I/N with I from 1 to N, such as 1/4, got {text!r}")
    return int(part), int(parts)


def _const(name: str, value: str, default: str) -> dict[str, str]:
    return dict(action="store_const", dest=name, const=value, default=default)


def _names(text: str) -> list[str]:
    return text.split(",")


COMMANDS = dict(line.split(maxsplit=1) for line in __doc__.splitlines() if line.startswith("  "))
SOURCES = "file, folder, 'glob', list.txt, http(s) URL, or - for a list on standard input; -- before names with a dash"
FORMATS = "also save segments: srt, vtt, eaf, activitynet, labelstudio; several with commas"
ARGUMENTS = (
    ("sweep", "sweep_file", dict(type=Path, metavar="FILE", help="W&B sweep file (YAML)")),
    ("extract train sweep failures store", "--config", dict(type=Path, metavar="FILE", help="YAML file with settings")),
    ("evaluate probe predict explain export", "run", dict(type=Path, metavar="RUN", help="folder of a run")),
    ("report compare", "folders", dict(type=Path, nargs="+", metavar="RUN", help="folders of runs")),
    ("extract", "--shard", dict(type=_shard, metavar="I/N", default=(1, 1), help="process only the I-th of N parts")),
    ("extract", "--retry-failed", dict(action="store_true", help="try clips again that failed before")),
    ("train", "--run", dict(metavar="NAME", help="name of the run (default: name of the config file)")),
    (
        "sweep",
        "--run",
        dict(metavar="NAME", default="best", help="name of the run with the best settings (default: best)"),
    ),
    ("sweep", "--folds", dict(type=int, metavar="N", default=3, help="parts that are held out in turn (default: 3)")),
    ("predict", "sources", dict(nargs="+", metavar="SOURCE", help=SOURCES)),
    ("probe compare", "--json", dict(action="store_true", dest="as_json", help="print JSON")),
    ("predict", "--json", dict(_const("style", "json", "table"), help="print a JSON object for each answer")),
    ("predict", "--csv", dict(_const("style", "csv", "table"), help="print CSV")),
    ("predict", "--whole", dict(_const("mode", "whole", "auto"), help="take every video as one clip")),
    ("predict", "--segments", dict(_const("mode", "segments", "auto"), help="divide every video into segments")),
    ("evaluate", "--segments", dict(action="store_true", help="compare the segments of whole recordings with a list")),
    ("predict", "--save", dict(type=_names, dest="formats", metavar="FORMATS", default=[], help=FORMATS)),
    ("explain", "video", dict(type=Path, metavar="VIDEO", help="video to classify as a whole")),
    ("predict explain", "--out", dict(type=Path, metavar="FOLDER", default=Path(), help="default: current folder")),
    ("export", "file", dict(type=Path, metavar="FILE", help="file to write, such as model.onnx")),
    ("predict", "--top", dict(type=int, metavar="N", default=5, help="number of classes to show (default: 5)")),
    ("report", "--out", dict(type=Path, metavar="FILE", help="default: report.html or comparison.html")),
    ("report", "--previews", dict(type=int, metavar="N", default=240, help="maximum number of clips (default: 240)")),
    ("predict", "--unknown", dict(action="store_true", help="label whole videos `unknown` if the confidence is low")),
    ("predict", "--annotate", dict(type=Path, metavar="OUT", help="write annotated videos (folder or file)")),
    ("predict", "--plot", dict(type=Path, metavar="FOLDER", help="draw probabilities over time, and a sheet of clips")),
    ("failures", "--clip", dict(dest="clip_id", metavar="ID", help="show what each decoder reports for this clip")),
    ("store", "action", dict(nargs="?", choices=("list", "verify", "prune"), default="list", help="default: list")),
    ("store", "fingerprints", dict(nargs="*", metavar="FINGERPRINT", help="prune: features to remove")),
    ("store", "--repair", dict(action="store_true", help="verify: remove damaged entries")),
)


class _Parser(argparse.ArgumentParser):
    def __init__(self, command: str):
        super().__init__(prog=f"kinema {command}", description=COMMANDS[command], allow_abbrev=False)
        for commands, name, keywords in ARGUMENTS:
            if command in commands:
                self.add_argument(name, **keywords)
        settings = " [--SETTING VALUE ...]" if OVERRIDABLE.get(command, True) else ""
        self.usage = self.format_usage().partition(": ")[2].strip() + settings
        group = self.add_argument_group("settings")  # Parses all, shows those that the command can change.
        for name, (values, default, text) in flatten(Config).items():
            text = f"{text} (default: {default})".replace("%", "%%")
            shown = text if is_among(name, OVERRIDABLE.get(command, (name,))) else argparse.SUPPRESS
            group.add_argument(f"--{name.replace('_', '-')}", metavar=values, help=shown)

    def error(self, message: str) -> None:
        raise ConfigError(f"{message}; see {self.prog} --help")


def _run(argv: list[str]) -> None:
    """Run a command: its arguments and settings in any order; after `--`, files that may begin with a dash."""
    command, *options = argv or [""]
    if command in ("-h", "--help", "--version"):
        return print(f"kinema {__version__}" if command == "--version" else __doc__)
    if command not in COMMANDS:
        raise ConfigError(f"unknown command '{command}'{nearest(command, COMMANDS)}; see kinema --help")
    end = options.index("--") if "--" in options else len(options)
    files = [os.path.join(".", name) for name in options[end + 1 :]]
    parts = [option.partition("=") if option.startswith("--") else ("", "", option) for option in options[:end]]
    tokens = [name.replace("_", "-") + equals + value for name, equals, value in parts]  # --max_missing
    parser = _Parser(command)
    args, unknown = parser.parse_known_intermixed_args(tokens + files)
    values = vars(args)
    if unknown:
        name = unknown[0].partition("=")[0].removeprefix("--").replace("-", "_")
        parser.error(f"unknown argument '{unknown[0]}'{nearest(Config.RENAMED.get(name, name), values)}")
    overrides = {name: value for name in flatten(Config) if (value := values.pop(name)) is not None}
    if command == "train":
        name = args.config.stem if args.config else "run"
        agent = os.environ.get("WANDB_RUN_ID")  # Of W&B's agent, which gives every trial an id.
        values["run"] = args.run or (f"{name}-{agent}" if agent else name)
    elif command in ("extract", "failures"):
        given = {"config": values["config"], **overrides}
        values["settings"] = [f"--{name}={value}" for name, value in given.items() if value is not None]
    config = build(Config, values.get("config"), overrides, OVERRIDABLE.get(command))
    if "config" in values:
        values["config"] = config
    elif OVERRIDABLE[command]:
        values["overrides"] = overrides
    if command in ("extract", "evaluate", "report", "predict", "explain", "export"):  # Decoders start early.
        importlib.import_module("pipeline.video.workers").preload()
    getattr(importlib.import_module(f"pipeline.{command}"), command)(**values)


if __name__ == "__main__":
    sys.exit(main())
