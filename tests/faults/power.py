"""Promise 3: what was answered survives power loss. `python -m tests.faults.power FOLDER ANSWERS RUNS`
is what is cut off."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import sys
import uuid
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError

from safelight.errors import SafelightError
from safelight.keys import Scope
from safelight.runs import Claim, ImageRecord, NewRun, Outcome, OutputFormat, RunParams, RunStatus
from safelight.store import Store
from safelight.store.sqlite import sqlite3

from .disk import Disk, read_log, record
from .figures import Figure

NUM_LANES = 3
DONE = Outcome(status=RunStatus.SUCCEEDED, run_time_ms=1.0)


def power_cuts(folder: Path, *, num_cuts: int, num_runs: int) -> Figure:
    """Record a store at work, then cut its power at `num_cuts` moments."""
    data, log, answers = folder / "data", folder / "calls", folder / "answers"
    record([sys.executable, "-m", "tests.faults.power", str(data), str(answers), str(num_runs)], log)
    calls = list(read_log(log))
    rng = random.Random(7)
    claimed = [number for number, call in enumerate(calls) if call.data.startswith(b"claimed") and call.name == "write"]
    # A tenth of them where a claim may not be synced yet: a moment that chance alone hardly meets.
    moments = sorted(
        rng.choices(range(len(calls)), k=num_cuts - num_cuts // 10) + rng.choices(claimed, k=num_cuts // 10)
    )
    disk, answered, faults, num_lost_claims = Disk(data), list[list[str]](), list[str](), 0
    for number, call in enumerate(calls):
        disk.take(call)
        if call.paths == (str(answers),) and call.name == "write":
            answered.append(call.data.decode().split())
        while moments and moments[0] == number:
            moments.pop(0)
            left = folder / "left"
            disk.cut(rng, left)
            found = asyncio.run(_look(left, answered))
            faults += found.faults
            num_lost_claims += found.num_lost_claims
            _remove(left)
    figure = (
        f"{num_cuts} cuts in {len(calls)} calls, {len(answered)} answers: {len(faults)} lost, corrupt or short;"
        f" {num_lost_claims} claims forgotten and made again"
    )
    return Figure("3", f"simulated power cuts on SQLite {sqlite3.sqlite_version} and the pictures", figure, faults)


@dataclass(frozen=True, slots=True)
class Found:
    """After one cut. A claim may be forgotten, by design: nobody outside the store relies on it."""

    faults: list[str]
    num_lost_claims: int = 0


async def _look(left: Path, answered: list[list[str]]) -> Found:
    """What is wrong with what is left."""
    try:
        async with await Store.open(left) as store:
            with sqlite3.connect(left / "safelight.db") as database:
                [(verdict,)] = database.execute("PRAGMA integrity_check")
            faults, num_lost_claims = [] if verdict == "ok" else [f"corrupt: {verdict}"], 0
            for what, name, *more in answered:
                if what == "key":
                    await store.keys.authenticate(name)
                    continue
                run = await store.runs.get(name)
                if what == "claimed":
                    num_lost_claims += run.fence < int(more[0])
                if what == "ended" and run.status is not RunStatus.SUCCEEDED:
                    faults.append(f"{name} is {run.status.value} again")
                for image in run.images:
                    if hashlib.sha256(await store.images.read(image.path)).hexdigest() != image.sha256:
                        faults.append(f"{name} has a short picture")
                if what == "ended" and [image.sha256 for image in run.images] != more:
                    faults.append(f"{name} has no picture")
            faults += await _go_on(store, {name for what, name, *_ in answered if what == "accepted"})
            return Found(faults, num_lost_claims)
    except (SafelightError, SQLAlchemyError, sqlite3.Error) as error:
        return Found([f"{type(error).__name__}: {error}"])


async def _go_on(store: Store, accepted: set[str]) -> list[str]:
    """Draw what has not ended; which of the runs that were accepted that does not end."""
    await store.runs.requeue_lost(max_attempts=100, worker_id="w")
    drawn = {}
    while claims := await store.runs.claim("w", limit=1, lease_seconds=600):
        drawn[claims[0].run.id] = await draw(store, claims[0])
    faults = []
    for run_id in accepted | drawn.keys():
        run = await store.runs.get(run_id)
        read = [hashlib.sha256(await store.images.read(image.path)).hexdigest() for image in run.images]
        if run.status is not RunStatus.SUCCEEDED or read != [drawn.get(run_id, run.images[0].sha256)]:
            faults.append(f"{run_id} cannot be drawn to its end")
    return faults


async def draw(store: Store, claim: Claim) -> str:
    """End a run with a picture of chance, or with the one that it has. The digest of it."""
    if not claim.run.images:
        picture = os.urandom(random.randint(100, 20_000))
        kept = await store.images.write(claim.run.id, 0, claim.fence, OutputFormat.PNG, picture)
        image = ImageRecord(
            index=0,
            seed=0,
            output_format=OutputFormat.PNG,
            path=kept.path,
            num_bytes=kept.num_bytes,
            sha256=kept.sha256,
        )
        await store.runs.add_image(claim, image)
    else:
        [image] = claim.run.images
    await store.runs.finish(claim, DONE)
    return image.sha256


def _remove(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    folder.rmdir()


async def work(data: Path, answers: Path, num_runs: int) -> None:
    """A store as a server uses it; each line of `answers` is something that a caller was told."""
    told = os.open(answers, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def tell(*words: str) -> None:
        os.write(told, " ".join(words).encode())

    async with await Store.open(data) as store:
        _, secret = await store.keys.create("first", scopes=frozenset({Scope.PREDICT}))
        tell("key", secret)

        async def lane() -> None:
            for _ in range(num_runs // NUM_LANES):
                new = NewRun(
                    id=str(uuid.uuid4()),
                    project="p",
                    key_id=None,
                    deployment="d",
                    deployment_version=1,
                    params=RunParams(prompt="a" * random.randint(1, 5000)),
                )
                await store.runs.create(new, max_queued=1000)
                tell("accepted", new.id)
                for claim in await store.runs.claim("w", limit=1, lease_seconds=600):
                    tell("claimed", claim.run.id, str(claim.fence))
                    if random.random() < 0.5:
                        await store.images.prepare(claim.run.id)
                    tell("ended", claim.run.id, await draw(store, claim))

        await asyncio.gather(*(lane() for _ in range(NUM_LANES)))


if __name__ == "__main__":
    asyncio.run(work(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])))
