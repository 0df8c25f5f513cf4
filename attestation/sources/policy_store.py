"""Policies: append-only versions per kind and name. The newest is in force; nothing is ever overwritten."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from attestation.errors import Denied
from attestation.sources.configuration import Configuration
from attestation.sources.configuration_change import Change
from attestation.sources.schema import moment, ms
from attestation.sources.sheets import POLICIES


class PolicyKind(StrEnum):
    """`release`: native conditions of a repository or `default`. The Rego kinds are upstream's two."""

    RELEASE = "release"
    REGO_ATTESTATION = "rego-attestation"
    REGO_RESOURCE = "rego-resource"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredPolicy:
    """One version of one policy."""

    kind: PolicyKind
    name: str
    version: int
    text: str
    author: str
    created: datetime


class PolicyStore:
    """Reads give the newest version; writes may demand that nobody wrote in between."""

    def __init__(self, configuration: Configuration) -> None:
        self._configuration = configuration

    def put(
        self,
        change: Change,
        kind: PolicyKind,
        name: str,
        text: str,
        *,
        author: str,
        now: datetime,
        expected: int | None = None,
    ) -> int:
        """Add a version. `expected` is the version that the author saw: another one is Denied (lost update)."""
        newest = max((row.version for row in change.rows(POLICIES).values() if _is(row, kind, name)), default=0)
        if expected is not None and expected != newest:
            raise Denied("policy-version", "somebody else changed this policy", expected=expected, got=newest)
        row = {"kind": str(kind), "name": name, "version": newest + 1, "text": text, "author": author}
        change.put(POLICIES, {**row, "created": ms(now)})
        return newest + 1

    def get(self, kind: PolicyKind, name: str) -> StoredPolicy | None:
        """The version in force."""
        return self._configuration.remember(("policy", kind, name), lambda: self._newest(kind, name))

    def _newest(self, kind: PolicyKind, name: str) -> StoredPolicy | None:
        return next(reversed(self.history(kind, name)), None)

    def history(self, kind: PolicyKind, name: str) -> tuple[StoredPolicy, ...]:
        """Every version, oldest first."""
        rows = (row for row in self._configuration.rows(POLICIES).values() if _is(row, kind, name))
        return tuple(_stored(row) for row in sorted(rows))

    def names(self, kind: PolicyKind) -> tuple[str, ...]:
        """Names that have a policy of this kind."""
        return self._configuration.remember(("policies", kind), lambda: self._names(kind))

    def _names(self, kind: PolicyKind) -> tuple[str, ...]:
        return tuple(sorted({row.name for row in self._configuration.rows(POLICIES).values() if row.kind == kind}))


def _is(row: Any, kind: PolicyKind, name: str) -> bool:
    return bool(row.kind == kind and row.name == name)


def _stored(row: Any) -> StoredPolicy:
    return StoredPolicy(
        kind=PolicyKind(row.kind),
        name=row.name,
        version=row.version,
        text=row.text,
        author=row.author,
        created=moment(row.created),
    )
