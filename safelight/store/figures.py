"""Counts over runs, pictures and deliveries for whoever watches the server. Reads only; each method is one transaction.

Everything here is bounded by a span of time or a number of rows, so that a full store costs no more than a busy day.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from safelight.deployments import DeploymentStatus
from safelight.runs import DeliveryStatus, RunStatus
from safelight.store.database import Database, now, whole
from safelight.store.schema import HAS_ENDED, IS_QUEUED, IS_RUNNING, deliveries, images, placements, runs

HOUR_SECONDS = 3600.0
DAY_SECONDS = 86400.0
MAX_ENDED_RUNS = 5000
"""Runs that shares and percentiles are computed from at most: the newest."""

MAX_COUNTED_RUNS = 200_000
"""Runs whose pictures are counted at most."""


@dataclass(frozen=True, slots=True)
class HourCount:
    """How many pictures of a deployment were finished in one hour; hour 0 ends now."""

    deployment: str
    hours_ago: int
    num_images: int


@dataclass(frozen=True, slots=True)
class EndedRun:
    """The times of one run that ended, or of one under way when `ended_at` is None."""

    deployment: str
    status: RunStatus
    created_at: float
    started_at: float | None
    ended_at: float | None


@dataclass(frozen=True, slots=True)
class Waiting:
    """Runs of a deployment that have not ended."""

    num_queued: int = 0
    num_running: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Activity:
    """The last day of the whole server, and what is under way. `at` is the database's now."""

    at: float
    images: Sequence[HourCount]
    ended: Sequence[EndedRun]
    running: Sequence[EndedRun]
    waiting: Mapping[str, Waiting]
    failed_deliveries: Mapping[int, int] = field(default_factory=dict)
    num_deliveries: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One address that results were sent to lately, and what became of them."""

    project: str
    url: str
    num_delivered: int
    num_pending: int
    num_failed: int
    newest_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """What a worker last said about one version of a deployment."""

    worker_id: str
    deployment: str
    version: int
    status: DeploymentStatus
    reason: str
    heard_at: float
    load_seconds: float | None = None


class Figures:
    """What the dashboard counts."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def activity(self) -> Activity:
        """The last day and the present. One transaction."""
        return await self._database.read(_activity)

    async def runs_by_day(self, deployment: str, *, num_days: int) -> Mapping[int, int]:
        """How many runs of a deployment were asked for on each of the last days, by days since the
        epoch. One transaction."""
        return await self._database.read(_runs_by_day, deployment, num_days)

    async def runs_by_key(self, *, seconds: float) -> Mapping[str, int]:
        """How many runs each key started in the last `seconds`. One transaction."""
        return await self._database.read(_runs_by_key, seconds)

    async def endpoints(self, *, seconds: float) -> Sequence[Endpoint]:
        """Where results of the last `seconds` were sent, the latest first. One transaction."""
        return await self._database.read(_endpoints, seconds)

    async def placements(self) -> Sequence[Placement]:
        """What every worker last said, by worker. One transaction."""
        return await self._database.read(_placements)


def _activity(connection: Connection) -> Activity:
    at = connection.execute(sa.select(now())).scalar_one()
    failed = _failed_deliveries(connection, at)
    since_day = deliveries.c.created_at > at - DAY_SECONDS
    num_deliveries = connection.execute(
        sa.select(sa.func.count()).select_from(deliveries).where(since_day)
    ).scalar_one()
    return Activity(
        at=at,
        images=_images_by_hour(connection, at),
        ended=_ended(connection, at),
        running=_running(connection),
        waiting=_waiting(connection),
        failed_deliveries=failed,
        num_deliveries=num_deliveries,
    )


def _age_in_hours(at: float, column: sa.ColumnElement[Any]) -> sa.ColumnElement[int]:
    return whole((at - column) / HOUR_SECONDS)


def _images_by_hour(connection: Connection, at: float) -> list[HourCount]:
    # The limit keeps the database from walking through all runs in the order of the groups.
    ended = (
        sa.select(runs.c.id, runs.c.deployment, runs.c.ended_at)
        .where(HAS_ENDED, runs.c.ended_at > at - DAY_SECONDS)
        .order_by(runs.c.ended_at.desc())
        .limit(MAX_COUNTED_RUNS)
    ).subquery()
    hours_ago = _age_in_hours(at, ended.c.ended_at).label("hours_ago")
    query = (
        sa.select(ended.c.deployment, hours_ago, sa.func.count().label("num_images"))
        .join(images, images.c.run_id == ended.c.id)
        .group_by(ended.c.deployment, hours_ago)
    )
    return [HourCount(row.deployment, row.hours_ago, row.num_images) for row in connection.execute(query)]


