"""Clients that ask again until they are told that their run was taken, and a webhook endpoint that behaves badly."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import socket
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

import httpx2

from tests.webhooks.receiver import (
    Arrived,
    Behaviour,
    answers,
    breaks_off_after_the_status,
    drips,
    hangs_up,
    read_request,
    resets,
)

from .crew import FORK, Crew, die_with_parent

BAD: tuple[Behaviour, ...] = (answers(500), answers(503), drips, resets, hangs_up, breaks_off_after_the_status)
BAD_SHARE = 0.2
RETRY_SECONDS = 0.1


def prompt_of(number: int) -> str:
    return f"picture number {number}"


def body_of(number: int, webhook: str | None) -> dict[str, object]:
    small: dict[str, object] = {"height": 64, "width": 64, "num_inference_steps": 5, "guidance_scale": 1.0}
    told = {} if webhook is None else {"webhook_endpoint": webhook}
    return small | told | {"prompt": prompt_of(number), "seed": number}


@dataclass(frozen=True, slots=True)
class Accepted:
    """A 2xx that a client saw."""

    number: int
    run_id: str


class Ledger:
    """A file that several processes append to, one write for each line."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.touch()
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND)

    def note(self, *words: object) -> None:
        os.write(self._file, (" ".join(map(str, words)) + "\n").encode())

    def lines(self) -> Iterator[list[str]]:
        for line in self._path.read_text().splitlines():
            yield line.split()

    def __len__(self) -> int:
        return self._path.read_bytes().count(b"\n")


def start_clients(
    crew: Crew,
    key: str,
    ledger: Ledger,
    numbers: Callable[[int], Iterable[int]],
    *,
    num_clients: int,
    webhook: str | None,
    pause_seconds: float = 0.0,
) -> BaseProcess:
    """A process with clients; client n asks for `numbers(n)`, one after the other."""

    def ask() -> None:
        die_with_parent()
        asyncio.run(_clients(crew.url, key, ledger, numbers, num_clients, webhook, pause_seconds))

    process = FORK.Process(target=ask)
    process.start()
    return process


async def _clients(
    url: str,
    key: str,
    ledger: Ledger,
    numbers: Callable[[int], Iterable[int]],
    num_clients: int,
    webhook: str | None,
    pause_seconds: float,
) -> None:
    limits = httpx2.Limits(max_connections=num_clients, max_keepalive_connections=num_clients)
    async with httpx2.AsyncClient(base_url=url, limits=limits, timeout=30, trust_env=False) as client:

        async def ask_all(which: int) -> None:
            for number in numbers(which):
                ledger.note(number, await submit(client, key, number, webhook))
                await asyncio.sleep(pause_seconds)

        await asyncio.gather(*(ask_all(which) for which in range(num_clients)))


async def submit(client: httpx2.AsyncClient, key: str, number: int, webhook: str | None) -> str:
    """Ask until a 2xx is seen. The run's id."""
    headers = {"Authorization": key, "Idempotency-Key": f"key-{number}", "Prefer": "respond-async"}
    while True:
        try:
            answer = await client.post("/pinhole/predict", json=body_of(number, webhook), headers=headers)
        except httpx2.TransportError:
            await asyncio.sleep(RETRY_SECONDS)
            continue
        if answer.is_success:
            return str(answer.json()["run_id"])
        assert answer.status_code in (429, 503, 507), answer.text
        await asyncio.sleep(RETRY_SECONDS * (1 + random.random()))


class Endpoint:
    """A webhook endpoint in a process of its own. Every whole request is a line: the id and a digest of its body."""

    def __init__(self, ledger: Ledger, *, bad_share: float = BAD_SHARE) -> None:
        self._ledger = ledger
        self._bad_share = bad_share
        self._door = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.url = f"http://127.0.0.1:{self._door.getsockname()[1]}/hook"
        self._process = FORK.Process(target=self._be, daemon=True)
        self._process.start()

    def close(self) -> None:
        self._process.kill()
        self._process.join()
        self._door.close()

    def _be(self) -> None:
        die_with_parent()
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._receive, sock=self._door)
        await server.serve_forever()

    async def _receive(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            request = await read_request(reader)
            self._note(request)
            behave = random.choice(BAD) if random.random() < self._bad_share else answers(200)
            async with asyncio.timeout(5):
                await behave(writer, request)
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    def _note(self, request: Arrived) -> None:
        self._ledger.note(request.headers["webhook-id"], hashlib.sha256(request.body).hexdigest())
