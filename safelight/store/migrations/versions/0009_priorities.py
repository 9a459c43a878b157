"""Keys whose runs go before those of others."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"

IS_QUEUED = sa.text("status = 'queued'")


def upgrade() -> None:
    op.add_column("runs", sa.Column("rank", sa.Integer(), nullable=False, server_default="0"))
    columns = ["rank", "created_at", "number"]
    op.create_index("runs_queue", "runs", columns, sqlite_where=IS_QUEUED, postgresql_where=IS_QUEUED)
