"""Takes out what keeps a promise, one guard after the other, in a copy of the tree, and sees its test fail.

python -m tests.faults.guards [PROMISE]...
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
COPIED = ("safelight", "tests", "benchmarks", "docs")
FAILED = 1
"""pytest's exit status when tests ran and one failed."""


@dataclass(frozen=True, slots=True)
class Guard:
    """`line` of `file` becomes `without`; then `test` must fail."""

    promise: str
    what: str
    file: str
    line: str
    without: str
    test: str


GUARDS = (
    Guard(
        "1",
        "the fence of a claim",
        "safelight/store/claims.py",
        'runs.c.fence == sa.bindparam("this_fence"),',
        'sa.bindparam("this_fence") >= 0,',
        "tests/store/test_claims.py",
    ),
    Guard(
        "5",
        "the look for an earlier run of the key",
        "safelight/store/runs.py",
        "        if made is not None:\n",
        "        if made is None and False:\n",
        "tests/store/test_runs.py",
    ),
    Guard(
        "7",
        "the count of attempts",
        "safelight/store/claims.py",
        "elif lost.num_attempts >= max_attempts:",
        "elif lost.num_attempts >= 10 * max_attempts:",
        "tests/store/test_claims.py::test_a_run_that_loses_every_worker_fails",
    ),
    Guard(
        "9",
        "the look at an address where the connection is made",
        "safelight/webhooks/targets.py",
        'raise DeniedTarget(f"the address of {host} {reason}; {_REMEDY}")',
        "pass",
        "tests/webhooks/test_targets.py",
    ),
    Guard(
        "10",
        "places for hosts that are proven",
        "safelight/webhooks/lanes.py",
        "takes_unproven = self._num_unproven_running() < self._max_unproven",
        "takes_unproven = True",
        "tests/webhooks/test_lanes.py",
    ),
    Guard(
        "11",
        "the secret before goes on signing",
        "safelight/store/endpoints.py",
        "ends_at = now() + overlap_seconds",
        "ends_at = now() + 0 * overlap_seconds",
        "tests/store/test_endpoints.py::test_a_rotated_secret_stays_beside_its_successor_for_a_day",
    ),
    Guard(
        "14",
        "the look for fields over a limit",
        "safelight/api/params.py",
        "def find_wrong(asked: NewParams, params: RunParams, deployment: Deployment) -> tuple[FieldError, ...]:\n",
        "def find_wrong(asked: NewParams, params: RunParams, deployment: Deployment) -> tuple[FieldError, ...]:\n    return ()\n\n\n"
        "def _unused(asked: NewParams, params: RunParams, deployment: Deployment) -> tuple[FieldError, ...]:\n",
        "tests/api/test_native.py",
    ),
    Guard(
        "16",
        "redaction of log lines",
        "safelight/logs.py",
        "        return redact(line)\n",
        "        return line\n",
        "tests/api/test_secrets.py::test_both_formats_of_the_log_have_that_defence",
    ),
    Guard(
        "17",
        "the deadline of an answer that is not taken",
        "safelight/api/server.py",
        "self._write_timer = self.loop.call_later(self._deadline_seconds, check)",
        "self._write_timer = self.loop.call_later(600, check)",
        "tests/api/test_server.py::test_readers_that_stop_reading_are_dropped_and_their_answers_forgotten",
    ),
    Guard(
        "19",
        "the rows of deliveries carried over",
        "safelight/store/migrations/versions/0003_webhook_endpoints.py",
        'op.execute("INSERT INTO attempts SELECT * FROM kept_attempts")',
        "pass",
        "tests/faults/test_faults.py::test_every_schema_there_was_is_brought_up_to_date",
    ),
)


def is_missed(guard: Guard) -> str:
    """How the test ends without the guard: empty when it fails, as it should."""
    with tempfile.TemporaryDirectory() as name:
        copy = Path(name)
        for folder in COPIED:
            shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__", "results"))
        shutil.copy(ROOT / "pyproject.toml", copy)
        file = copy / guard.file
        source = file.read_text(encoding="utf-8")
        if source.count(guard.line) != 1:
            return "the guard is not where it was"
        file.write_text(source.replace(guard.line, guard.without), encoding="utf-8")
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", guard.test]
        status = subprocess.run(
            command, cwd=copy, env=os.environ | {"PYTHONPATH": name}, capture_output=True, check=False
        ).returncode
    return "" if status == FAILED else f"its test ends with {status}"


def main() -> int:
    wanted = [guard for guard in GUARDS if not sys.argv[1:] or guard.promise in sys.argv[1:]]
    num_wrong = 0
    for guard in wanted:
        wrong = is_missed(guard)
        num_wrong += bool(wrong)
        print(f"{guard.promise}: without {guard.what}: {wrong or 'seen by ' + guard.test}", flush=True)
    return 1 if num_wrong else 0


if __name__ == "__main__":
    sys.exit(main())
