"""The secrets of projects: what deliveries are signed with that go to the URL a run itself named."""

from __future__ import annotations

from dataclasses import dataclass, field

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.exc import IntegrityError

from safelight.errors import Conflict
from safelight.store.database import Database
from safelight.store.schema import project_secrets
from safelight.store.secret_numbers import OVERLAP_SECONDS, SecretNumbers, derive

NUMBERS = SecretNumbers(project_secrets, project_secrets.c.project)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectSecret:
    """The newest secret of a project, and until when the one before it goes on signing too."""

    project: str
    secret: str = field(repr=False)
    previous_ends_at: float | None = None


class ProjectSecrets:
    """A project has a first secret without anything being written; it need not even have a key."""

    def __init__(self, database: Database, secret: bytes) -> None:
        self._database = database
        self._secret = secret

    async def newest(self, project: str) -> ProjectSecret:
        """One transaction."""
        numbers, previous_ends_at = await self._database.read(_standing, project)
        return self._shown(project, numbers[0], previous_ends_at)

    async def signing(self, project: str) -> tuple[str, ...]:
        """The secrets that sign now, newest first. One transaction."""
        numbers = await self._database.read(_live, project)
        return tuple(self._derive(project, number) for number in numbers)

    async def rotate(self, project: str, *, overlap_seconds: float = OVERLAP_SECONDS) -> ProjectSecret:
        """A new secret; the one before signs beside it for the overlap. Raises Conflict while another does the same.
        One transaction."""
        number, previous_ends_at = await self._database.write(_rotate, project, overlap_seconds)
        return self._shown(project, number, previous_ends_at)

    def _shown(self, project: str, number: int, previous_ends_at: float | None) -> ProjectSecret:
        return ProjectSecret(project=project, secret=self._derive(project, number), previous_ends_at=previous_ends_at)

    def _derive(self, project: str, number: int) -> str:
        # The first is the one that projects had before there were others.
        purpose = f"webhook:{project}" if number == 1 else f"webhook-project:{number}:{project}"
        return derive(self._secret, purpose)


def _live(connection: Connection, project: str) -> list[int]:
    return NUMBERS.live(connection, project) or [1]


def _standing(connection: Connection, project: str) -> tuple[list[int], float | None]:
    return _live(connection, project), NUMBERS.ends_of_previous(connection, [project]).get(project)


def _rotate(connection: Connection, project: str, overlap_seconds: float) -> tuple[int, float | None]:
    newest = sa.select(sa.func.max(project_secrets.c.number)).where(project_secrets.c.project == project)
    number: int | None = connection.execute(newest).scalar_one()
    try:
        if number is None:
            NUMBERS.add(connection, project, number := 1)
        NUMBERS.end(connection, project, overlap_seconds)
        NUMBERS.add(connection, project, number + 1)
    except IntegrityError as error:
        raise Conflict(f"the secret of project {project} is being rotated at this moment; look at it first") from error
    return number + 1, NUMBERS.ends_of_previous(connection, [project]).get(project)
