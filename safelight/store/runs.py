"""Runs: the only queue there is. Every public method is one transaction, and the hints that go with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from safelight.errors import Conflict, NotFound
from safelight.metrics import EngineFigures
from safelight.runs import (
    Claim,
    ImageRecord,
    NewRun,
    Outcome,
    Progress,
    Pulse,
    Run,
    RunInput,
    RunStatus,
)
from safelight.store import claims, deliveries, inputs, ledger, queueing, retention
from safelight.store.cursors import cursor_at, read_cursor
from safelight.store.database import Database
from safelight.store.images import Images
from safelight.store.late import add_hint
from safelight.store.queueing import Backlog
from safelight.store.rows import run_from
from safelight.store.schema import IS_QUEUED, IS_RUNNING, images, runs
from safelight.store.writer import RowLock

ANY_ATTEMPTS = 2**31 - 1
ANY_PRIORITY = -1
"""Below the lowest."""

LOCK = sa.select(runs).where(claims.IS_THIS).with_for_update()

Found = TypeVar("Found", Run, sa.Row[Any])


class Runs:
    """All runs of all projects. Where a method takes `project`, runs of others do not exist; None sees all."""

    def __init__(self, database: Database, kept_images: Images) -> None:
        self._database = database
        self._images = kept_images
        self._families = ledger.Families(database)

    async def create(self, new: NewRun, *, max_queued: int) -> tuple[Run, bool]:
        """Queue a run; or find the one its idempotency key made before, which gives False. One transaction, and a look
        before it at an API key that is new here.

        Raises IdempotencyMismatch when that key came with another body, Overloaded when `max_queued` wait already,
        InvalidFields or DeadlineUnreachable when it cannot be done by its deadline.
        """
        family = "" if new.key_id is None else await self._families.origin_of(new.key_id)
        # Another process may be making the run of the same idempotency key.
        first = ("keys", family, new.idempotency_key or "")
        return await self._database.write_locking(first, queueing.create, new, max_queued=max_queued)

    async def made_by(self, project: str, idempotency_key: str, body_digest: str | None) -> Run | None:
        """The run that this key made before. Raises IdempotencyMismatch when it came with another body.
        One transaction."""
        return await self._database.read(queueing.made_by, project, idempotency_key, body_digest)

    async def get(self, run_id: str, *, project: str | None = None) -> Run:
        """One run. Raises NotFound. One transaction."""
        return await self._database.read(_get, run_id, project)

    async def look_again(self, run_id: str) -> Run:
        """`get` of a run that has just changed. Raises NotFound. One transaction."""
        return await self._database.glance(_get, run_id, None)

    async def inputs(self, run_id: str) -> tuple[RunInput, ...]:
        """The pictures that a run begins from. One transaction."""
        return await self._database.read(inputs.of_run, run_id)

    async def queue_position(self, run_id: str) -> int | None:
        """How many runs are claimed before this one; None when it is not queued. One transaction."""
        return await self._database.read(queueing.position, run_id)

    async def backlog(self) -> Backlog:
        """How much waits, and for how long judging by the last runs. One transaction."""
        return await self._database.read(queueing.backlog)

    async def claim(
        self,
        worker_id: str,
        *,
        limit: int,
        lease_seconds: float,
        crowded: Sequence[str] = (),
        attempts_below: int = ANY_ATTEMPTS,
        above_priority: int = ANY_PRIORITY,
    ) -> list[Claim]:
        """Take the runs that have waited longest, at most `limit`, each with a higher fence. One transaction.

        Higher priorities come first. Of one priority those of the API keys in `crowded` (`""`: of none) come after all
        others, key by key. Of these first ones, those with `attempts_below` or more, and those not `above_priority`,
        stay where they are, and nobody overtakes them.
        """
        return await self._database.write_unsynced(
            claims.claim,
            worker_id,
            limit=limit,
            lease_seconds=lease_seconds,
            crowded=tuple(crowded),
            attempts_below=attempts_below,
            above_priority=above_priority,
        )

    async def pulse(
        self,
        worker_id: str,
        progress: Sequence[Progress],
        *,
        lease_seconds: float,
        renew: bool,
        figures: EngineFigures | None = None,
    ) -> Pulse:
        """Write the progress of a worker's runs, and renew their leases and its placements if `renew`. One transaction.

        `figures` are kept for whoever watches the server.
        """
        if not progress and not renew and figures is None:
            return Pulse()
        # In the order in which cancels lock them.
        progress = sorted(progress, key=lambda report: report.run_id)
        return await self._database.write_unsynced(
            claims.pulse, worker_id, progress, lease_seconds=lease_seconds, renew=renew, figures=figures
        )

    async def add_image(self, claim: Claim, image: ImageRecord) -> None:
        """Name a picture that was durably written. Raises LostClaim. One transaction."""
        await self._database.write_locking(_row_of(claim.run.id), claims.add_image, claim, image)

    async def finish(self, claim: Claim, outcome: Outcome) -> None:
        """End a claimed run, with its last pictures, its events and its deliveries. Raises LostClaim.
        One transaction."""
        assert outcome.status.has_ended, "an outcome is an end"
        await self._database.write_locking(_row_of(claim.run.id), claims.finish, claim, outcome)

    async def release(self, claim: Claim) -> None:
        """Give a run back unfinished, at no cost to its attempts; end it if it was cancelled. Raises LostClaim.
        One transaction."""
        await self._database.write_locking(_row_of(claim.run.id), claims.release, claim)

    async def cancel(self, run_id: str, *, project: str | None = None) -> Run:
        """End a queued run, or ask the worker of a running one to stop; an ended run stays. Raises NotFound.
        One transaction."""
        return await self._database.write_locking(_row_of(run_id), _cancel, run_id, project)

    async def requeue_lost(self, *, max_attempts: int, worker_id: str | None = None) -> list[Run]:
        """Queue again the runs whose lease ran out; end those cancelled meanwhile or out of attempts. One transaction.

        With `worker_id` that worker's runs count as lost too: only its own successor may say so.
        """
        return await self._database.write(claims.requeue_lost, max_attempts=max_attempts, worker_id=worker_id)

    async def end_overdue(self) -> list[Run]:
        """End the queued runs whose deadline has passed. One transaction."""
        return await self._database.write(claims.end_overdue)

    async def delete(self, run_id: str, *, project: str | None = None) -> None:
        """Forget a run and its images; what is on its way to webhooks ends. Raises NotFound, Conflict while it runs.
        One transaction."""
        paths = await self._database.write_locking(_row_of(run_id), _delete, run_id, project)
        await self._images.remove(paths)

    async def prune(self, *, older_than_seconds: float) -> int:
        """Forget runs that ended that long ago and have told their webhook. One transaction per batch."""
        num_pruned = 0
        while True:
            num_runs, paths = await self._database.write(retention.expire_runs, older_than_seconds)
            await self._images.remove(paths)
            num_pruned += num_runs
            if num_runs < retention.PRUNE_BATCH:
                break
        while await self._database.write(ledger.merge_days) == ledger.MERGE_BATCH:
            pass
        return num_pruned

    async def unfinished(self) -> frozenset[str]:
        """The ids of all runs that are queued or running. One transaction."""
        return await self._database.read(_unfinished)

    async def image_paths(self, shelf: str) -> frozenset[str]:
        """The paths of all pictures on a shelf of `Images`. One transaction."""
        return await self._database.read(_image_paths, shelf)

    async def list(
        self,
        *,
        project: str | None = None,
        deployment: str | None = None,
        status: RunStatus | None = None,
        created_after: float | None = None,
        created_before: float | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> tuple[list[Run], str | None]:
        """A page of runs, newest first, and the cursor of the next. Raises InvalidFields. One transaction."""
        query = sa.select(runs).order_by(runs.c.created_at.desc(), runs.c.number.desc())
        for column, wanted in ((runs.c.project, project), (runs.c.deployment, deployment), (runs.c.status, status)):
            if wanted is not None:
                query = query.where(column == wanted)
        if created_after is not None:
            query = query.where(runs.c.created_at > created_after)
        if created_before is not None:
            query = query.where(runs.c.created_at < created_before)
        if cursor is not None:
            query = query.where(sa.tuple_(runs.c.created_at, runs.c.number) < sa.tuple_(*read_cursor(cursor)))
        return await self._database.read(_list, query, limit)


def _row_of(run_id: str) -> RowLock:
    return "runs", run_id


def _get(connection: Connection, run_id: str, project: str | None) -> Run:
    return _visible(claims.find(connection, run_id), project)


def _lock(connection: Connection, run_id: str, project: str | None) -> sa.Row[Any]:
    """The row of a run. Raises NotFound."""
    return _visible(connection.execute(LOCK, {"this_id": run_id}).first(), project)


def _visible(found: Found | None, project: str | None) -> Found:
    """What was found, where `project` may see it. Raises NotFound."""
    if found is None or project not in {None, found.project}:
        raise NotFound("there is no such run; it may have expired", code="run_not_found")
    return found


def _list(connection: Connection, query: sa.Select[Any], limit: int) -> tuple[list[Run], str | None]:
    # One more than asked for tells whether there is a next page.
    found = connection.execute(query.limit(limit + 1)).all()
    page = found[:limit]
    drawn = claims.images_of(connection, [row.id for row in page])
    is_more = len(found) > limit > 0
    return [run_from(row, drawn.get(row.id, ())) for row in page], cursor_at(page[-1]) if is_more else None


def _cancel(connection: Connection, run_id: str, project: str | None) -> Run:
    row = _lock(connection, run_id, project)
    if row.status == RunStatus.QUEUED:
        return claims.cancel_queued(connection, row)
    if row.status == RunStatus.RUNNING:
        ask = sa.update(runs).where(runs.c.number == row.number).values(is_cancel_requested=True)
        row = connection.execute(ask.returning(*runs.c)).one()
        add_hint(connection, "cancel", claims.topic_of(run_id))
    return claims.with_images(connection, row)


def _delete(connection: Connection, run_id: str, project: str | None) -> list[str]:
    row = _lock(connection, run_id, project)
    if row.status == RunStatus.RUNNING:
        raise Conflict("the run is being drawn; cancel it first, then delete it", run_id=run_id)
    deliveries.end_with_run(connection, [run_id])
    claims.add_end_hint(connection, run_id)
    return retention.forget(connection, [run_id])


def _unfinished(connection: Connection) -> frozenset[str]:
    # Two questions: one with OR would not use the index that each has.
    found = [connection.execute(sa.select(runs.c.id).where(each)).scalars() for each in (IS_QUEUED, IS_RUNNING)]
    return frozenset(run_id for ids in found for run_id in ids)


def _image_paths(connection: Connection, shelf: str) -> frozenset[str]:
    after_shelf = shelf[:-1] + chr(ord(shelf[-1]) + 1)
    is_on_shelf = sa.and_(images.c.run_id >= shelf, images.c.run_id < after_shelf)
    kept = sa.select(images.c.path).join(runs, runs.c.id == images.c.run_id)
    on_shelf = kept.where(is_on_shelf, runs.c.images_expired_at.is_(None))
    return frozenset(connection.execute(on_shelf).scalars()) | inputs.paths_between(connection, shelf, after_shelf)
