"""What decides releases is bound to the audit log. Rows that are there stay unbound: see `store seal`.

A migration that bound them would bind whatever it found, for anybody who sets the number of the schema back.
"""

import hashlib

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
_CHANGES = sa.text(
    "event IN ('key-stored', 'key-policy-set', 'key-deleted', 'policy-set', 'reference-set', 'user-added',"
    " 'user-revoked', 'revoked', 'unrevoked', 'quota-set', 'configuration-sealed',"
    " 'configuration-confirmed')"
)


def upgrade() -> None:
    """Add digests, the sheet of each key, and the way to the newest change."""
    op.create_table(
        "sheets",
        sa.Column("name", sa.String(32), primary_key=True),
        sa.Column("digest", sa.String(64), nullable=False),
    )
    op.add_column("keys", sa.Column("sheet", sa.Integer(), nullable=False, server_default="0"))
    keys = sa.table("keys", sa.column("path"), sa.column("sheet"))
    connection = op.get_bind()
    for path in connection.execute(sa.select(keys.c.path)).scalars().all():
        number = hashlib.sha256(path.encode()).digest()[0]
        connection.execute(keys.update().where(keys.c.path == path).values(sheet=number))
    op.create_index("keys_sheet", "keys", ["sheet"])
    op.create_index("audit_changes", "audit", ["stream", "seq"], sqlite_where=_CHANGES, postgresql_where=_CHANGES)


def downgrade() -> None:
    """Drop them."""
    op.drop_index("audit_changes", "audit")
    op.drop_index("keys_sheet", "keys")
    op.drop_column("keys", "sheet")
    op.drop_table("sheets")
