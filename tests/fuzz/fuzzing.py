"""schemathesis against the real door on loopback, with a worker of a few lines behind it.

`python -m tests.fuzz.fuzzing` runs many.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

from safelight.api import Service, create_app
from safelight.api.metering import Meter
from safelight.config import ServerSettings
from safelight.deployments import Defaults, Deployment, Limits
from safelight.keys import Scope
from safelight.store import Store
from tests.api.house import FakeWorker, House, check_webhook, open_client

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
    """What came of one session: how many requests, their answers by status, and what was wrong."""

    statuses: Counter[int] = field(default_factory=Counter)
    output: str = ""
    exit_status: int = 0

    @property
    def num_requests(self) -> int:
        return self.statuses.total()

    @property
    def num_server_errors(self) -> int:
        return sum(count for status, count in self.statuses.items() if status >= 500)


class Tally(Meter):
    """Counts the answers of the door where they are given."""

    def __init__(self) -> None:
        super().__init__()
        self.statuses: Counter[int] = Counter()

    def count_request(self, method: str, route: str, status: int, seconds: float) -> None:
        self.statuses[status] += 1
        super().count_request(method, route, status, seconds)


@contextlib.asynccontextmanager
async def serving(folder: Path, meter: Meter) -> AsyncIterator[tuple[str, str]]:
    """A whole door with a worker, on loopback; its address and a key that may do everything."""
    settings = ServerSettings(port=0, sync_timeout_seconds=30, max_queued_runs=100_000)
    async with await Store.open(folder / "data") as store:
        for name in ("pinhole", "deployment"):
            usual, small = Defaults(height=64, width=64), Limits(max_side=128, max_images=2)
            await store.deployments.deploy(
                Deployment(name=name, version=0, model="pinhole", defaults=usual, limits=small)
            )
        _, key = await store.keys.create("all", scopes=frozenset({Scope.ADMIN}))
        service = Service(store, settings, check_webhook=check_webhook)
        app = create_app(service, settings, meter=meter)
        async with open_client(app, key) as client:
            house = House(store, service, app, client, key, settings, FakeWorker(store))
            async with house.working(), house.serving() as (_, port):
                yield f"http://127.0.0.1:{port}", key


async def fuzz(*, max_examples: int, seed: int | None = None) -> Findings:
    """All phases: examples, coverage, fuzzing, stateful."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as name:
        folder = Path(name)
        await asyncio.to_thread((folder / "schemathesis.toml").write_text, CONFIG, encoding="utf-8")
        tally = Tally()
        async with serving(folder, tally) as (url, key):
            command = [sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json"]
            command += [
                "--header",
                f"Authorization: {key}",
                "--checks",
                CHECKS,
                "--phases",
                "examples,coverage,fuzzing,stateful",
            ]
            command += ["--max-examples", str(max_examples), "--request-timeout", "60", "--no-shrink", "--no-color"]
            command += ["--generation-database", "none", "--warnings", "off"]
            command += [] if seed is None else ["--seed", str(seed)]
            process = await asyncio.create_subprocess_exec(
                *command, cwd=folder, stdout=asyncio.subprocess.PIPE, stderr=subprocess.STDOUT
            )
            output, _ = await process.communicate()
        return Findings(tally.statuses, output.decode(errors="replace"), process.returncode or 0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--max-examples", type=int, default=400)
    parser.add_argument("--seed", type=int)
    options = parser.parse_args()
    findings = asyncio.run(fuzz(max_examples=options.max_examples, seed=options.seed))
    print(findings.output)
    print("answers by status: ", dict(sorted(findings.statuses.items())))
    print(f"{findings.num_requests} requests, {findings.num_server_errors} server errors, exit {findings.exit_status}")
    return findings.exit_status


if __name__ == "__main__":
    sys.exit(main())
