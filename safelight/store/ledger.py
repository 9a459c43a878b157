"""What keys have used: counted from the runs that are kept, and from what is left of those that are gone.

A key shares its allowance with the keys it was rotated from and into: they have one `origin_id`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from safelight.errors import Overloaded, RateLimited
from safelight.keys import DAY_SECONDS, MINUTE_SECONDS, Allowance, Spending, Standing, Usage, seconds_to_room, standings
from safelight.runs import NewRun
from safelight.store.database import Database, now
from safelight.store.prepared import Prepared
from safelight.store.rows import allowance_from
from safelight.store.schema import IS_EXACT, IS_QUEUED, IS_RUNNING, images, keys, runs, spent

EXACT_SECONDS = 2 * DAY_SECONDS
"""What is gone is known to the moment for this long, which covers every limit; later by the day."""

MERGE_BATCH = 1000

OF_KEY: sa.BindParameter[str] = sa.bindparam("key_ids", expanding=True)
SINCE, UNTIL = (sa.bindparam(name, type_=sa.Double) for name in ("since", "until"))
"""Until now: a clock that was set back leaves runs of later, and those are of no minute before."""

# Statements are built once: building one costs more than SQLite takes to execute it.

OF_FAMILY = sa.select(keys.c.id, keys.c.allowance).where(
    keys.c.origin_id == sa.select(keys.c.origin_id).where(keys.c.id == sa.bindparam("key_id")).scalar_subquery()
)
FAMILY = Prepared(OF_FAMILY)
LOCK_FAMILY = Prepared(OF_FAMILY.order_by(keys.c.id).with_for_update())
USES = sa.union_all(
    sa.select(
        runs.c.created_at.label("at"),
        sa.literal(1).label("num_runs"),
        sa.func.coalesce(runs.c.num_images, 0).label("num_images"),
        sa.func.coalesce(runs.c.pixel_steps, 0).label("pixel_steps"),
    ).where(runs.c.key_id.in_(OF_KEY), runs.c.created_at > SINCE, runs.c.created_at <= UNTIL),
    sa.select(spent.c.at, spent.c.num_runs, spent.c.num_images, spent.c.pixel_steps).where(
        spent.c.key_id.in_(OF_KEY), spent.c.at > SINCE, spent.c.at <= UNTIL, IS_EXACT
    ),
).subquery()
SUMS = sa.select(
    sa.func.coalesce(sa.func.sum(USES.c.num_runs), 0).label("num_runs"),
    sa.func.coalesce(sa.func.sum(USES.c.num_images), 0).label("num_images"),
    sa.func.coalesce(sa.func.sum(USES.c.pixel_steps), 0).label("pixel_steps"),
    sa.func.min(USES.c.at).label("oldest_at"),
)
EACH = sa.select(USES.c.at, USES.c.num_runs, USES.c.pixel_steps).order_by(USES.c.at)
NUM_QUEUED = sa.select(sa.func.count()).select_from(runs).where(IS_QUEUED, runs.c.key_id.in_(OF_KEY))
NUM_RUNNING = sa.select(sa.func.count()).select_from(runs).where(IS_RUNNING, runs.c.key_id.in_(OF_KEY))
NUM_FINISHED = sa.select(sa.func.count()).where(images.c.run_id == runs.c.id).scalar_subquery()
LEAVING = sa.select(
    *(runs.c.key_id, runs.c.deployment, runs.c.created_at, runs.c.num_images, runs.c.pixel_steps, runs.c.device_ms),
    NUM_FINISHED.label("num_finished"),
    now().label("read_at"),
).where(runs.c.id.in_(sa.bindparam("run_ids", expanding=True)), runs.c.key_id.is_not(None))

MERGED = sa.delete(spent).where(
    *(spent.c.key_id == sa.bindparam("of_key"), spent.c.deployment == sa.bindparam("of")),
    *(spent.c.at == sa.bindparam("then"), IS_EXACT),
)
ORIGIN = sa.select(keys.c.origin_id).where(keys.c.id == sa.bindparam("key_id"))


class Families:
    """Which keys share an allowance, told by the one they come from. That never changes, so it is looked up once."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._origins: dict[str, str] = {}

    async def origin_of(self, key_id: str) -> str:
        """The first of the keys that a key was rotated from; itself where it was not. One transaction at most."""
        if key_id not in self._origins:
            self._origins[key_id] = await self._database.read(_origin, key_id)
        return self._origins[key_id]


