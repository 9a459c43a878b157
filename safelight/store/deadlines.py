"""Whether a run can be done by its deadline, judging by the runs of its deployment that ended last. Reads only."""

from __future__ import annotations

from collections.abc import Callable

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from safelight.errors import DeadlineUnreachable, FieldError, InvalidFields
from safelight.runs import NewRun, RunStatus
from safelight.store.schema import runs

NUM_RECENT_RUNS = 20

_RECENT = (
    sa.select((runs.c.run_time_ms / runs.c.pixel_steps).label("rate"))
    .where(runs.c.deployment == sa.bindparam("deployment"), runs.c.status == RunStatus.SUCCEEDED)
    .where(runs.c.run_time_ms > 0.0, runs.c.pixel_steps > 0)
    .order_by(runs.c.created_at.desc(), runs.c.number.desc())
    .limit(NUM_RECENT_RUNS)
    .subquery()
)
RATES = sa.select(sa.func.min(_RECENT.c.rate), sa.func.avg(_RECENT.c.rate))
"""Milliseconds for a pixel-step: of the run that had the device most to itself, and on average."""


def check_deadline(connection: Connection, new: NewRun, *, seconds_to_start: Callable[[], float]) -> None:
    """Refuse `new` where its deadline is out of reach. As long as nothing is known of its deployment, it is taken.

    `seconds_to_start` is how long what waits already takes. Raises InvalidFields where it could not be done by an idle
    server, DeadlineUnreachable where others are before it.
    """
    if new.deadline_ms is None:
        return
    least, mean = connection.execute(RATES, {"deployment": new.deployment}).one()
    if least is None:
        return
    least_ms, mean_ms = least * new.params.pixel_steps, 1000.0 * seconds_to_start() + mean * new.params.pixel_steps
    if least_ms > new.deadline_ms:
        rule = f"{new.deadline_ms} is less than the {least_ms:.0f} ms that such runs take on an idle server"
        raise InvalidFields([FieldError("deadline_ms", f"{rule}; ask for fewer steps or pixels, or give it longer")])
    if mean_ms > new.deadline_ms:
        message = f"by what waits already this would be done in {mean_ms:.0f} ms, not in {new.deadline_ms} ms"
        late_seconds = (mean_ms - new.deadline_ms) / 1000.0
        raise DeadlineUnreachable(message, retry_after_seconds=max(1.0, min(300.0, late_seconds)))
