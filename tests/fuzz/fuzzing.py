"""schemathesis and made-up forms against the real door on loopback, with a real worker over FakeModel behind it.

`python -m tests.fuzz.fuzzing` runs many.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from safelight.api.metering import Meter
from safelight.deployments import Defaults, Deployment, Limits

from .dashboard import fuzz_dashboard
from .door import opened, serving, settings_for, working

CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,"
    "response_schema_conformance,ignored_auth,unsupported_method"
)
"""What promises are made of. Bodies that the schema allows and a deployment's limits refuse are no fault."""

CONFIG = """[parameters]
"path.deployment" = "pinhole"
"""
"""A name that is deployed: with any other, nothing would get further than 404."""

MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
"""Thousands of commits, and none of them has to survive."""


@dataclass
class Findings:
    """What came of one session: how many requests, their answers by status, and what was wrong. `num_pages` of them
    went to the dashboard; `pages` has their answers by route. `num_drawn` pictures were decoded."""

    statuses: Counter[int] = field(default_factory=Counter)
    num_pages: int = 0
    pages: dict[str, Counter[int]] = field(default_factory=dict)
    num_drawn: int = 0
    output: str = ""
    exit_status: int = 0

    @property
    def num_requests(self) -> int:
        return self.statuses.total()

    @property
    def num_server_errors(self) -> int:
        return sum(count for status, count in self.statuses.items() if status >= 500)

    @property
    def figure(self) -> str:
        requests = f"{self.num_requests} requests, {self.num_pages} of them to the dashboard"
        return f"{requests}, {self.num_server_errors} server errors, exit {self.exit_status}"


class Tally(Meter):
    """Counts the answers of the door where they are given."""

    def __init__(self) -> None:
        super().__init__()
        self.statuses: Counter[int] = Counter()
        self.num_pages = 0

    def count_request(self, method: str, route: str, status: int, seconds: float) -> None:
        self.statuses[status] += 1
        self.num_pages += route.startswith("/dashboard")
        super().count_request(method, route, status, seconds)


async def fuzz(*, max_examples: int, num_asks: int, seed: int | None = None) -> Findings:
    """All phases: examples, coverage, fuzzing, stateful; then the dashboard, whose writes change what is deployed."""
    usual, small = Defaults(height=64, width=64), Limits(max_side=128, max_images=2)
    deployments = [
        Deployment(name=name, version=0, model="pinhole", defaults=usual, limits=small)
        for name in ("pinhole", "deployment")
    ]
    tally, findings = Tally(), Findings()
    with tempfile.TemporaryDirectory(dir=MEMORY) as name:
        folder = Path(name)
        settings = settings_for(folder)
        async with opened(settings, deployments, meter=tally) as door, working(settings) as model, serving(door) as url:
            findings.exit_status, findings.output = await _schemathesis(folder, url, door.key, max_examples, seed)
            visitor = await fuzz_dashboard(door, url, num_asks=num_asks, seed=seed)
            findings.num_drawn = model.calls["decode"]
    findings.statuses, findings.num_pages = tally.statuses, tally.num_pages
    findings.pages = {f"{target.method} {target.path}": visitor.answers[target] for target in visitor.targets}
    findings.output += "\n".join(visitor.faults)
    return findings


async def _schemathesis(folder: Path, url: str, key: str, max_examples: int, seed: int | None) -> tuple[int, str]:
    """Its exit status and what it said."""
    await asyncio.to_thread((folder / "schemathesis.toml").write_text, CONFIG, encoding="utf-8")
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json"]
    command += ["--header", f"Authorization: {key}", "--checks", CHECKS]
    command += ["--phases", "examples,coverage,fuzzing,stateful", "--max-examples", str(max_examples)]
    command += ["--request-timeout", "60", "--no-shrink", "--no-color", "--generation-database", "none"]
    command += ["--warnings", "off", *([] if seed is None else ["--seed", str(seed)])]
    process = await asyncio.create_subprocess_exec(
        *command, cwd=folder, stdout=asyncio.subprocess.PIPE, stderr=subprocess.STDOUT
    )
    output, _ = await process.communicate()
    return process.returncode or 0, output.decode(errors="replace")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--max-examples", type=int, default=400)
    parser.add_argument("--asks", type=int, default=100, help="of everything of the dashboard")
    parser.add_argument("--seed", type=int)
    options = parser.parse_args()
    findings = asyncio.run(fuzz(max_examples=options.max_examples, num_asks=options.asks, seed=options.seed))
    print(findings.output)
    for route, statuses in findings.pages.items():
        print(route, dict(sorted(statuses.items())))
    print("answers by status: ", dict(sorted(findings.statuses.items())))
    print(findings.figure)
    return findings.exit_status or int(findings.num_server_errors > 0)


if __name__ == "__main__":
    sys.exit(main())
