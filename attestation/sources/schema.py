"""The broker's tables: one schema for SQLite and PostgreSQL. Times are integers, milliseconds since 1970, UTC.

`migrations/` creates them; a test proves that both agree.
"""

from datetime import UTC, datetime

from sqlalchemy import BigInteger, Column, Index, Integer, LargeBinary, MetaData, String, Table, Text, text

HEAD = "0005"  # newest migration
AUDIT_STREAM = "broker"
# Entries that record a change of the configuration, as the condition of an index (configuration.py).
CHANGES = (
    "event IN ('key-stored', 'key-policy-set', 'key-deleted', 'policy-set', 'reference-set', 'user-added',"
    " 'user-revoked', 'revoked', 'unrevoked', 'quota-set', 'configuration-sealed',"
    " 'configuration-confirmed')"
)

metadata = MetaData()

# What a challenge was spent on. The cookie's SHA-256 is stored, never the cookie; refused evidence has no jti. Ordered
# by time: rows are added and swept at the ends, and there is no other index to keep up to date.
sessions = Table(
    "sessions",
    metadata,
    Column("expires", BigInteger, primary_key=True, autoincrement=False),
    Column("id", String(64), primary_key=True),
    Column("body", String(64), nullable=False),  # SHA-256 of the one body that was answered
    Column("jti", String(64), nullable=False),
    Column("token", Text, nullable=False),
)

attestations = Table(
    "attestations",
    metadata,
    Column("jti", String(64), primary_key=True),
    Column("expires", BigInteger, nullable=False),
    Column("chip_id", String(160), nullable=False),
    Column("record", Text, nullable=False),  # HMAC-SHA256 in hex, then JSON
    Index("attestations_expires", "expires"),
)

keys = Table(
    "keys",
    metadata,
    Column("path", String(390), primary_key=True),
    Column("repository", String(128), nullable=False),
    Column("kind", String(16), nullable=False),
    Column("labels", Text, nullable=False),
    Column("policy", Text, nullable=False),
    Column("current", Integer, nullable=False),
    Column("releases", BigInteger, nullable=False),
    Column("created", BigInteger, nullable=False),
    Column("sheet", Integer, nullable=False),  # sheets.py
    Index("keys_repository", "repository"),
    Index("keys_sheet", "sheet"),
)

# Deleting a row here is the crypto-shred: the data key exists nowhere else.
key_versions = Table(
    "key_versions",
    metadata,
    Column("path", String(390), primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("root", String(128), nullable=False),
    Column("wrapped", LargeBinary, nullable=False),
    Column("sealed", LargeBinary, nullable=False),
    Column("created", BigInteger, nullable=False),
)

# Append-only: the newest version of a name is in force. `kind` is native, rego-attestation or rego-resource.
policies = Table(
    "policies",
    metadata,
    Column("kind", String(24), primary_key=True),
    Column("name", String(160), primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("text", Text, nullable=False),
    Column("author", String(160), nullable=False),
    Column("created", BigInteger, nullable=False),
)

reference_values = Table(
    "reference_values",
    metadata,
    Column("name", String(256), primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("value", Text, nullable=False),  # JSON
    Column("expires", BigInteger, nullable=False),
    Column("provenance", Text, nullable=False),
    Column("created", BigInteger, nullable=False),
)

users = Table(
    "users",
    metadata,
    Column("name", String(128), primary_key=True),
    Column("role", String(32), nullable=False),
    Column("repositories", Text, nullable=False),
    Column("epoch", Integer, nullable=False),  # tokens of an older epoch are refused
    Column("created", BigInteger, nullable=False),
)

revocations = Table(
    "revocations",
    metadata,
    Column("kind", String(24), primary_key=True),  # token, tee-key, chip, gpu, firmware
    Column("value", String(200), primary_key=True),
    Column("reason", Text, nullable=False),
    Column("created", BigInteger, nullable=False),
)

# Signing keys of tokens, admin tokens and the audit log, sealed like any other secret; shared by replicas.
signing_keys = Table(
    "signing_keys",
    metadata,
    Column("purpose", String(24), primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("root", String(128), nullable=False),
    Column("wrapped", LargeBinary, nullable=False),
    Column("sealed", LargeBinary, nullable=False),
    Column("created", BigInteger, nullable=False),
)

audit = Table(
    "audit",
    metadata,
    Column("stream", String(128), primary_key=True),
    Column("seq", BigInteger, primary_key=True),
    Column("at", BigInteger, nullable=False),
    Column("event", String(48), nullable=False),
    Column("subject", String(390), nullable=False),
    Column("body", Text, nullable=False),
    Column("previous", String(64), nullable=False),
    Column("digest", String(64), nullable=False),
    Column("signature", LargeBinary, nullable=False),
    Index("audit_subject", "subject"),
    Index("audit_changes", "stream", "seq", sqlite_where=text(CHANGES), postgresql_where=text(CHANGES)),
)

# The lock that orders appends across replicas, and the end of the chain.
audit_heads = Table(
    "audit_heads",
    metadata,
    Column("stream", String(128), primary_key=True),
    Column("seq", BigInteger, nullable=False),
    Column("digest", String(64), nullable=False),
)

# Digests of portions of the configuration; the audit log has the digest over all of them (configuration.py).
sheets = Table(
    "sheets", metadata, Column("name", String(32), primary_key=True), Column("digest", String(64), nullable=False)
)

# A repository with limits of its own. Null is no limit.
tenants = Table(
    "tenants",
    metadata,
    Column("name", String(128), primary_key=True),
    Column("max_keys", BigInteger),
    Column("releases_per_hour", BigInteger),
    Column("attestations_per_minute", BigInteger),
    Column("created", BigInteger, nullable=False),
)

# What a tenant used in one window of time; `window` is its start in seconds.
usage = Table(
    "usage",
    metadata,
    Column("tenant", String(128), primary_key=True),
    Column("what", String(24), primary_key=True),
    Column("window", BigInteger, primary_key=True),
    Column("count", BigInteger, nullable=False),
)

# Who holds which key at present: one row for each guest, extended by a release after a new attestation.
leases = Table(
    "leases",
    metadata,
    Column("path", String(390), primary_key=True),
    Column("holder", String(64), primary_key=True),  # thumbprint of the TEE key
    Column("jti", String(64), nullable=False),
    Column("chip_id", String(160), nullable=False),
    Column("devices", Text, nullable=False),  # JSON
    Column("granted", BigInteger, nullable=False),
    Column("expires", BigInteger, nullable=False),
    Index("leases_expires", "expires"),
    Index("leases_jti", "jti"),
)

# One row: grows with every change of keys, policies, reference values and revocations, so that replicas may cache them.
epochs = Table("epochs", metadata, Column("id", Integer, primary_key=True), Column("value", BigInteger, nullable=False))


def ms(moment: datetime) -> int:
    """An aware time as stored."""
    return round(moment.timestamp() * 1000)


def moment(stored: int) -> datetime:
    """Inverse of `ms`."""
    return datetime.fromtimestamp(stored / 1000, UTC)
