"""Shared by the benchmarks: interleaved measurements and their tables."""

import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tqdm import tqdm

INSTRUCTION_SETS = ("avx2", "avx512_f", "avx512_bf16", "amx_bf16", "neon", "sve")


def alternate(ways: dict[str, Callable[[], int]], rounds: int) -> dict[str, list[float]]:
    """Run all ways in every round, so that noise affects them alike; one round more for warming up.

    Each way returns the number of items that it processed. Return items per second by way and round.
    """
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for number in tqdm(range(rounds + 1), "rounds", disable=None):
        for name, way in ways.items():
            began = time.monotonic()
            items = way()
            if number:
                rates[name].append(items / (time.monotonic() - began))
    return rates


def ratio(rates: list[float], others: list[float]) -> float:
    """Return the median of the ratios round by round."""
    return statistics.median(mine / other for mine, other in zip(rates, others, strict=True))


def publish(rows: list[tuple[str, ...]], about: str, measured: dict[str, Any], out: Path | None) -> None:
    """Print a table, its first row the headings, and write it to OUT.md and with the raw numbers to OUT.json."""
    machine = machine_in_words()
    lines = [f"| {' | '.join(row)} |" for row in rows]
    lines.insert(1, f"|:--{'|--:' * (len(rows[0]) - 1)}|")
    text = "\n".join([f"{machine}; {about}", "", *lines])
    print(text)
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.with_suffix(".md").write_text(text + "\n")
        command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
        commit = subprocess.run(command, capture_output=True, text=True).stdout.strip()
        content = {"machine": machine, "commit": commit, "about": about, **measured}
        out.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n")


def machine_in_words() -> str:
    """Return the processor, its instruction sets, the GPU and the versions."""
    import joblib
    import torch

    has = torch.cpu.get_capabilities()
    sets = ", ".join(name for name in INSTRUCTION_SETS if has.get(name))
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    versions = f"Python {platform.python_version()}, PyTorch {torch.__version__}"
    return f"{joblib.cpu_count()} cores {has.get('cpu_name') or platform.machine()} ({sets}){gpu}; {versions}"
