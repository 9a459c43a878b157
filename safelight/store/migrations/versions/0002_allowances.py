"""What keys may use and have used, and what workers say of their engines."""

import json
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

BATCH = 1000


def upgrade() -> None:
    _extend_runs()
    _extend_keys()
    _create_spent()
    _create_workers()


def _extend_runs() -> None:
    op.add_column("runs", sa.Column("num_images", sa.Integer()))
    op.add_column("runs", sa.Column("pixel_steps", sa.BigInteger()))
    op.add_column("runs", sa.Column("weight", sa.Double()))
    op.add_column("runs", sa.Column("device_ms", sa.Double()))
    _measure_runs()
    op.create_index("runs_by_key", "runs", ["key_id", "created_at", "num_images", "pixel_steps"], unique=False)


def _measure_runs() -> None:
    """What the runs that are there count for. What one is made of was JSON text only."""
    connection, last = op.get_bind(), 0
    page = sa.text("SELECT number, params FROM runs WHERE number > :last ORDER BY number LIMIT :limit")
    write = sa.text("UPDATE runs SET num_images = :num_images, pixel_steps = :pixel_steps WHERE number = :number")
    while rows := connection.execute(page, {"last": last, "limit": BATCH}).all():
        connection.execute(write, [{"number": row.number, **_measure(json.loads(row.params))} for row in rows])
        last = rows[-1].number


def _measure(params: dict[str, Any]) -> dict[str, int]:
    num_images = params.get("num_images_per_prompt", 1)
    pixels = params.get("height", 512) * params.get("width", 512)
    return {"num_images": num_images, "pixel_steps": pixels * params.get("num_inference_steps", 50) * num_images}


def _extend_keys() -> None:
    op.add_column("keys", sa.Column("origin_id", sa.Text()))
    op.add_column("keys", sa.Column("allowance", sa.Text()))
    op.execute("UPDATE keys SET origin_id = id")
    op.create_index("keys_by_origin", "keys", ["origin_id"], unique=False)


def _create_spent() -> None:
    op.create_table(
        "spent",
        sa.Column("key_id", sa.Text(), nullable=False),
        sa.Column("deployment", sa.Text(), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("is_day", sa.Boolean(), nullable=False),
        sa.Column("num_runs", sa.Integer(), nullable=False),
        sa.Column("num_images", sa.Integer(), nullable=False),
        sa.Column("pixel_steps", sa.BigInteger(), nullable=False),
        sa.Column("num_finished", sa.Integer(), nullable=False),
        sa.Column("device_ms", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("key_id", "deployment", "at", "is_day"),
    )
    is_exact = sa.text("NOT is_day")
    op.create_index("spent_exactly", "spent", ["at"], unique=False, sqlite_where=is_exact, postgresql_where=is_exact)


def _create_workers() -> None:
    op.create_table(
        "workers",
        sa.Column("worker_id", sa.Text(), nullable=False),
        sa.Column("heard_at", sa.Double(), nullable=False),
        sa.Column("figures", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("worker_id"),
    )
