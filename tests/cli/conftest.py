"""Commands run in this process, on a data folder of the test's own."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import pytest
from typer.testing import CliRunner, Result

from safelight.catalog import find_weights
from safelight.cli.root import build_app
from safelight.config import load_settings
from safelight.errors import ModelError
from safelight.store import Store

T = TypeVar("T")


class House:
    """A data folder, the commands on it, and its store."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = folder / "data"

    def run(self, *arguments: str, takes_data: bool = True) -> Result:
        data = ["--data", str(self.data)] if takes_data else []
        return CliRunner().invoke(build_app(), [*arguments, *data])

    def ok(self, *arguments: str, takes_data: bool = True) -> Result:
        result = self.run(*arguments, takes_data=takes_data)
        assert result.exit_code == 0, result.output
        return result

    def refused(self, *arguments: str, takes_data: bool = True) -> str:
        """The one line of a command that fails."""
        result = self.run(*arguments, takes_data=takes_data)
        assert result.exit_code == 1, result.output
        assert result.stderr.startswith("error: ")
        assert result.stderr.count("\n") == 1
        assert result.stdout == ""
        return result.stderr

    def store(self, use: Callable[[Store], Awaitable[T]]) -> T:
        async def opened() -> T:
            async with await Store.open(self.data) as store:
                return await use(store)

        return asyncio.run(opened())


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> House:
    monkeypatch.chdir(tmp_path)
    return House(tmp_path)


def needs_pinhole() -> pytest.MarkDecorator:
    reason = ""
    try:
        find_weights("pinhole", folders=load_settings().models)
    except ModelError as error:
        reason = error.message
    return pytest.mark.skipif(bool(reason), reason=reason)
