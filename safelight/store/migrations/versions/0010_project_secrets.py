"""Secrets of projects that can be rotated; endpoints of one key; what a delivery tells, kept from the run's end on."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"

TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "project_secrets",
        sa.Column("project", TEXT, nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("ends_at", sa.Double()),
        sa.PrimaryKeyConstraint("project", "number"),
        sqlite_with_rowid=False,
    )
    op.add_column("webhook_endpoints", sa.Column("key_id", TEXT))
    op.add_column("deliveries", sa.Column("told", TEXT))
