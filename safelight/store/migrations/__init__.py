"""Brings a database to the schema of this version. Migrations are numbered files in `versions`, never
changed once released."""

from __future__ import annotations

from typing import TYPE_CHECKING

import sqlalchemy as sa
from sqlalchemy.engine import Engine
from sqlalchemy.exc import DatabaseError

from safelight.errors import ConfigError
from safelight.store.database import lock_schema, translated
from safelight.store.schema import REVISION

if TYPE_CHECKING:
    from alembic.config import Config


def migrate(engine: Engine) -> None:
    """Apply what is missing, all of it in one transaction. Raises ConfigError when the database is a
    newer version's."""
    with translated():
        found = _found_revision(engine)
        if found == REVISION:
            return
        if found is not None and found > REVISION:
            raise ConfigError(
                f"the database is of a newer Safelight (schema {found}, this one knows {REVISION}); upgrade"
            )
        _upgrade(engine)


def alembic_config() -> Config:
    """Alembic's settings for the migrations in this package."""
    # Imported late: it costs a start a fifth of a second, and a start seldom migrates.
    from alembic.config import Config  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", "safelight.store:migrations")
    return config


def _found_revision(engine: Engine) -> str | None:
    """The newest migration in the database; None when it is empty. Raises ConfigError when it is no database."""
    try:
        with engine.connect() as connection:
            if not sa.inspect(connection).has_table("alembic_version"):
                return None
            return connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar()
    except DatabaseError as error:
        if "not a database" in str(error.orig):
            raise ConfigError(f"{engine.url.database} is not an SQLite database; move it away") from error
        raise


def _upgrade(engine: Engine) -> None:
    from alembic import command  # noqa: PLC0415

    config = alembic_config()
    with engine.execution_options(is_writing=True).begin() as connection:
        lock_schema(connection)
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
