"""How large a picture workers have memory for."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    op.add_column("placements", sa.Column("max_pixels", sa.BigInteger()))
