"""Reference values: versioned, with an expiry that is enforced and the provenance of each."""

import json
from datetime import datetime, timedelta

from sqlalchemy import func, insert, select

from attestation.appraise.rules import ReferenceValue
from attestation.errors import Malformed
from attestation.sources.db import Database
from attestation.sources.schema import moment, ms, reference_values
from attestation.values import JsonValue

DEFAULT_LIFETIME = timedelta(days=365)  # upstream writes now + 12 months, and never looks at it
MAX_VALUE_BYTES = 256 * 1024
MAX_NAME = 256


class ReferenceStore:
    """The newest version of a name is in force until it expires."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def put(self, name: str, value: JsonValue, *, expires: datetime, provenance: str, now: datetime) -> int:
        """Add a version; returns its number."""
        text = json.dumps(value, separators=(",", ":"))
        if not 0 < len(name) <= MAX_NAME or len(text) > MAX_VALUE_BYTES:
            raise Malformed("reference-value", "name or value is too long", where=name[:80], expected=MAX_VALUE_BYTES)
        with self._db.change() as connection:
            mine = reference_values.c.name == name
            newest = connection.execute(select(func.max(reference_values.c.version)).where(mine)).scalar() or 0
            connection.execute(
                insert(reference_values),
                {
                    "name": name,
                    "version": newest + 1,
                    "value": text,
                    "expires": ms(expires),
                    "provenance": provenance,
                    "created": ms(now),
                },
            )
        return newest + 1

    def raw(self, name: str, now: datetime) -> JsonValue:
        """The JSON value in force, None where there is none or it has expired: what Rego and the KBS API see."""
        query = (
            select(reference_values.c.value, reference_values.c.expires)
            .where(reference_values.c.name == name)
            .order_by(reference_values.c.version.desc())
            .limit(1)
        )
        with self._db.read() as connection:
            row = connection.execute(query).one_or_none()
        if row is None or row.expires <= ms(now):
            return None
        value: JsonValue = json.loads(row.value)
        return value

    def get(self, name: str) -> ReferenceValue | None:
        """The newest version, expired or not: checks say which."""
        return self._db.remember(("reference", name), lambda: self._read(name))

    def _read(self, name: str) -> ReferenceValue | None:
        query = (
            select(reference_values)
            .where(reference_values.c.name == name)
            .order_by(reference_values.c.version.desc())
            .limit(1)
        )
        with self._db.read() as connection:
            row = connection.execute(query).one_or_none()
        if row is None:
            return None
        value = json.loads(row.value)
        values = value if isinstance(value, list) else [value]
        return ReferenceValue(
            name=name,
            values=tuple(str(item).lower() for item in values),
            expires=moment(row.expires),
            provenance=row.provenance,
        )

    def names(self) -> tuple[str, ...]:
        """All names."""
        query = select(reference_values.c.name).distinct().order_by(reference_values.c.name)
        with self._db.read() as connection:
            return tuple(connection.execute(query).scalars())

    def all_raw(self, now: datetime) -> dict[str, JsonValue]:
        """Every value in force, for engines that take them as data."""
        return {name: value for name in self.names() if (value := self.raw(name, now)) is not None}
