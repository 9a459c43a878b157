"""Which pictures runs begin from. Their files lie beside those of the runs' own pictures, and go with them."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from safelight.runs import InputName, RunInput
from safelight.store.schema import inputs, runs


def add(connection: Connection, run_id: str, kept: Sequence[RunInput]) -> None:
    """Name the pictures of a new run."""
    for each in kept:
        values = {"name": each.name, "path": each.path, "num_bytes": each.num_bytes, "sha256": each.sha256}
        connection.execute(sa.insert(inputs), {"run_id": run_id, **values})


def of_run(connection: Connection, run_id: str) -> tuple[RunInput, ...]:
    """What a run begins from; nothing, if from noise alone or once its images have expired."""
    rows = connection.execute(sa.select(inputs).where(inputs.c.run_id == run_id).order_by(inputs.c.name))
    return tuple(
        RunInput(name=InputName(row.name), path=row.path, num_bytes=row.num_bytes, sha256=row.sha256) for row in rows
    )


def paths_of(connection: Connection, run_ids: Sequence[str]) -> list[str]:
    """The files of some runs."""
    return list(connection.execute(sa.select(inputs.c.path).where(inputs.c.run_id.in_(run_ids))).scalars())


def paths_between(connection: Connection, first_id: str, end_id: str) -> frozenset[str]:
    """The files of the runs from one id up to, and without, another."""
    is_between = sa.and_(inputs.c.run_id >= first_id, inputs.c.run_id < end_id)
    has_images = runs.c.images_expired_at.is_(None)
    query = sa.select(inputs.c.path).join(runs, runs.c.id == inputs.c.run_id).where(is_between, has_images)
    return frozenset(connection.execute(query).scalars())
