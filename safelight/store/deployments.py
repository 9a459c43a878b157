"""Deployments with all their versions, and placements: which worker has which version in which state."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from safelight.deployments import DREAMBOOTH_ALIAS, Deployment, DeploymentStatus, check_name
from safelight.errors import NotFound
from safelight.store.database import Database, now
from safelight.store.late import add_hint
from safelight.store.rows import deployment_from, to_json
from safelight.store.schema import IS_DEPLOYED, deployments, placements, workers

SILENT_SECONDS = 120.0
"""A worker not heard of for this long has nothing loaded."""

ALIASED_MODEL = "stable-diffusion"

IS_HEARD_OF = placements.c.heard_at >= now() - SILENT_SECONDS
PLACEMENT = (
    *(placements.c.name.label("placed_name"), placements.c.version.label("placed_version")),
    *(placements.c.status, placements.c.reason, placements.c.load_seconds, placements.c.max_pixels),
)
PLACED = sa.select(*PLACEMENT).where(IS_HEARD_OF).order_by(placements.c.heard_at.desc())
IS_PLACED = sa.and_(placements.c.name == deployments.c.name, placements.c.version == deployments.c.version, IS_HEARD_OF)
NEWEST = (
    sa.select(deployments, *PLACEMENT)
    .outerjoin(placements, IS_PLACED)
    .where(IS_DEPLOYED)
    .order_by(deployments.c.created_at.desc(), deployments.c.name, placements.c.heard_at.desc())
)
"""What is deployed, once for each of its placements: asking for them apart is one more way to the database."""

NEWEST_BY_NAME = NEWEST.where(deployments.c.name == sa.bindparam("this_name"))
NEWEST_BY_MODEL = NEWEST.where(deployments.c.model == sa.bindparam("this_model"))

MOST_ALIVE_FIRST = (DeploymentStatus.ACTIVE, DeploymentStatus.STARTING, DeploymentStatus.FAILED, DeploymentStatus.COLD)


class DeploymentTable:
    """What is served under which name. A version never changes, and stays for the runs that name it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def deploy(self, deployment: Deployment) -> Deployment:
        """Serve this under its name from now on, as the next version. Raises InvalidFields. One transaction."""
        check_name(deployment.name)
        return await self._database.write(_deploy, deployment)

    async def get(self, name: str, version: int | None = None) -> Deployment:
        """What is deployed under a name, or any version there ever was. Raises NotFound. One transaction."""
        return await self._database.read(_get, name, version)

    async def resolve(self, name: str) -> Deployment:
        """What a request to `name` gets, DREAMBOOTH_ALIAS included. Raises NotFound. One transaction."""
        return await self._database.read(_resolve, name)

    async def list(self) -> list[Deployment]:
        """All that is deployed, by name. One transaction."""
        return await self._database.read(_list)

    async def versions(self, name: str) -> Sequence[Deployment]:
        """Every version there ever was under a name, newest first; none for a name never used. One transaction."""
        return await self._database.read(_versions, name)

    async def activate(self, name: str, version: int) -> Deployment:
        """Serve an earlier version again, as it was. Raises NotFound. One transaction."""
        return await self._database.write(_activate, name, version)

    async def undeploy(self, name: str) -> None:
        """Serve nothing under a name any more; what is queued is still drawn. Raises NotFound. One transaction."""
        await self._database.write(_undeploy, name)

    async def record_placement(
        self,
        worker_id: str,
        name: str,
        version: int,
        status: DeploymentStatus,
        reason: str = "",
        *,
        load_seconds: float | None = None,
        max_pixels: int | None = None,
    ) -> None:
        """Note how far a worker is with a version; it holds for two minutes or until the next pulse.
        One transaction."""
        await self._database.write(
            _record_placement,
            worker_id,
            name,
            version,
            status=status,
            reason=reason,
            load_seconds=load_seconds,
            max_pixels=max_pixels,
        )

    async def forget_worker(self, worker_id: str) -> None:
        """Drop the placements and the figures of a worker that stops. One transaction."""
        await self._database.write(_forget_worker, worker_id)


