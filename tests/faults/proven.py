"""Promises whose proof is a test of the usual suite: the test is run, and what it measured is the figure.

A test says what it measured by pytest's `record_property(name, value)`; of the others the cases are counted. FULL_SIZE
in a test's environment tells it that it may take longer than the suite has time for.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from .figures import Figure, check

ROOT = Path(__file__).parents[2]
MINUTES = 10


@dataclass
class Outcome:
    """`passed` counts cases by the test's name; `measured` is what they said."""

    passed: Counter[str] = field(default_factory=Counter)
    measured: dict[str, str] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Proof:
    """`tests` are files or single tests; `figure` writes down what came of them."""

    promise: str
    done: str
    tests: tuple[str, ...]
    figure: Callable[[Outcome], str]

    def carry_out(self) -> Figure:
        found = run(self.tests)
        faults = [f"{name} failed" for name in found.failed] + check(bool(found.passed), "no test was run")
        if found.skipped and not found.passed:
            return Figure(self.promise, self.done, "not done", found.skipped[:1])
        return Figure(self.promise, self.done, self.figure(found) if found.passed else "nothing", faults)


def run(tests: tuple[str, ...]) -> Outcome:
    """Run `tests` in a process of their own."""
    with tempfile.NamedTemporaryFile(suffix=".xml") as report:
        command = [sys.executable, "-m", "pytest", "-q", "--no-header", f"--junit-xml={report.name}", *tests]
        environment = os.environ | {"FULL_SIZE": "1"}
        subprocess.run(command, cwd=ROOT, env=environment, check=False, stdout=subprocess.DEVNULL, timeout=60 * MINUTES)
        content = Path(report.name).read_text(encoding="utf-8")
    return read_report(content) if content else Outcome(failed=["pytest"])


def read_report(content: str) -> Outcome:
    found = Outcome()
    for case in ElementTree.fromstring(content).iter("testcase"):
        name = case.attrib["name"].partition("[")[0]
        if case.find("failure") is not None or case.find("error") is not None:
            found.failed.append(case.attrib["name"])
        elif (skipped := case.find("skipped")) is not None:
            found.skipped.append(skipped.attrib.get("message", ""))
        else:
            found.passed[name] += 1
        found.measured |= {each.attrib["name"]: each.attrib["value"] for each in case.iter("property")}
    return found


def _cases(*names: str) -> Callable[[Outcome], int]:
    return lambda found: sum(found.passed[name] for name in names)


_denied = _cases(
    "test_no_connection_is_opened_to_a_denied_address_in_any_spelling",
    "test_what_is_no_plain_http_url_is_refused_early_and_never_called",
)

PROOFS: Mapping[str, Proof] = {
    "4": Proof(
        "4",
        "a worker killed at 80% of the steps; another goes on from the checkpoint",
        ("tests/lifecycle/test_going_on.py",),
        lambda found: (
            f"{found.measured['repeated']} steps repeated of {found.measured['steps']}, "
            f"at most {found.measured['allowed']} allowed; the pixels of an uninterrupted run"
        ),
    ),
    "9": Proof(
        "9",
        "every spelling of denied addresses, redirects, userinfo; a resolver that flips",
        ("tests/webhooks/test_targets.py", "tests/webhooks/test_exchange.py"),
        lambda found: (
            f"{_denied(found)} URLs, {found.measured['lookups']} flips, 0 sockets connected to a denied address"
        ),
    ),
    "15": Proof(
        "15",
        "pickles under every name, code beside weights, giant headers, broken files",
        ("tests/parity/test_loading.py",),
        lambda found: f"{found.passed.total()} folders and files, each refused with a reason or read; 0 executions",
    ),
    "16": Proof(
        "16",
        "marked keys, webhook secret and token through everything, then a search; in spans the prompt too",
        ("tests/api/test_secrets.py", "tests/lifecycle/test_tracing.py"),
        lambda found: f"0 hits in {found.measured['searched']} bytes of logs, answers, records, files; 0 in spans",
    ),
    "17": Proof(
        "17",
        "500 half-open clients, slow heads and bodies, slow readers, at once",
        ("tests/api/test_slow_clients.py", "tests/api/test_server.py"),
        lambda found: (
            f"health p99 {found.measured['health_p99_ms']} ms, the last closed after {found.measured['last']} s,"
            f" with a deadline of {found.measured['deadline']} s"
        ),
    ),
    "18": Proof(
        "18",
        "writes from other sites in every guise, a rebound name, scripts as prompts in a real browser",
        ("tests/browser/test_session.py", "tests/browser/test_pages.py"),
        lambda found: (
            f"{found.measured['foreign_writes']} foreign writes, 0 changes; {found.measured['scripts']} scripts,"
            " 0 executions; CSP without unsafe-*"
        ),
    ),
}
