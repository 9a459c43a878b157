"""Tables and indexes. Times are seconds since the epoch on the database's clock; settings of a run are JSON text.

Changing anything here needs a migration in `migrations/versions` and its number in REVISION.
"""

from __future__ import annotations

import sqlalchemy as sa

from safelight.store.database import Number

REVISION = "0010"
"""The newest migration: a database that says so needs none."""


class Text(sa.types.TypeDecorator[str]):
    """Text that every database can store: lone surrogates and NUL become the replacement character.

    Compared byte by byte everywhere: what counts as greater must not hang on the language of a PostgreSQL server.
    """

    impl = sa.Text
    cache_ok = True

    def load_dialect_impl(self, dialect: sa.Dialect) -> sa.types.TypeEngine[str]:
        return sa.Text(collation="C" if dialect.name == "postgresql" else None)

    def process_bind_param(self, value: str | None, dialect: sa.Dialect) -> str | None:
        if value is None or (value.isascii() and "\0" not in value):
            return value
        return value.encode("utf-8", "replace").decode().replace("\0", "\ufffd")


class Real(sa.types.TypeDecorator[float]):
    """A float that comes back as one: SQLite's RETURNING answers 5 where 5.0 was written."""

    impl = sa.Double
    cache_ok = True

    def process_result_value(self, value: float | None, dialect: sa.Dialect) -> float | None:
        return None if value is None else float(value)


metadata = sa.MetaData()

runs = sa.Table(
    "runs",
    metadata,
    sa.Column("number", Number, primary_key=True),
    sa.Column("id", Text, nullable=False, unique=True),
    sa.Column("project", Text, nullable=False),
    sa.Column("key_id", Text),
    sa.Column("deployment", Text, nullable=False),
    sa.Column("deployment_version", sa.Integer, nullable=False),
    sa.Column("params", Text, nullable=False),
    sa.Column("status", Text, nullable=False),
    sa.Column("created_at", Real, nullable=False),
    sa.Column("started_at", Real),
    sa.Column("ended_at", Real),
    sa.Column("run_time_ms", Real),
    sa.Column("worker_id", Text),
    sa.Column("lease_ends_at", Real),
    sa.Column("fence", sa.Integer, nullable=False),
    sa.Column("num_attempts", sa.Integer, nullable=False),
    sa.Column("num_events", sa.Integer, nullable=False),
    sa.Column("is_cancel_requested", sa.Boolean, nullable=False),
    sa.Column("steps_done", sa.Integer, nullable=False),
    sa.Column("steps_total", sa.Integer, nullable=False),
    sa.Column("eta_seconds", Real),
    sa.Column("webhook_endpoint", Text),
    sa.Column("idempotency_key", Text),
    sa.Column("body_digest", Text),
    sa.Column("warnings", Text, nullable=False),
    sa.Column("error_code", Text),
    sa.Column("error_message", Text),
    sa.Column("num_images", sa.Integer),
    sa.Column("pixel_steps", sa.BigInteger),
    sa.Column("weight", Real),
    sa.Column("device_ms", Real),
    sa.Column("images_expired_at", Real),
    sa.Column("provenance", Text),
    sa.Column("deadline_at", Real),
    sa.Column("traceparent", Text),
    # The key's priority, negated: what is claimed first comes first in the index.
    sa.Column("rank", sa.Integer, nullable=False, server_default="0"),
)

IS_QUEUED = sa.text("status = 'queued'")
IS_RUNNING = sa.text("status = 'running'")
HAS_ENDED = sa.text("ended_at IS NOT NULL")
HAS_IDEMPOTENCY_KEY = sa.text("idempotency_key IS NOT NULL")

sa.Index("runs_ended", runs.c.ended_at, sqlite_where=HAS_ENDED, postgresql_where=HAS_ENDED)
sa.Index(
    "runs_idempotency",
    runs.c.project,
    runs.c.idempotency_key,
    unique=True,
    sqlite_where=HAS_IDEMPOTENCY_KEY,
    postgresql_where=HAS_IDEMPOTENCY_KEY,
)
sa.Index(
    "runs_queue",
    runs.c.rank,
    runs.c.created_at,
    runs.c.number,
    sqlite_where=IS_QUEUED,
    postgresql_where=IS_QUEUED,
)
sa.Index("runs_newest", runs.c.created_at, runs.c.number)
sa.Index("runs_by_status", runs.c.status, runs.c.created_at, runs.c.number)
sa.Index("runs_by_project", runs.c.project, runs.c.created_at, runs.c.number)
sa.Index("runs_by_project_status", runs.c.project, runs.c.status, runs.c.created_at, runs.c.number)
# All that counting a key's requests reads.
sa.Index("runs_by_key", runs.c.key_id, runs.c.created_at, runs.c.num_images, runs.c.pixel_steps)
sa.Index("runs_by_deployment", runs.c.deployment, runs.c.created_at, runs.c.number)


