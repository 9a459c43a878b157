"""For all tests."""

from __future__ import annotations

import os

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

# Compiling for OpenVINO takes a few seconds for each server that starts; the tests of it say so themselves.
os.environ.setdefault("SAFELIGHT_ENGINE__BACKEND", "torch")
# Several processes draw at once, and none is to take the processors from the others.
os.environ.setdefault("OMP_NUM_THREADS", "1")

WATCH_THE_CLOCK = (
    *("tests/lifecycle/", "tests/faults/", "tests/browser/"),
    *("tests/api/test_server.py", "tests/api/test_slow_clients.py"),
    *("tests/engine/test_forecast.py", "tests/engine/test_host.py"),
)
"""Several servers each, or limits in seconds: never two of these run at once."""


class Sharing(LoadScopeScheduling):
    """Who tests what, where several processes test: each file is one's, and those that watch the clock
    are all one's."""

    def _split_scope(self, nodeid: str) -> str:
        return "the clock" if nodeid.startswith(WATCH_THE_CLOCK) else nodeid.partition("::")[0]


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Sharing:
    # In the order of `pytest_collection_modifyitems`, not the file with the most tests first.
    config.option.loadscopereorder = False
    return Sharing(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest share first, or one process would be done long before the other."""
    items.sort(key=lambda item: not item.nodeid.startswith(WATCH_THE_CLOCK))
