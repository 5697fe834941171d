"""Write the HTML report of evaluated runs: `kinema report data/runs/ucf101`."""

from pathlib import Path

from pipeline.base.errors import ConfigError
from pipeline.base.settings import build
from pipeline.config import OVERRIDABLE, Config
from pipeline.runs.bundle import Bundle
from pipeline.runs.gallery import cards
from pipeline.runs.html_comparison import write_comparison
from pipeline.runs.html_report import write_report
from pipeline.runs.results import read_results


def report(folders: list[Path], out: Path | None, previews: int, overrides: dict[str, str]) -> None:
    """Write the report of a run, or a comparison of several, with previews of test clips where the videos are."""
    if previews < 0:
        raise ConfigError(f"--previews must be at least 0, got {previews}")
    results, bundles = read_results(folders), [Bundle(run) for run in folders]
    configs = [build(Config, bundle.config_file, overrides, OVERRIDABLE["report"]) for bundle in bundles]
    clips = bundles[0].dataset(configs[0].data.root).of("test")
    if len(folders) == 1:
        file = out or folders[0] / "report.html"
        shown = cards(results[0], clips, configs[0].decode, previews)
        write_report(file, results[0], bundles[0], configs[0], clips, shown)
    else:
        file = out or folders[0].absolute().parent / "comparison.html"
        write_comparison(file, results, bundles, configs, clips, previews)
    print(f"report: {file}")
