"""What goes when: runs by age, images by a budget of bytes, the log of deliveries by age. Nothing that
is still to be told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from safelight.store import inputs, ledger, schema
from safelight.store.database import Database, now
from safelight.store.images import Images
from safelight.store.schema import HAS_ENDED, deliveries, images, runs

PRUNE_BATCH = 200
"""Rows of runs or deliveries removed in one transaction: other writers wait for it."""

IS_WAITED_FOR = sa.exists().where(deliveries.c.run_id == runs.c.id, deliveries.c.status == "pending")
HAS_IMAGES = runs.c.images_expired_at.is_(None)
FILES = sa.union_all(
    *(sa.select(table.c.run_id, table.c.num_bytes) for table in (images, schema.inputs)),
).subquery("files")
"""The pictures that were drawn, and those that runs began from."""

NUM_BYTES = sa.cast(sa.func.coalesce(sa.func.sum(FILES.c.num_bytes), 0), sa.BigInteger)
KEPT_BYTES = sa.select(NUM_BYTES).join(runs, runs.c.id == FILES.c.run_id).where(HAS_IMAGES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Expiry:
    """What goes, or would go. Images of runs that go as a whole are counted with them."""

    num_runs: int = 0
    run_bytes: int = 0
    num_runs_without_images: int = 0
    image_bytes: int = 0
    num_deliveries: int = 0
    bytes_over_budget: int = 0


class Retention:
    """Lets images and logs expire. Runs expire through `Runs.prune`."""

    def __init__(self, database: Database, kept_images: Images) -> None:
        self._database = database
        self._images = kept_images

    async def expire_images(self, *, max_bytes: int) -> Expiry:
        """Remove the images of the runs that ended first until all images fit; the runs stay. They are counted once,
        by a read, since counting takes long where there are many; one short transaction per batch.

        Runs that have not ended, or that a webhook is still to be told of, keep theirs:
        `bytes_over_budget` may be left.
        """
        over = await self._database.read(_bytes_over, max_bytes)
        num_runs = num_bytes = 0
        while num_bytes < over:
            sizes = await self._database.read(_oldest, _with_images().limit(PRUNE_BATCH), over - num_bytes)
            gone, paths = await self._database.write(_expire_images, list(sizes))
            await self._images.remove(paths)
            num_runs, num_bytes = num_runs + len(gone), num_bytes + sum(sizes[run_id] for run_id in gone)
            if not gone:
                break
        over = max(0, over - num_bytes)
        return Expiry(num_runs_without_images=num_runs, image_bytes=num_bytes, bytes_over_budget=over)

    async def expire_deliveries(self, *, older_than_seconds: float) -> int:
        """Forget deliveries that old whose run is gone and that are not on their way. One transaction per batch."""
        num_expired = 0
        while True:
            batch = await self._database.write(_expire_deliveries, older_than_seconds)
            num_expired += batch
            if batch < PRUNE_BATCH:
                return num_expired

    async def preview(self, *, older_than_seconds: float, max_bytes: int | None) -> Expiry:
        """What would go now, and nothing goes. One transaction."""
        return await self._database.read(_preview, older_than_seconds, max_bytes)


def expire_runs(connection: Connection, older_than_seconds: float) -> tuple[int, list[str]]:
    """Forget a batch of expired runs with their deliveries. How many, and the paths of their pictures."""
    expired = sa.select(runs.c.id).where(*_has_expired(older_than_seconds)).order_by(runs.c.ended_at).limit(PRUNE_BATCH)
    # Locked, so that two doors do not both settle what a run has used.
    run_ids = list(connection.execute(expired.with_for_update(skip_locked=True)).scalars())
    if run_ids:
        connection.execute(sa.delete(deliveries).where(deliveries.c.run_id.in_(run_ids)))
    return len(run_ids), forget(connection, run_ids)


def forget(connection: Connection, run_ids: Sequence[str]) -> list[str]:
    """Delete runs with all rows that belong to them, but not the log of deliveries. The paths of their pictures."""
    if not run_ids:
        return []
    ledger.settle(connection, run_ids)
    paths = list(connection.execute(sa.select(images.c.path).where(images.c.run_id.in_(run_ids))).scalars())
    paths += inputs.paths_of(connection, run_ids)
    connection.execute(sa.delete(runs).where(runs.c.id.in_(run_ids)))
    return paths


def _has_expired(older_than_seconds: float) -> tuple[sa.ColumnElement[bool] | sa.TextClause, ...]:
    return HAS_ENDED, runs.c.ended_at < now() - older_than_seconds, ~IS_WAITED_FOR


def _with_images() -> sa.Select[tuple[str, int]]:
    """Runs whose images may go, the first that ended first, with the bytes of each."""
    return (
        sa.select(runs.c.id, NUM_BYTES.label("num_bytes"))
        .join(FILES, FILES.c.run_id == runs.c.id)
        .where(HAS_ENDED, HAS_IMAGES, ~IS_WAITED_FOR)
        .group_by(runs.c.id, runs.c.ended_at, runs.c.number)
        .order_by(runs.c.ended_at, runs.c.number)
    )


def _bytes_over(connection: Connection, max_bytes: int) -> int:
    num_bytes: int = connection.execute(KEPT_BYTES).scalar_one()
    return num_bytes - max_bytes


def _expire_images(connection: Connection, run_ids: Sequence[str]) -> tuple[list[str], list[str]]:
    """Which of these runs may still lose their images and now have, and the paths of those."""
    may_go = (runs.c.id.in_(run_ids), HAS_IMAGES, ~IS_WAITED_FOR)
    gone = sa.update(runs).where(*may_go).values(images_expired_at=now()).returning(runs.c.id)
    gone_ids = list(connection.execute(gone).scalars())
    paths = list(connection.execute(sa.select(images.c.path).where(images.c.run_id.in_(gone_ids))).scalars())
    return gone_ids, paths + inputs.paths_of(connection, gone_ids)


def _oldest(connection: Connection, query: sa.Select[tuple[str, int]], over: int) -> dict[str, int]:
    """As many runs of `query` as hold `over` bytes, with what each holds."""
    sizes: dict[str, int] = {}
    num_bytes = 0
    for row in connection.execute(query) if over > 0 else ():
        sizes[row.id] = row.num_bytes
        num_bytes += row.num_bytes
        if num_bytes >= over:
            break
    return sizes


def _expire_deliveries(connection: Connection, older_than_seconds: float) -> int:
    expired = sa.select(deliveries.c.id).where(*_is_old_log(older_than_seconds)).limit(PRUNE_BATCH)
    ids = list(connection.execute(expired).scalars())
    if ids:
        connection.execute(sa.delete(deliveries).where(deliveries.c.id.in_(ids)))
    return len(ids)


def _is_old_log(older_than_seconds: float) -> tuple[sa.ColumnElement[bool], ...]:
    has_run = sa.exists().where(runs.c.id == deliveries.c.run_id)
    is_old = deliveries.c.created_at < now() - older_than_seconds
    return is_old, deliveries.c.status != "pending", ~has_run


def _preview(connection: Connection, older_than_seconds: float, max_bytes: int | None) -> Expiry:
    has_expired = _has_expired(older_than_seconds)
    num_runs = connection.execute(sa.select(sa.func.count()).select_from(runs).where(*has_expired)).scalar_one()
    run_bytes = connection.execute(KEPT_BYTES.where(*has_expired)).scalar_one()
    old_log = sa.select(sa.func.count()).select_from(deliveries).where(*_is_old_log(older_than_seconds))
    over = 0
    if max_bytes is not None:
        over = max(0, connection.execute(KEPT_BYTES).scalar_one() - run_bytes - max_bytes)
    still_there = _with_images().where(runs.c.ended_at >= now() - older_than_seconds)
    sizes = _oldest(connection, still_there, over)
    num_bytes = sum(sizes.values())
    return Expiry(
        num_runs=num_runs,
        run_bytes=run_bytes,
        num_runs_without_images=len(sizes),
        image_bytes=num_bytes,
        num_deliveries=connection.execute(old_log).scalar_one(),
        bytes_over_budget=max(0, over - num_bytes),
    )
