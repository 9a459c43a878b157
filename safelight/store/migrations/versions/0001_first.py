"""The first schema."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    _create_runs()
    _index_runs()
    _create_events()
    _create_images()
    _create_deliveries()
    _create_attempts()
    _create_keys()
    _create_deployments()
    _create_placements()


def _create_runs() -> None:
    op.create_table(
        "runs",
        sa.Column("number", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("id", TEXT, nullable=False),
        sa.Column("project", TEXT, nullable=False),
        sa.Column("key_id", TEXT),
        sa.Column("deployment", TEXT, nullable=False),
        sa.Column("deployment_version", sa.Integer(), nullable=False),
        sa.Column("params", TEXT, nullable=False),
        sa.Column("status", TEXT, nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("started_at", sa.Double()),
        sa.Column("ended_at", sa.Double()),
        sa.Column("run_time_ms", sa.Double()),
        sa.Column("worker_id", TEXT),
        sa.Column("lease_ends_at", sa.Double()),
        sa.Column("fence", sa.Integer(), nullable=False),
        sa.Column("num_attempts", sa.Integer(), nullable=False),
        sa.Column("num_events", sa.Integer(), nullable=False),
        sa.Column("is_cancel_requested", sa.Boolean(), nullable=False),
        sa.Column("steps_done", sa.Integer(), nullable=False),
        sa.Column("steps_total", sa.Integer(), nullable=False),
        sa.Column("eta_seconds", sa.Double()),
        sa.Column("webhook_endpoint", TEXT),
        sa.Column("idempotency_key", TEXT),
        sa.Column("body_digest", TEXT),
        sa.Column("warnings", TEXT, nullable=False),
        sa.Column("error_code", TEXT),
        sa.Column("error_message", TEXT),
        sa.PrimaryKeyConstraint("number"),
        sa.UniqueConstraint("id"),
    )


def _index_runs() -> None:
    op.create_index("runs_by_deployment", "runs", ["deployment", "created_at", "number"], unique=False)
    op.create_index("runs_by_project", "runs", ["project", "created_at", "number"], unique=False)
    op.create_index("runs_by_project_status", "runs", ["project", "status", "created_at", "number"], unique=False)
    op.create_index("runs_by_status", "runs", ["status", "created_at", "number"], unique=False)
    op.create_index("runs_ended", "runs", ["ended_at"], unique=False, **_only("ended_at IS NOT NULL"))
    op.create_index(
        "runs_idempotency", "runs", ["project", "idempotency_key"], unique=True, **_only("idempotency_key IS NOT NULL")
    )
    op.create_index("runs_newest", "runs", ["created_at", "number"], unique=False)


def _create_events() -> None:
    op.create_table(
        "events",
        sa.Column("run_id", TEXT, nullable=False),
        sa.Column("sequence", sa.Integer(), nullable=False),
        sa.Column("kind", TEXT, nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("image_index", sa.Integer()),
        sa.Column("error_code", TEXT),
        sa.Column("error_message", TEXT),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("run_id", "sequence"),
        sqlite_with_rowid=False,
    )


def _create_images() -> None:
    op.create_table(
        "images",
        sa.Column("run_id", TEXT, nullable=False),
        sa.Column("image_index", sa.Integer(), nullable=False),
        sa.Column("seed", sa.BigInteger(), nullable=False),
        sa.Column("output_format", TEXT, nullable=False),
        sa.Column("path", TEXT, nullable=False),
        sa.Column("num_bytes", sa.BigInteger(), nullable=False),
        sa.Column("sha256", TEXT, nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("run_id", "image_index"),
        sqlite_with_rowid=False,
    )


def _create_deliveries() -> None:
    op.create_table(
        "deliveries",
        sa.Column("id", TEXT, nullable=False),
        sa.Column("event_id", TEXT, nullable=False),
        sa.Column("run_id", TEXT, nullable=False),
        sa.Column("project", TEXT, nullable=False),
        sa.Column("url", TEXT, nullable=False),
        sa.Column("status", TEXT, nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("next_attempt_at", sa.Double()),
        sa.Column("num_attempts", sa.Integer(), nullable=False),
        sa.Column("num_attempts_before_resend", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("event_id", "url", name="deliveries_event"),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], ondelete="CASCADE"),
    )
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


def _create_keys() -> None:
    op.create_table(
        "keys",
        sa.Column("id", TEXT, nullable=False),
        sa.Column("name", TEXT, nullable=False),
        sa.Column("prefix", TEXT, nullable=False),
        sa.Column("digest", TEXT, nullable=False),
        sa.Column("project", TEXT, nullable=False),
        sa.Column("scopes", TEXT, nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("expires_at", sa.Double()),
        sa.Column("revoked_at", sa.Double()),
        sa.Column("last_used_at", sa.Double()),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("keys_by_name", "keys", ["name"], unique=True, **_only("revoked_at IS NULL"))
    op.create_index("keys_by_prefix", "keys", ["prefix"], unique=False)


def _create_deployments() -> None:
    op.create_table(
        "deployments",
        sa.Column("name", TEXT, nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("model", TEXT, nullable=False),
        sa.Column("revision", TEXT),
        sa.Column("defaults", TEXT, nullable=False),
        sa.Column("limits", TEXT, nullable=False),
        sa.Column("embed_metadata", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("undeployed_at", sa.Double()),
        sa.PrimaryKeyConstraint("name", "version"),
    )
    op.create_index("deployments_current", "deployments", ["name"], unique=True, **_only("undeployed_at IS NULL"))


def _create_placements() -> None:
    op.create_table(
        "placements",
        sa.Column("worker_id", TEXT, nullable=False),
        sa.Column("name", TEXT, nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("status", TEXT, nullable=False),
        sa.Column("reason", TEXT, nullable=False),
        sa.Column("heard_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("worker_id", "name", "version"),
    )


def _only(condition: str) -> dict[str, Any]:
    return {"sqlite_where": sa.text(condition), "postgresql_where": sa.text(condition)}