def _deploy(connection: Connection, deployment: Deployment) -> Deployment:
    same_name = deployments.c.name == deployment.name
    last = sa.select(sa.func.coalesce(sa.func.max(deployments.c.version), 0)).where(same_name)
    version = connection.execute(last).scalar_one() + 1
    connection.execute(sa.update(deployments).where(same_name, IS_DEPLOYED).values(undeployed_at=now()))
    row = connection.execute(
        sa.insert(deployments)
        .values(
            name=deployment.name,
            version=version,
            model=deployment.model,
            revision=deployment.revision,
            defaults=to_json(deployment.defaults),
            limits=to_json(deployment.limits),
            serving=to_json(deployment.serving),
            embed_metadata=deployment.embed_metadata,
            created_at=now(),
        )
        .returning(*deployments.c)
    ).one()
    add_hint(connection, "deployments")
    return deployment_from(row)


def _get(connection: Connection, name: str, version: int | None) -> Deployment:
    wanted = IS_DEPLOYED if version is None else deployments.c.version == version
    row = connection.execute(sa.select(deployments).where(deployments.c.name == name, wanted)).first()
    if row is None:
        raise _not_found(name)
    return _with_status(row, _placements(connection))


def _resolve(connection: Connection, name: str) -> Deployment:
    rows = connection.execute(NEWEST_BY_NAME, {"this_name": name}).all()
    if not rows and name == DREAMBOOTH_ALIAS:
        rows = connection.execute(NEWEST_BY_MODEL, {"this_model": ALIASED_MODEL}).all()
    if not rows:
        raise _not_found(name)
    return _with_status(rows[0], rows)


def _list(connection: Connection) -> list[Deployment]:
    placed = _placements(connection)
    deployed = connection.execute(sa.select(deployments).where(IS_DEPLOYED).order_by(deployments.c.name))
    return [_with_status(row, placed) for row in deployed]


def _versions(connection: Connection, name: str) -> list[Deployment]:
    placed = _placements(connection)
    query = sa.select(deployments).where(deployments.c.name == name).order_by(deployments.c.version.desc())
    return [_with_status(row, placed) for row in connection.execute(query)]


def _activate(connection: Connection, name: str, version: int) -> Deployment:
    same_name = deployments.c.name == name
    connection.execute(sa.update(deployments).where(same_name, IS_DEPLOYED).values(undeployed_at=now()))
    wanted = sa.update(deployments).where(same_name, deployments.c.version == version).values(undeployed_at=None)
    row = connection.execute(wanted.returning(*deployments.c)).first()
    if row is None:
        raise _not_found(name)
    add_hint(connection, "deployments")
    return _with_status(row, _placements(connection))


def _undeploy(connection: Connection, name: str) -> None:
    current = sa.update(deployments).where(deployments.c.name == name, IS_DEPLOYED)
    if connection.execute(current.values(undeployed_at=now())).rowcount == 0:
        raise _not_found(name)
    add_hint(connection, "deployments")


def _record_placement(
    connection: Connection,
    worker_id: str,
    name: str,
    version: int,
    *,
    status: DeploymentStatus,
    reason: str,
    load_seconds: float | None,
    max_pixels: int | None,
) -> None:
    same = sa.and_(placements.c.worker_id == worker_id, placements.c.name == name, placements.c.version == version)
    is_silent = placements.c.heard_at < now() - SILENT_SECONDS
    connection.execute(sa.delete(placements).where(sa.or_(same, is_silent)))
    connection.execute(
        sa.insert(placements).values(
            worker_id=worker_id,
            name=name,
            version=version,
            status=status,
            reason=reason,
            heard_at=now(),
            load_seconds=load_seconds,
            max_pixels=max_pixels,
        )
    )


def _forget_worker(connection: Connection, worker_id: str) -> None:
    connection.execute(sa.delete(placements).where(placements.c.worker_id == worker_id))
    connection.execute(sa.delete(workers).where(workers.c.worker_id == worker_id))


def _placements(connection: Connection) -> list[sa.Row[Any]]:
    """The placements of workers heard of lately: a few per worker."""
    return list(connection.execute(PLACED))


def _with_status(row: sa.Row[Any], placed: Iterable[sa.Row[Any]]) -> Deployment:
    """The deployment in the state of the worker that is furthest with it."""
    this = row.name, row.version
    mine = [placement for placement in placed if (placement.placed_name, placement.placed_version) == this]
    for status in MOST_ALIVE_FIRST:
        for placement in mine:
            if placement.status == status:
                return replace(
                    deployment_from(row),
                    status=status,
                    status_reason=placement.reason,
                    load_seconds=placement.load_seconds,
                    max_pixels=placement.max_pixels,
                )
    return deployment_from(row)


def _not_found(name: str) -> NotFound:
    message = f"nothing is deployed under {name!r}; see `safelight deployments`"
    return NotFound(message, code="deployment_not_found")
