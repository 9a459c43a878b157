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
        "1",
        "the taking back of runs whose worker is gone",
        "safelight/store/claims.py",
        'lost = connection.execute(LOST, {"this_worker": worker_id}).all()',
        "lost = list[sa.Row[Any]]()",
        "tests/faults/test_faults.py::test_kills_lose_and_double_nothing_on_sqlite",
    ),
    Guard(
        "2",
        "the one id of all tries",
        "safelight/webhooks/deliverer.py",
        '"webhook-id": delivery.event_id,',
        '"webhook-id": f"{delivery.event_id}.{timestamp}",',
        "tests/faults/test_faults.py::test_kills_lose_and_double_nothing_on_sqlite",
    ),
    Guard(
        "3",
        "the sync of each commit",
        "safelight/store/database.py",
        "PRAGMA synchronous=FULL",
        "PRAGMA synchronous=OFF",
        "tests/faults/test_faults.py::test_what_was_answered_survives_power_cuts",
    ),
    Guard(
        "4",
        "the reading of the last checkpoint",
        "safelight/worker/keeping.py",
        "return None if data is None else await asyncio.to_thread(unpack, data)",
        "return None",
        "tests/lifecycle/test_going_on.py::test_a_run_killed_at_four_fifths_repeats_no_more_than_a_checkpoint_interval",
    ),
    Guard(
        "5",
        "the look for an earlier run of the key",
        "safelight/store/queueing.py",
        "        if made is not None:\n",
        "        if made is None and False:\n",
        "tests/faults/test_faults.py::test_kills_lose_and_double_nothing_on_sqlite",
    ),
    Guard(
        "6",
        "the word for a full database",
        "safelight/store/database.py",
        "    if primary == sqlite3.SQLITE_FULL:\n",
        "    if primary == -1:\n",
        "tests/faults/test_faults.py::test_a_full_disk_is_said_and_nothing_is_lost",
    ),
    Guard(
        "7",
        "the count of attempts",
        "safelight/store/claims.py",
        "elif lost.num_attempts >= max_attempts:",
        "elif lost.num_attempts >= 10 * max_attempts:",
        "tests/faults/test_faults.py::test_a_run_that_kills_its_worker_ends_alone",
    ),
    Guard(
        "8",
        "the wait for what runs",
        "safelight/worker/claims.py",
        "await asyncio.wait(self._running, timeout=self._settings.drain_seconds)",
        "pass",
        "tests/lifecycle/test_faults.py::test_sigterm_lets_running_work_end_and_exits_zero",
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
        "tests/faults/test_faults.py::test_hostile_endpoints_harm_nobody_else",
    ),
    Guard(
        "11",
        "the secret before goes on signing",
        "safelight/store/secret_numbers.py",
        "ends_at = now() + overlap_seconds",
        "ends_at = now() + 0 * overlap_seconds",
        "tests/faults/test_faults.py::test_a_rotated_secret_has_no_gap",
    ),
    Guard(
        "12",
        "the look at a garbled cursor",
        "safelight/api/webhooks.py",
        "    except ValueError:\n        place",
        "    except KeyError:\n        place",
        "tests/fuzz/test_door.py",
    ),
    Guard(
        "12",
        "the look whether an event of a form is one",
        "safelight/api/dashboard/routes/endpoints.py",
        'for end in form.all("event") if end in ENDS],',
        'for end in form.all("event")],',
        "tests/fuzz/test_door.py",
    ),
    Guard(
        "13",
        "the forgiving of an attempt that a stop cut short",
        "safelight/store/claims.py",
        "is_written = _queue_again(connection, _as_claimed(claim), num_forgiven=1)",
        "is_written = _queue_again(connection, _as_claimed(claim), num_forgiven=0)",
        "tests/store/test_machine.py",
    ),
    Guard(
        "14",
        "the look for fields over a limit",
        "safelight/api/params.py",
        "def find_wrong(asked: NewParams, params: RunParams, deployment: Deployment) -> tuple[FieldError, ...]:\n",
        "def find_wrong(asked: NewParams, params: RunParams, deployment: Deployment) -> tuple[FieldError, ...]:\n"
        "    return ()\n\n\n"
        "def _unused(asked: NewParams, params: RunParams, deployment: Deployment) -> tuple[FieldError, ...]:\n",
        "tests/faults/test_faults.py::test_nothing_over_the_limits_is_accepted",
    ),
    Guard(
        "15",
        "the look at a file's first bytes",
        "safelight/headers.py",
        "_check_kind(file, head)",
        "pass",
        "tests/parity/test_loading.py::test_a_pickle_is_refused_by_its_content_whatever_its_name",
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
        "the deadline of a request's head",
        "safelight/api/server.py",
        "self._receive_timer = self.loop.call_at(self._receive_deadline, self._refuse_slow_request)",
        "self._receive_timer = self.loop.call_at(self._receive_deadline + 600, self._refuse_slow_request)",
        "tests/api/test_server.py::test_a_head_that_drips_is_408_and_silence_is_cut_off",
    ),
    Guard(
        "17",
        "the one deadline of head and body",
        "safelight/api/server.py",
        'self.scope["state"][RECEIVE_DEADLINE] = self._receive_deadline',
        "pass",
        "tests/api/test_server.py::test_head_and_body_share_one_deadline_however_both_drip",
    ),
    Guard(
        "18",
        "the look at where a write comes from",
        "safelight/api/dashboard/guard.py",
        '    if site is not None and site != "same-origin":\n',
        '    if site is not None and site == "none":\n',
        "tests/browser/test_session.py::test_no_write_is_taken_from_another_site",
    ),
    Guard(
        "19",
        "the rows of deliveries carried over",
        "safelight/store/migrations/versions/0003_webhook_endpoints.py",
        'op.execute("INSERT INTO attempts SELECT * FROM kept_attempts")',
        "pass",
        "tests/faults/test_faults.py::test_every_schema_there_was_is_brought_up_to_date",
    ),
    Guard(
        "20",
        "the forgetting of idle hosts",
        "safelight/webhooks/lanes.py",
        "            del self._lanes[host]",
        "            pass",
        "tests/webhooks/test_lanes.py::test_idle_hosts_are_forgotten",
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
