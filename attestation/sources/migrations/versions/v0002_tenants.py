"""Tenants with quotas, and leases."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add the three tables."""
    op.create_table(
        "tenants",
        sa.Column("name", sa.String(128), primary_key=True),
        sa.Column("max_keys", sa.BigInteger()),
        sa.Column("releases_per_hour", sa.BigInteger()),
        sa.Column("attestations_per_minute", sa.BigInteger()),
        sa.Column("created", sa.BigInteger(), nullable=False),
    )
    op.create_table(
        "usage",
        sa.Column("tenant", sa.String(128), primary_key=True),
        sa.Column("what", sa.String(24), primary_key=True),
        sa.Column("window", sa.BigInteger(), primary_key=True, autoincrement=False),
        sa.Column("count", sa.BigInteger(), nullable=False),
    )
    op.create_table(
        "leases",
        sa.Column("path", sa.String(390), primary_key=True),
        sa.Column("holder", sa.String(64), primary_key=True),
        sa.Column("jti", sa.String(64), nullable=False),
        sa.Column("chip_id", sa.String(160), nullable=False),
        sa.Column("devices", sa.Text(), nullable=False),
        sa.Column("granted", sa.BigInteger(), nullable=False),
        sa.Column("expires", sa.BigInteger(), nullable=False),
    )
    op.create_index("leases_expires", "leases", ["expires"])


def downgrade() -> None:
    """Drop them."""
    op.drop_table("leases")
    op.drop_table("usage")
    op.drop_table("tenants")
