"""Registered webhook endpoints; deliveries that outlive their run; runs whose images have expired."""

from typing import Any
from urllib.parse import urlsplit

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")

KEPT = (
    "id, event_id, run_id, project, url, status, created_at, next_attempt_at, num_attempts, num_attempts_before_resend"
)


def upgrade() -> None:
    op.add_column("runs", sa.Column("images_expired_at", sa.Double()))
    _create_endpoints()
    _make_deliveries_anew()


def _create_endpoints() -> None:
    op.create_table(
        "webhook_endpoints",
        sa.Column("id", TEXT, nullable=False),
        sa.Column("project", TEXT, nullable=False),
        sa.Column("url", TEXT, nullable=False),
        sa.Column("host", TEXT, nullable=False),
        sa.Column("events", TEXT, nullable=False),
        sa.Column("status", TEXT, nullable=False),
        sa.Column("status_reason", TEXT, nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("failing_since", sa.Double()),
        sa.Column("secret_number", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("project", "url", name="webhook_endpoints_address"),
    )
    op.create_table(
        "endpoint_secrets",
        sa.Column("endpoint_id", TEXT, nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("ends_at", sa.Double()),
        sa.ForeignKeyConstraint(["endpoint_id"], ["webhook_endpoints.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("endpoint_id", "number"),
        sqlite_with_rowid=False,
    )


def _make_deliveries_anew() -> None:
    # SQLite cannot drop a foreign key, and dropping a table that others refer to deletes their rows too: so both go.
    for table in ("deliveries", "attempts"):
        op.execute(f"CREATE TABLE kept_{table} AS SELECT * FROM {table}")  # noqa: S608
    op.drop_table("attempts")
    op.drop_table("deliveries")
    _create_deliveries()
    _create_attempts()
    op.execute(f"INSERT INTO deliveries ({KEPT}, host, reason) SELECT {KEPT}, '', '' FROM kept_deliveries")  # noqa: S608
    op.execute("INSERT INTO attempts SELECT * FROM kept_attempts")
    for table in ("deliveries", "attempts"):
        op.drop_table(f"kept_{table}")
    _name_hosts()


def _create_deliveries() -> None:
    op.create_table(
        "deliveries",
        sa.Column("id", TEXT, nullable=False),
        sa.Column("event_id", TEXT, nullable=False),
        sa.Column("run_id", TEXT, nullable=False),
        sa.Column("project", TEXT, nullable=False),
        sa.Column("endpoint_id", TEXT),
        sa.Column("url", TEXT, nullable=False),
        sa.Column("host", TEXT, nullable=False),
        sa.Column("status", TEXT, nullable=False),
        sa.Column("reason", TEXT, nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("next_attempt_at", sa.Double()),
        sa.Column("num_attempts", sa.Integer(), nullable=False),
        sa.Column("num_attempts_before_resend", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("deliveries_event", "deliveries", ["event_id"], unique=True, **_only("endpoint_id IS NULL"))
    is_of_endpoint = _only("endpoint_id IS NOT NULL")
    op.create_index("deliveries_by_endpoint", "deliveries", ["endpoint_id", "event_id"], unique=True, **is_of_endpoint)
    op.create_index("deliveries_by_project", "deliveries", ["project", "created_at"], unique=False)
    op.create_index("deliveries_by_run", "deliveries", ["run_id"], unique=False)
    op.create_index("deliveries_due", "deliveries", ["next_attempt_at"], unique=False, **_only("status = 'pending'"))
    op.create_index("deliveries_newest", "deliveries", ["created_at"], unique=False)


def _create_attempts() -> None:
    op.create_table(
        "attempts",
        sa.Column("delivery_id", TEXT, nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("duration_ms", sa.Double(), nullable=False),
        sa.Column("status_code", sa.Integer()),
        sa.Column("error", TEXT),
        sa.Column("response_excerpt", TEXT, nullable=False),
        sa.ForeignKeyConstraint(["delivery_id"], ["deliveries.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("delivery_id", "number"),
        sqlite_with_rowid=False,
    )


def _name_hosts() -> None:
    connection = op.get_bind()
    deliveries = sa.table("deliveries", sa.column("id", sa.Text), sa.column("url", sa.Text), sa.column("host", sa.Text))
    rows = connection.execute(sa.select(deliveries.c.id, deliveries.c.url)).all()
    name = (
        sa.update(deliveries).where(deliveries.c.id == sa.bindparam("this_id")).values(host=sa.bindparam("this_host"))
    )
    if rows:
        connection.execute(name, [{"this_id": row.id, "this_host": _host_of(row.url)} for row in rows])


def _host_of(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def _only(condition: str) -> dict[str, Any]:
    return {"sqlite_where": sa.text(condition), "postgresql_where": sa.text(condition)}
