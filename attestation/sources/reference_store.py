"""Reference values: versioned, with an expiry that is enforced and the provenance of each."""

import json
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from attestation.appraise.rules import ReferenceValue
from attestation.errors import Malformed
from attestation.sources.configuration import Configuration
from attestation.sources.configuration_change import Change
from attestation.sources.schema import moment, ms
from attestation.sources.sheets import REFERENCES
from attestation.values import JsonValue

DEFAULT_LIFETIME = timedelta(days=365)  # upstream writes now + 12 months, and never looks at it
MAX_VALUE_BYTES = 256 * 1024
MAX_NAME = 256


def text_of(value: JsonValue) -> str:
    """A value as it is stored."""
    return json.dumps(value, separators=(",", ":"))


class ReferenceStore:
    """The newest version of a name is in force until it expires."""

    def __init__(self, configuration: Configuration) -> None:
        self._configuration = configuration

    def put(
        self, change: Change, name: str, value: JsonValue, *, expires: datetime, provenance: str, now: datetime
    ) -> int:
        """Add a version; returns its number. Raises Malformed."""
        text = text_of(value)
        if not 0 < len(name) <= MAX_NAME or len(text) > MAX_VALUE_BYTES:
            raise Malformed("reference-value", "name or value is too long", where=name[:80], expected=MAX_VALUE_BYTES)
        version = 1 + max((row.version for row in change.rows(REFERENCES).values() if row.name == name), default=0)
        row = {"name": name, "version": version, "value": text, "expires": ms(expires), "provenance": provenance}
        change.put(REFERENCES, {**row, "created": ms(now)})
        return version

    def raw(self, name: str, now: datetime) -> JsonValue:
        """The JSON value in force, None where there is none or it has expired: what Rego and the KBS API see."""
        row = self._newest().get(name)
        if row is None or row.expires <= ms(now):
            return None
        value: JsonValue = json.loads(row.value)
        return value

    def get(self, name: str) -> ReferenceValue | None:
        """The newest version, expired or not: checks say which."""
        return self._configuration.remember(("reference", name), lambda: self._read(name))

    def _read(self, name: str) -> ReferenceValue | None:
        row = self._newest().get(name)
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
        return tuple(sorted(self._newest()))

    def all_raw(self, now: datetime) -> dict[str, JsonValue]:
        """Every value in force, for engines that take them as data."""
        return {name: value for name in self.names() if (value := self.raw(name, now)) is not None}

    def _newest(self) -> Mapping[str, Any]:
        return self._configuration.remember("references", self._by_name)

    def _by_name(self) -> Mapping[str, Any]:
        return {row.name: row for row in sorted(self._configuration.rows(REFERENCES).values())}
