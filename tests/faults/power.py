"""Promise 3: what was answered survives power loss, whichever journal SQLite keeps. `python -m tests.faults.power
JOURNAL FOLDER ANSWERS RUNS` is what is cut off."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import sys
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError

from safelight.errors import SafelightError
from safelight.keys import Scope
from safelight.runs import Claim, ImageRecord, NewRun, Outcome, OutputFormat, RunParams, RunStatus
from safelight.store import Store, database
from safelight.store.sqlite import sqlite3

from .disk import Call, Disk, read_log, record
from .figures import Figure, check

NUM_LANES = 3
JOURNALS = ("WAL", "TRUNCATE")
"""The write-ahead log, and the rollback journal of SQLite versions whose log is not sound."""

DONE = Outcome(status=RunStatus.SUCCEEDED, run_time_ms=1.0)


def power_cuts(folder: Path, *, num_cuts: int, num_runs: int) -> Figure:
    """Half of the cuts for each journal that SQLite may keep."""
    told, faults = list[str](), list[str]()
    for journal in JOURNALS:
        place = folder / journal
        place.mkdir()
        with keeping(journal):
            faults += _cut(place, journal, num_cuts // len(JOURNALS), num_runs, told)
    figure = f"{'; '.join(told)}: {len(faults)} lost, corrupt or short"
    return Figure("3", f"simulated power cuts on SQLite {sqlite3.sqlite_version} and the pictures", figure, faults)


@contextmanager
def keeping(journal: str) -> Iterator[None]:
    """Stores that are opened within keep this journal, whichever SQLite there is: one of them is meant for older
    ones."""
    before = database.HAS_SOUND_WAL
    database.HAS_SOUND_WAL = journal == "WAL"
    try:
        yield
    finally:
        database.HAS_SOUND_WAL = before


def _cut(folder: Path, journal: str, num_cuts: int, num_runs: int, told: list[str]) -> list[str]:
    """Record a store at work, then cut its power at `num_cuts` moments. What was wrong afterwards."""
    data, log, answers = folder / "data", folder / "calls", folder / "answers"
    record([sys.executable, "-m", "tests.faults.power", journal, str(data), str(answers), str(num_runs)], log)
    calls = list(read_log(log))
    moments = _moments(calls, num_cuts, rng := random.Random(7))
    disk, answered, faults, num_lost_claims = Disk(data), list[list[str]](), list[str](), 0
    for number, call in enumerate(calls):
        disk.take(call)
        if call.paths == (str(answers),) and call.name == "write":
            answered.append(call.data.decode().split())
        for _ in range(moments[number]):
            left = folder / "left"
            disk.cut(rng, left)
            found = asyncio.run(_look(left, journal, answered))
            faults += [f"{journal}: {fault}" for fault in found.faults]
            num_lost_claims += found.num_lost_claims
            _remove(left)
    # Only what is in a log may wait for its sync: another journal that does may leave the file damaged for good.
    faults += check(journal == "WAL" or num_lost_claims == 0, f"{journal}: {num_lost_claims} claims forgotten")
    told.append(
        f"{num_cuts} cuts with journal {journal} in {len(calls)} calls, {len(answered)} answers,"
        f" {num_lost_claims} claims forgotten and made again"
    )
    return faults


def _moments(calls: list[Call], num_cuts: int, rng: random.Random) -> Counter[int]:
    """After which calls the power goes, and how often. A tenth of them where a claim may not be synced yet: a moment
    that chance alone hardly meets."""
    claimed = [number for number, call in enumerate(calls) if call.data.startswith(b"claimed") and call.name == "write"]
    num_claimed = num_cuts // 10
    return Counter(rng.choices(range(len(calls)), k=num_cuts - num_claimed) + rng.choices(claimed, k=num_claimed))


@dataclass(frozen=True, slots=True)
class Found:
    """After one cut. A claim that was in a log may be forgotten, by design: nobody outside the store relies on it."""

    faults: list[str]
    num_lost_claims: int = 0


async def _look(left: Path, journal: str, answered: list[list[str]]) -> Found:
    """What is wrong with what is left."""
    try:
        async with await Store.open(left) as store:
            with sqlite3.connect(left / "safelight.db") as connection:
                verdict, *_ = [text for (text,) in connection.execute("PRAGMA integrity_check")]
                [(kept,)] = connection.execute("PRAGMA journal_mode")
            faults, num_lost_claims = [] if verdict == "ok" else [f"corrupt: {verdict}"], 0
            # A rollback journal is a connection's own choice; only the log is the file's.
            faults += check((kept == "wal") == (journal == "WAL"), f"its journal is {kept}")
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
    with keeping(sys.argv[1]):
        asyncio.run(work(Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])))
