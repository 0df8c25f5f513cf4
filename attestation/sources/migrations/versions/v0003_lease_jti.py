"""Leases are looked up by token id wherever a tenant's attestations are counted."""

from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add the index."""
    op.create_index("leases_jti", "leases", ["jti"])


def downgrade() -> None:
    """Drop it."""
    op.drop_index("leases_jti", "leases")