def _run_id() -> sa.Column[str]:
    return sa.Column("run_id", Text, sa.ForeignKey("runs.id", ondelete="CASCADE"), nullable=False)


events = sa.Table(
    "events",
    metadata,
    _run_id(),
    sa.Column("sequence", sa.Integer, nullable=False),
    sa.Column("kind", Text, nullable=False),
    sa.Column("at", Real, nullable=False),
    sa.Column("image_index", sa.Integer),
    sa.Column("error_code", Text),
    sa.Column("error_message", Text),
    sa.PrimaryKeyConstraint("run_id", "sequence"),
    sqlite_with_rowid=False,
)

images = sa.Table(
    "images",
    metadata,
    _run_id(),
    sa.Column("image_index", sa.Integer, nullable=False),
    sa.Column("seed", sa.BigInteger, nullable=False),
    sa.Column("output_format", Text, nullable=False),
    sa.Column("path", Text, nullable=False),
    sa.Column("num_bytes", sa.BigInteger, nullable=False),
    sa.Column("sha256", Text, nullable=False),
    sa.PrimaryKeyConstraint("run_id", "image_index"),
    sqlite_with_rowid=False,
)

# Pictures that a run begins from, by the names of their fields.
inputs = sa.Table(
    "inputs",
    metadata,
    _run_id(),
    sa.Column("name", Text, nullable=False),
    sa.Column("path", Text, nullable=False),
    sa.Column("num_bytes", sa.BigInteger, nullable=False),
    sa.Column("sha256", Text, nullable=False),
    sa.PrimaryKeyConstraint("run_id", "name"),
    sqlite_with_rowid=False,
)

webhook_endpoints = sa.Table(
    "webhook_endpoints",
    metadata,
    sa.Column("id", Text, primary_key=True),
    sa.Column("project", Text, nullable=False),
    sa.Column("url", Text, nullable=False),
    sa.Column("host", Text, nullable=False),
    sa.Column("events", Text, nullable=False),
    sa.Column("status", Text, nullable=False),
    sa.Column("status_reason", Text, nullable=False),
    sa.Column("created_at", Real, nullable=False),
    sa.Column("failing_since", Real),
    sa.Column("secret_number", sa.Integer, nullable=False),
    # The first of a line of rotated keys, or NULL for the runs of the whole project.
    sa.Column("key_id", Text),
    sa.UniqueConstraint("project", "url", name="webhook_endpoints_address"),
)

endpoint_secrets = sa.Table(
    "endpoint_secrets",
    metadata,
    sa.Column("endpoint_id", Text, sa.ForeignKey("webhook_endpoints.id", ondelete="CASCADE"), nullable=False),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("created_at", Real, nullable=False),
    sa.Column("ends_at", Real),
    sa.PrimaryKeyConstraint("endpoint_id", "number"),
    sqlite_with_rowid=False,
)

# A project without rows has its first secret.
project_secrets = sa.Table(
    "project_secrets",
    metadata,
    sa.Column("project", Text, nullable=False),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("created_at", Real, nullable=False),
    sa.Column("ends_at", Real),
    sa.PrimaryKeyConstraint("project", "number"),
    sqlite_with_rowid=False,
)

# A delivery outlives its run and its endpoint: what was sent where is a log, and keeps their ids without a foreign key.
deliveries = sa.Table(
    "deliveries",
    metadata,
    sa.Column("id", Text, primary_key=True),
    sa.Column("event_id", Text, nullable=False),
    sa.Column("run_id", Text, nullable=False),
    sa.Column("project", Text, nullable=False),
    sa.Column("endpoint_id", Text),
    sa.Column("url", Text, nullable=False),
    sa.Column("host", Text, nullable=False),
    sa.Column("status", Text, nullable=False),
    sa.Column("reason", Text, nullable=False),
    sa.Column("created_at", Real, nullable=False),
    sa.Column("next_attempt_at", Real),
    sa.Column("num_attempts", sa.Integer, nullable=False),
    sa.Column("num_attempts_before_resend", sa.Integer, nullable=False),
    # The body without pictures, as it was when the run ended: NULL in rows older than this column.
    sa.Column("told", Text),
)

IS_PENDING = sa.text("status = 'pending'")
IS_OF_RUN = sa.text("endpoint_id IS NULL")
IS_OF_ENDPOINT = sa.text("endpoint_id IS NOT NULL")

