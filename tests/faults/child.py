"""What a process of a crew is: a real API, or a real worker with a FakeModel.

`python -P child.py NAME SETTINGS FOLDER DOOR` is one by itself, which has imported no more than a server's would have.
`python -P child.py worker DEVICE` is a worker as a supervisor starts it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import safelight.app
from safelight.config import Settings, parse_settings
from safelight.testing import FakeModel

LOG_FORMAT = "%(asctime)s %(process)d %(name)s %(message)s"


def quick_model() -> FakeModel:
    return FakeModel(step_seconds=0.001)


def slow_model() -> FakeModel:
    return FakeModel(step_seconds=0.02)


def be(name: str, settings: Settings, folder: Path, door: socket.socket, *, model: Callable[[], FakeModel]) -> NoReturn:
    """Work as `name`, `api` or a worker's, until told to stop; the exit status is a server process's."""
    status = 1
    try:
        random.seed()
        logging.basicConfig(filename=folder / "log", level=logging.INFO, format=LOG_FORMAT, force=True)
        status = _serve(settings, door) if name == "api" else _work(settings, name, model)
    except BaseException:
        logging.getLogger(name).exception("died")
    finally:
        os._exit(status)


def _serve(settings: Settings, door: socket.socket) -> int:
    asyncio.run(safelight.app.serve_api(settings, door))
    return 0


def _work(settings: Settings, name: str, model: Callable[[], FakeModel]) -> int:
    draw_with(model)
    asyncio.run(safelight.app.run_worker(settings, name))
    return 0


def draw_with(model: Callable[[], FakeModel]) -> None:
    """Have workers of this process draw with a model that needs no weights."""
    # The API's process loads neither of these.
    from safelight.engine.host import EngineHost

    def engine_for(settings: Settings, device: str) -> EngineHost:
        return EngineHost(settings.engine, load=lambda folder: model())

    safelight.app.engine_for = engine_for
    safelight.app.weights_finder = lambda settings: Path


def main(name: str, settings: str, folder: str, door: str) -> NoReturn:
    be(name, parse_settings(settings), Path(folder), socket.socket(fileno=int(door)), model=quick_model)


if __name__ == "__main__":
    if sys.argv[1] == "worker":
        draw_with(slow_model)
        sys.exit(safelight.app.main(sys.argv[1:]))
    main(*sys.argv[1:])
