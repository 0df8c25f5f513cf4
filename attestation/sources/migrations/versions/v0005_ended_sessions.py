"""Sessions hold what a challenge was spent on, ordered by time; nobody looks attestations up by chip."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Handshakes in flight start again: their cookies are unknown, which is 401."""
    op.drop_table("sessions")
    op.create_table(
        "sessions",
        sa.Column("expires", sa.BigInteger(), primary_key=True, autoincrement=False),
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("body", sa.String(64), nullable=False),
        sa.Column("jti", sa.String(64), nullable=False),
        sa.Column("token", sa.Text(), nullable=False),
    )
    op.drop_index("attestations_chip", "attestations")


def downgrade() -> None:
    """The table of before, empty."""
    op.create_index("attestations_chip", "attestations", ["chip_id"])
    op.drop_table("sessions")
    op.create_table(
        "sessions",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("tee", sa.String(32), nullable=False),
        sa.Column("nonce", sa.String(64), nullable=False, unique=True),
        sa.Column("expires", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("body", sa.String(64), nullable=False),
        sa.Column("claimed", sa.BigInteger(), nullable=False),
        sa.Column("jti", sa.String(64), nullable=False),
        sa.Column("token", sa.Text(), nullable=False),
        sa.Column("profile", sa.String(32), nullable=False),
    )
    op.create_index("sessions_expires", "sessions", ["expires"])
