"""What a result was measured on, and how results are kept."""

from __future__ import annotations

import io
import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from rich.console import Console
from rich.table import Table

from safelight.version import __version__

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "diffusers", "transformers")


def describe() -> str:
    """One line: processor, cores, versions, date. No names of hosts."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    python = f"Python {platform.python_version()}"
    today = f"{datetime.now(UTC):%Y-%m-%d}"
    return f"{model}, {os.cpu_count()} CPUs, {python}, safelight {__version__}, {versions}, {today}"


def publish(name: str, table: Table) -> None:
    """Print the table and keep it under benchmarks/results/."""
    table.caption = describe()
    Console().print(table)
    kept = Console(record=True, width=140, file=io.StringIO())
    kept.print(table)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.txt").write_text(kept.export_text())
