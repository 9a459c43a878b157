"""The composition root: settings -> store, api, worker, deliverer. The one file that knows everyone.

`python -m safelight.app api FD` and `python -m safelight.app worker DEVICE [ID]` are the two processes of a server;
both read their settings as one line of JSON from standard input, and stop when it closes.
"""

# ruff: noqa: PLC0415 - the API process must not import torch, nor the worker FastAPI: each builder imports its own.

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import platform
import signal
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from functools import partial
from typing import TYPE_CHECKING

from safelight.catalog_file import weights_finder
from safelight.config import Settings, parse_settings
from safelight.garbage import collect_from_here
from safelight.logs import configure_logging
from safelight.store import Store
from safelight.tracing import OFF, Tracing, open_tracing

if TYPE_CHECKING:
    from safelight.engine.host import EngineHost

log = logging.getLogger("safelight.app")

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)

_ORPHAN_SECONDS = 0.5

MAX_PROGRESS_SECONDS = 0.1
"""How seldom an engine may tell of its steps: a bar that follows them looks smooth."""

TOLD_PER_WRITTEN = 5
"""How often it tells for each time that progress is written, so that what is written is nearly new."""

HUNG_EXIT_STATUS = 75
"""EX_TEMPFAIL: the engine hung and the worker wants to be started anew."""


async def open_store(settings: Settings, *, tracing: Tracing = OFF) -> Store:
    """The store of these settings, its schema brought up to date."""
    url = settings.store.database_url
    return await Store.open(
        settings.data,
        database_url=url.get_secret_value() if url else None,
        images_url=settings.store.images_url,
        images_endpoint=settings.store.images_endpoint,
        tracing=tracing,
    )


def engine_for(settings: Settings, device: str) -> EngineHost:
    """An engine on `device`, not yet started."""
    from safelight.engine.host import EngineHost

    return EngineHost(
        settings.engine,
        device=device,
        checkpoint_seconds=settings.worker.checkpoint_seconds,
        progress_seconds=min(MAX_PROGRESS_SECONDS, settings.worker.progress_seconds / TOLD_PER_WRITTEN),
    )


async def serve_api(settings: Settings, door: socket.socket, *, tracing: Tracing = OFF) -> None:
    """Answer on `door` until told to stop; deliver webhooks and tidy up beside it."""
    from safelight.api.app import create_app
    from safelight.api.dashboard import build_desk
    from safelight.api.metering import Meter
    from safelight.api.server import make_server
    from safelight.api.service import Service
    from safelight.janitor import Janitor
    from safelight.webhooks.deliverer import Deliverer
    from safelight.webhooks.targets import TargetPolicy

    async with await open_store(settings, tracing=tracing) as store:
        policy = TargetPolicy(settings.webhooks.allowed_networks)
        service = Service(store, settings.server, check_webhook=policy.check_url, tracing=tracing)
        meter = Meter()
        desk = build_desk(store, service, settings)
        app = create_app(service, settings.server, desk=desk, meter=meter, tracing=tracing)
        server = make_server(app, service, settings.server)
        stop = _in_stages(service.refuse_new_runs, partial(setattr, server, "should_exit", True))
        # uvicorn would take the first signal for the end.
        server.capture_signals = partial(_signals_to, stop)  # type: ignore[method-assign]
        deliverer = Deliverer(
            store, settings.webhooks, policy=policy, count_attempt=meter.count_attempt, tracing=tracing
        )
        janitor = Janitor(store, settings.store, settings.worker)
        collect_from_here()
        async with _beside(deliverer.run(), janitor.run()):
            await server.serve(sockets=[door])


async def run_worker(settings: Settings, device: str, *, worker_id: str | None = None, tracing: Tracing = OFF) -> None:
    """Work on `device` until told to stop. `worker_id` is the same after every start; unset: machine and device."""
    from safelight.janitor import Janitor
    from safelight.worker import EngineHung, Worker

    async with await open_store(settings, tracing=tracing) as store:
        engine = engine_for(settings, device)
        worker = Worker(
            store,
            engine,
            settings.worker,
            worker_id=worker_id or f"{platform.node()}/{device}",
            find_weights=weights_finder(settings),
            tracing=tracing,
        )
        janitor = Janitor(store, settings.store, settings.worker)
        with _signals_to(worker.stop):
            async with _beside(janitor.run_beside_worker()):
                try:
                    await worker.run()
                except EngineHung as error:
                    log.critical("the engine hung", extra={"reason": str(error)})
                    # A device call that hangs cannot be joined, on whichever thread: leave without waiting for any.
                    os._exit(HUNG_EXIT_STATUS)
        await engine.close()


@contextlib.contextmanager
def _signals_to(action: Callable[[], None]) -> Iterator[None]:
    """SIGTERM and SIGINT call `action` on the running event loop."""
    loop = asyncio.get_running_loop()
    for number in _STOP_SIGNALS:
        loop.add_signal_handler(number, action)
    try:
        yield
    finally:
        for number in _STOP_SIGNALS:
            loop.remove_signal_handler(number)


def _in_stages(first: Callable[[], None], second: Callable[[], None]) -> Callable[[], None]:
    """An action that does `first` the first time it is called, `second` from then on."""
    stages = iter((first,))

    def advance() -> None:
        action = next(stages, second)
        action()

    return advance


@contextlib.asynccontextmanager
async def _beside(*work: Coroutine[object, object, None]) -> AsyncIterator[None]:
    """Run `work` in the background of the block; a crash there is logged, and ends this process for a fresh one."""
    tasks = [asyncio.create_task(each) for each in work]
    for task in tasks:
        task.add_done_callback(_die_with)
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _die_with(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        log.critical("a background task died", exc_info=task.exception())
        os._exit(1)


def _stop_when_orphaned() -> None:
    """Standard input ends when the supervisor dies: stop as if it had asked to, and asked again."""
    sys.stdin.read()
    while True:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_ORPHAN_SECONDS)


def _import_api() -> None:
    """What the API process will need anyway, and takes long."""
    import safelight.api.app
    import safelight.api.server
    import safelight.webhooks.deliverer  # noqa: F401


def main(arguments: list[str]) -> int:
    """Entry of a child process."""
    # Until `collect_from_here`: to look through what is imported again and again took a sixth of the time to a worker's
    # first step.
    gc.disable()
    role, what, *name = arguments
    if role == "api":
        # Whoever started this prepares the data folder meanwhile.
        _import_api()
    if not (line := sys.stdin.readline()):
        return 0
    settings = parse_settings(line)
    configure_logging(settings.log, process=role if role == "api" else f"worker {what}")
    threading.Thread(target=_stop_when_orphaned, daemon=True).start()
    with contextlib.closing(open_tracing(settings.tracing, process=role)) as tracing:
        if role == "api":
            asyncio.run(serve_api(settings, socket.socket(fileno=int(what)), tracing=tracing))
            return 0
        asyncio.run(run_worker(settings, what, worker_id=name[0] if name else None, tracing=tracing))
        return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