def _ended(connection: Connection, at: float) -> list[EndedRun]:
    query = (
        _times()
        .where(HAS_ENDED, runs.c.ended_at > at - DAY_SECONDS)
        .order_by(runs.c.ended_at.desc())
        .limit(MAX_ENDED_RUNS)
    )
    return [_ended_from(row) for row in connection.execute(query)]


def _running(connection: Connection) -> list[EndedRun]:
    query = _times().where(IS_RUNNING).limit(MAX_ENDED_RUNS)
    return [_ended_from(row) for row in connection.execute(query)]


def _times() -> sa.Select[Any]:
    return sa.select(runs.c.deployment, runs.c.status, runs.c.created_at, runs.c.started_at, runs.c.ended_at)


def _ended_from(row: sa.Row[Any]) -> EndedRun:
    return EndedRun(row.deployment, RunStatus(row.status), row.created_at, row.started_at, row.ended_at)


def _waiting(connection: Connection) -> dict[str, Waiting]:
    # Few rows through the indexes of just these states: counted here, since a grouping would walk through all runs.
    queued = Counter(connection.execute(sa.select(runs.c.deployment).where(IS_QUEUED)).scalars())
    running = Counter(connection.execute(sa.select(runs.c.deployment).where(IS_RUNNING)).scalars())
    return {name: Waiting(queued[name], running[name]) for name in queued.keys() | running.keys()}


def _failed_deliveries(connection: Connection, at: float) -> dict[int, int]:
    hours_ago = _age_in_hours(at, deliveries.c.created_at).label("hours_ago")
    query = (
        sa.select(hours_ago, sa.func.count())
        .where(deliveries.c.created_at > at - DAY_SECONDS, deliveries.c.status == DeliveryStatus.FAILED)
        .group_by(hours_ago)
    )
    return {row[0]: row[1] for row in connection.execute(query)}


def _runs_by_day(connection: Connection, deployment: str, num_days: int) -> dict[int, int]:
    today = int(connection.execute(sa.select(now())).scalar_one() / DAY_SECONDS)
    days = range(today - num_days + 1, today + 1)
    # A count for each day walks along an index; grouping would sort all rows by a computed day.
    counts = [
        sa.select(sa.func.count())
        .select_from(runs)
        .where(
            runs.c.deployment == deployment,
            runs.c.created_at >= day * DAY_SECONDS,
            runs.c.created_at < (day + 1) * DAY_SECONDS,
        )
        .scalar_subquery()
        for day in days
    ]
    return dict(zip(days, connection.execute(sa.select(*counts)).one(), strict=True))


def _runs_by_key(connection: Connection, seconds: float) -> dict[str, int]:
    query = (
        sa.select(runs.c.key_id, sa.func.count())
        .where(runs.c.created_at > now() - seconds, runs.c.key_id.is_not(None))
        .group_by(runs.c.key_id)
    )
    return {row[0]: row[1] for row in connection.execute(query)}


def _endpoints(connection: Connection, seconds: float) -> list[Endpoint]:
    counted = [
        sa.func.sum(sa.case((deliveries.c.status == status, 1), else_=0)).label(status.value)
        for status in DeliveryStatus
    ]
    query = (
        sa.select(
            deliveries.c.project, deliveries.c.url, sa.func.max(deliveries.c.created_at).label("newest"), *counted
        )
        .where(deliveries.c.created_at > now() - seconds)
        .group_by(deliveries.c.project, deliveries.c.url)
        .order_by(sa.desc("newest"))
        .limit(100)
    )
    return [
        Endpoint(
            project=row.project,
            url=row.url,
            num_delivered=row.delivered,
            num_pending=row.pending,
            num_failed=row.failed,
            newest_at=row.newest,
        )
        for row in connection.execute(query)
    ]


def _placements(connection: Connection) -> list[Placement]:
    query = sa.select(placements).order_by(placements.c.worker_id, placements.c.name, placements.c.version)
    return [
        Placement(
            worker_id=row.worker_id,
            deployment=row.name,
            version=row.version,
            status=DeploymentStatus(row.status),
            reason=row.reason,
            heard_at=row.heard_at,
            load_seconds=row.load_seconds,
        )
        for row in connection.execute(query)
    ]