class Ledger:
    """What keys have used and may still use. Reads only."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def standings(self, key_id: str) -> tuple[Standing, ...]:
        """How a key stands with each of its quotas; nothing for a key without. One transaction."""
        return await self._database.read(_standings, key_id)

    async def usage(self, *, since: float, project: str | None = None) -> Sequence[Usage]:
        """What keys have used since a time, by key and deployment; of runs long gone whole days only.
        One transaction."""
        return await self._database.read(_usage, since, project)


def check(connection: Connection, new: NewRun, *, seconds_to_room: Callable[[], float]) -> Allowance:
    """The allowance of the key of `new`. Raises RateLimited or Overloaded where it does not reach for one run more.

    `seconds_to_room` is how long until the queue has moved on.
    """
    if new.key_id is None:
        return Allowance()
    found = _family(connection, FAMILY, new.key_id)
    if found.allowance.has_limits:
        # Locked, so that two doors count one after the other.
        found = _family(connection, LOCK_FAMILY, new.key_id)
        spending = _spending(connection, found)
        _check_open(found.allowance, spending, seconds_to_room)
        _check_quotas(connection, found, spending, new)
    return found.allowance


def settle(connection: Connection, run_ids: Sequence[str]) -> None:
    """Keep what the runs have used, which are forgotten in this transaction."""
    leaving = connection.execute(LEAVING, {"run_ids": run_ids}).all()
    # In the order in which `merge_days` goes too, so that two doors never each hold a day that the other waits for.
    for row in sorted(leaving, key=lambda row: (row.key_id, row.deployment, row.created_at)):
        is_day = row.read_at - row.created_at > EXACT_SECONDS
        figures = {
            "num_runs": 1,
            "num_images": row.num_images or 0,
            "pixel_steps": row.pixel_steps or 0,
            "num_finished": row.num_finished,
            "device_ms": row.device_ms or 0.0,
        }
        _add(connection, row.key_id, row.deployment, row.created_at, is_day=is_day, figures=figures)


def merge_days(connection: Connection) -> int:
    """Sum up by the day a batch of what is older than every limit looks at. How many they were: fewer than MERGE_BATCH
    where no more are left."""
    is_old = spent.c.at < now() - EXACT_SECONDS
    # Locked, so that two doors do not both add up what only one of them takes away.
    exact = sa.select(spent).where(IS_EXACT, is_old).limit(MERGE_BATCH).with_for_update(skip_locked=True)
    rows = connection.execute(exact).all()
    if rows:
        connection.execute(MERGED, [{"of_key": row.key_id, "of": row.deployment, "then": row.at} for row in rows])
    for (key_id, deployment, at), figures in sorted(_by_day(rows).items()):
        _add(connection, key_id, deployment, at, is_day=True, figures=figures)
    return len(rows)


def _by_day(rows: Iterable[sa.Row[Any]]) -> dict[tuple[str, str, float], dict[str, Any]]:
    """Sums by key, deployment and day."""
    days: dict[tuple[str, str, float], dict[str, Any]] = {}
    for row in rows:
        day = days.setdefault((row.key_id, row.deployment, row.at - row.at % DAY_SECONDS), dict.fromkeys(FIGURES, 0))
        for name in FIGURES:
            day[name] += getattr(row, name)
    return days


FIGURES = ("num_runs", "num_images", "pixel_steps", "num_finished", "device_ms")


@dataclass(frozen=True, slots=True)
class _Family:
    """The keys that were made from one another, and what they may use together."""

    key_ids: Sequence[str]
    allowance: Allowance


def _family(connection: Connection, query: Prepared, key_id: str) -> _Family:
    rows = query.execute(connection, {"key_id": key_id}).all()
    return _Family([row.id for row in rows], allowance_from(rows[0].allowance if rows else None))


def _origin(connection: Connection, key_id: str) -> str:
    return connection.execute(ORIGIN, {"key_id": key_id}).scalar() or key_id


def _spending(connection: Connection, family: _Family) -> Spending:
    """Counts only what the allowance asks for."""
    allowance, of_key = family.allowance, {"key_ids": family.key_ids}
    at: float = connection.execute(sa.select(now())).scalar_one()
    used = of_key | {"until": at}
    spending = Spending(at=at)
    if allowance.requests_per_minute is not None or allowance.pixel_steps_per_minute is not None:
        minute = connection.execute(SUMS, {**used, "since": at - MINUTE_SECONDS}).one()
        steps = int(minute.pixel_steps)
        spending = replace(spending, num_requests=minute.num_runs, pixel_steps=steps, oldest_at=minute.oldest_at)
    if allowance.images_per_day is not None:
        day = connection.execute(SUMS, {**used, "since": at - at % DAY_SECONDS}).one()
        spending = replace(spending, num_images=day.num_images)
    if allowance.max_queued_runs is not None or allowance.max_open_runs is not None:
        num_queued = connection.execute(NUM_QUEUED, of_key).scalar_one()
        num_running = connection.execute(NUM_RUNNING, of_key).scalar_one()
        spending = replace(spending, num_queued=num_queued, num_open=num_queued + num_running)
    return spending


def _check_open(allowance: Allowance, spending: Spending, seconds_to_room: Callable[[], float]) -> None:
    for limit, count, what in (
        (allowance.max_queued_runs, spending.num_queued, "wait"),
        (allowance.max_open_runs, spending.num_open, "are open"),
    ):
        if limit is not None and count >= limit:
            message = f"{count} runs of this key {what} already, and {limit} may; send the same again later"
            raise Overloaded(message, code="too_many_runs", retry_after_seconds=seconds_to_room())


def _check_quotas(connection: Connection, family: _Family, spending: Spending, new: NewRun) -> None:
    allowance, params = family.allowance, new.params
    for limit, count, cost, what in (
        (allowance.requests_per_minute, spending.num_requests, 1, "requests"),
        (allowance.pixel_steps_per_minute, spending.pixel_steps, params.pixel_steps, "pixel-steps"),
    ):
        if limit is not None and count + cost > limit:
            since = {"key_ids": family.key_ids, "since": spending.at - MINUTE_SECONDS, "until": spending.at}
            uses = [
                (row.at, row.num_runs if what == "requests" else row.pixel_steps)
                for row in connection.execute(EACH, since)
            ]
            wait = seconds_to_room(uses, to_free=count + cost - limit, at=spending.at)
            message = f"this key may use {limit} {what} in a minute, has used {count}, and this needs {cost}"
            raise RateLimited(message, retry_after_seconds=wait)
    limit, num_images = allowance.images_per_day, params.num_images_per_prompt
    if limit is not None and spending.num_images + num_images > limit:
        message = f"this key may ask for {limit} images a day (UTC), has asked for {spending.num_images}"
        message += f", and this asks for {num_images}"
        raise RateLimited(message, code="quota_exhausted", retry_after_seconds=spending.seconds_to_midnight)


def _standings(connection: Connection, key_id: str) -> tuple[Standing, ...]:
    family = _family(connection, FAMILY, key_id)
    return standings(family.allowance, _spending(connection, family)) if family.allowance.has_quotas else ()


def _add(
    connection: Connection, key_id: str, deployment: str, at: float, *, is_day: bool, figures: Mapping[str, Any]
) -> None:
    place = {"key_id": key_id, "deployment": deployment, "at": at - at % DAY_SECONDS if is_day else at}
    place |= {"is_day": is_day}
    same = sa.and_(*(spent.c[name] == value for name, value in place.items()))
    more = {name: spent.c[name] + value for name, value in figures.items()}
    if connection.execute(sa.update(spent).where(same).values(**more)).rowcount == 0:
        connection.execute(sa.insert(spent), {**place, **figures})


def _usage(connection: Connection, since: float, project: str | None) -> list[Usage]:
    started = (runs.c.key_id.is_not(None), runs.c.created_at > since)
    by_key = (runs.c.key_id, runs.c.deployment)
    kept = sa.select(*by_key, sa.func.count(), sa.literal(0), sa.func.coalesce(sa.func.sum(runs.c.device_ms), 0.0))
    drawn = sa.select(*by_key, sa.literal(0), sa.func.count(), sa.literal(0.0))
    gone = sa.select(
        *(spent.c.key_id, spent.c.deployment, sa.func.sum(spent.c.num_runs)),
        *(sa.func.sum(spent.c.num_finished), sa.func.sum(spent.c.device_ms)),
    )
    found: list[Sequence[Any]] = []
    for query in (
        kept.where(*started).group_by(*by_key),
        drawn.join_from(runs, images, images.c.run_id == runs.c.id).where(*started).group_by(*by_key),
        gone.where(spent.c.at > since).group_by(spent.c.key_id, spent.c.deployment),
    ):
        found += connection.execute(query).all()
    return _summed(found, connection.execute(sa.select(keys).order_by(keys.c.created_at, keys.c.id)).all(), project)


def _summed(found: Iterable[Sequence[Any]], known: Sequence[sa.Row[Any]], project: str | None) -> list[Usage]:
    """One entry for each family of keys and deployment, under the newest key of the family."""
    newest = {row.origin_id: row for row in known}
    key_of = {row.id: newest[row.origin_id] for row in known}
    sums: dict[tuple[str, str], Usage] = {}
    for key_id, deployment, num_runs, num_images, device_ms in found:
        key = key_of.get(key_id)
        if key is None or project not in {None, key.project}:
            continue
        start = Usage(key_id=key.id, key=key.name, project=key.project, deployment=deployment)
        before = sums.get((key.id, deployment), start)
        sums[key.id, deployment] = replace(
            before,
            num_runs=before.num_runs + int(num_runs),
            num_images=before.num_images + int(num_images),
            device_seconds=before.device_seconds + float(device_ms) / 1000.0,
        )
    return sorted(sums.values(), key=lambda usage: (usage.key, usage.key_id, usage.deployment))