sa.Index("deliveries_event", deliveries.c.event_id, unique=True, sqlite_where=IS_OF_RUN, postgresql_where=IS_OF_RUN)
sa.Index(
    "deliveries_by_endpoint",
    deliveries.c.endpoint_id,
    deliveries.c.event_id,
    unique=True,
    sqlite_where=IS_OF_ENDPOINT,
    postgresql_where=IS_OF_ENDPOINT,
)
sa.Index("deliveries_due", deliveries.c.next_attempt_at, sqlite_where=IS_PENDING, postgresql_where=IS_PENDING)
sa.Index("deliveries_by_run", deliveries.c.run_id)
sa.Index("deliveries_newest", deliveries.c.created_at)
sa.Index("deliveries_by_project", deliveries.c.project, deliveries.c.created_at)

attempts = sa.Table(
    "attempts",
    metadata,
    sa.Column("delivery_id", Text, sa.ForeignKey("deliveries.id", ondelete="CASCADE"), nullable=False),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("at", Real, nullable=False),
    sa.Column("duration_ms", Real, nullable=False),
    sa.Column("status_code", sa.Integer),
    sa.Column("error", Text),
    sa.Column("response_excerpt", Text, nullable=False),
    sa.PrimaryKeyConstraint("delivery_id", "number"),
    sqlite_with_rowid=False,
)

keys = sa.Table(
    "keys",
    metadata,
    sa.Column("id", Text, primary_key=True),
    sa.Column("name", Text, nullable=False),
    sa.Column("prefix", Text, nullable=False),
    sa.Column("digest", Text, nullable=False),
    sa.Column("project", Text, nullable=False),
    sa.Column("scopes", Text, nullable=False),
    sa.Column("created_at", Real, nullable=False),
    sa.Column("expires_at", Real),
    sa.Column("revoked_at", Real),
    sa.Column("last_used_at", Real),
    sa.Column("origin_id", Text),
    sa.Column("allowance", Text),
)

IS_NOT_REVOKED = sa.text("revoked_at IS NULL")

sa.Index("keys_by_prefix", keys.c.prefix)
sa.Index("keys_by_origin", keys.c.origin_id)
sa.Index("keys_by_name", keys.c.name, unique=True, sqlite_where=IS_NOT_REVOKED, postgresql_where=IS_NOT_REVOKED)

deployments = sa.Table(
    "deployments",
    metadata,
    sa.Column("name", Text, nullable=False),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("model", Text, nullable=False),
    sa.Column("revision", Text),
    sa.Column("defaults", Text, nullable=False),
    sa.Column("limits", Text, nullable=False),
    sa.Column("embed_metadata", sa.Boolean, nullable=False),
    sa.Column("created_at", Real, nullable=False),
    sa.Column("undeployed_at", Real),
    sa.Column("serving", Text),
    sa.PrimaryKeyConstraint("name", "version"),
)

IS_DEPLOYED = sa.text("undeployed_at IS NULL")

sa.Index("deployments_current", deployments.c.name, unique=True, sqlite_where=IS_DEPLOYED, postgresql_where=IS_DEPLOYED)

placements = sa.Table(
    "placements",
    metadata,
    sa.Column("worker_id", Text, nullable=False),
    sa.Column("name", Text, nullable=False),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("status", Text, nullable=False),
    sa.Column("reason", Text, nullable=False),
    sa.Column("heard_at", Real, nullable=False),
    sa.Column("load_seconds", Real),
    sa.Column("max_pixels", sa.BigInteger),
    sa.PrimaryKeyConstraint("worker_id", "name", "version"),
)

spent = sa.Table(
    "spent",
    metadata,
    sa.Column("key_id", Text, nullable=False),
    sa.Column("deployment", Text, nullable=False),
    sa.Column("at", Real, nullable=False),
    sa.Column("is_day", sa.Boolean, nullable=False),
    sa.Column("num_runs", sa.Integer, nullable=False),
    sa.Column("num_images", sa.Integer, nullable=False),
    sa.Column("pixel_steps", sa.BigInteger, nullable=False),
    sa.Column("num_finished", sa.Integer, nullable=False),
    sa.Column("device_ms", Real, nullable=False),
    sa.PrimaryKeyConstraint("key_id", "deployment", "at", "is_day"),
)

IS_EXACT = sa.text("NOT is_day")

sa.Index("spent_exactly", spent.c.at, sqlite_where=IS_EXACT, postgresql_where=IS_EXACT)

workers = sa.Table(
    "workers",
    metadata,
    sa.Column("worker_id", Text, primary_key=True),
    sa.Column("heard_at", Real, nullable=False),
    sa.Column("figures", Text, nullable=False),
)
