"""Keys and their versions. Secrets pass through the vault on the way in and out and are never in a listing."""

import json
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, bindparam, delete, func, insert, select, update

from attestation.broker.keys import MAX_SECRET_BYTES, KeyKind, KeyRecord
from attestation.errors import Denied, Malformed, Unavailable
from attestation.sources.configuration import Configuration
from attestation.sources.configuration_change import CHANGED, Change
from attestation.sources.db import Database
from attestation.sources.envelope import Envelope, Vault
from attestation.sources.schema import AUDIT_STREAM, audit, key_versions, keys, moment, ms
from attestation.sources.sheets import number_of, sheet_of
from attestation.sources.statement import Statement
from attestation.values import ResourcePath, Secret

NO_LIMIT = (1 << 63) - 1
MAX_COUNTED = 1000  # limits up to here are counted in the log, in a millisecond at most; larger ones in `keys` alone
_RELEASES = select(keys.c.releases).where(keys.c.path == bindparam("p"))


def _recorded(path: ColumnElement[str]) -> Select[int]:
    """How often the log says that this key was released, since a key of this name was deleted."""
    mine = (audit.c.stream == AUDIT_STREAM) & (audit.c.subject == path)
    earlier = audit.alias()
    deleted = (earlier.c.stream == AUDIT_STREAM) & (earlier.c.subject == path) & (earlier.c.event == "key-deleted")
    since = select(func.coalesce(func.max(earlier.c.seq), 0)).where(deleted).scalar_subquery()
    return select(func.count()).select_from(audit).where(mine, audit.c.event == "released", audit.c.seq > since)


_RECORDED = Statement(_recorded(bindparam("p")))
_BY_VERSION = select(key_versions).where(
    key_versions.c.path == bindparam("p"), key_versions.c.version == bindparam("v")
)
_COUNT = Statement(
    update(keys)
    .where(keys.c.path == bindparam("p"), keys.c.releases < bindparam("most"))
    .values(releases=keys.c.releases + 1)
)


class KeyStore:
    """Every method is one transaction, or part of the caller's where it takes a change or a connection."""

    def __init__(self, database: Database, vault: Vault, configuration: Configuration) -> None:
        self._db, self._vault, self._configuration = database, vault, configuration

    def put(
        self,
        change: Change,
        path: ResourcePath,
        secret: Secret,
        *,
        kind: KeyKind,
        now: datetime,
        labels: Sequence[str] = (),
        policy: str | None = None,
        expected: int | None = None,
    ) -> int:
        """Store a new key, or a new version of a known one (labels stay; the policy stays unless given).

        `expected` is the version that the caller saw, 0 for no key: another one is Denied.
        Raises Malformed or Unavailable.
        """
        if len(secret) > MAX_SECRET_BYTES:
            raise Malformed("secret-size", "secret is too long", expected=MAX_SECRET_BYTES, got=len(secret))
        # Sealed before anything is locked that releases need: the root key's provider may be far away.
        newest = select(keys.c.current).where(keys.c.path == str(path))
        version = 1 + (change.connection.execute(newest).scalar() or 0)
        envelope = self._vault.seal(secret, path=str(path), version=version)
        sheet = sheet_of(str(path))
        row = change.rows(sheet).get((str(path),))
        known = 0 if row is None else row.current
        if expected is not None and expected != known:
            raise Denied("key-version", "somebody else stored this key", expected=expected, got=known)
        if known != version - 1:
            raise Unavailable(CHANGED, "the row was changed meanwhile", where=sheet.name)
        if row is None:
            made = {"path": str(path), "repository": path.repository, "kind": str(kind), "created": ms(now)}
            made |= {"labels": json.dumps(sorted(set(labels))), "policy": policy or "", "current": version}
            change.put(sheet, {**made, "releases": 0, "sheet": number_of(str(path))})
        else:
            kept = row.policy if policy is None else policy
            change.put(sheet, row._replace(current=version, policy=kept)._asdict())
        change.connection.execute(insert(key_versions), _row(path, version, envelope, now))
        return version

    def get(self, path: ResourcePath) -> KeyRecord | None:
        """Metadata, None where there is no such key. `releases` may lag; `count_release` counts."""
        return self._configuration.remember(("key", path), lambda: self._read(path))

    def _read(self, path: ResourcePath) -> KeyRecord | None:
        row = self._configuration.rows(sheet_of(str(path))).get((str(path),))
        if row is None:
            return None
        with self._db.read() as connection:
            return _record(row, connection.execute(_RELEASES, {"p": str(path)}).scalar() or 0)

    def secret(self, path: ResourcePath, version: int) -> Secret:
        """The secret of one version. Callers hold a grant, or are the operator's own tools."""
        envelope = self._configuration.remember(("version", path, version), lambda: self._envelope(path, version))
        return self._vault.open(envelope, path=str(path), version=version)

    def _envelope(self, path: ResourcePath, version: int) -> Envelope:
        with self._db.read() as connection:
            row = connection.execute(_BY_VERSION, {"p": str(path), "v": version}).one_or_none()
        if row is None:
            raise Malformed("key-version", "no such version", where=str(path), got=version)
        return Envelope(root=row.root, wrapped=row.wrapped, sealed=row.sealed)

    def list(self, repository: str | None = None) -> tuple[KeyRecord, ...]:
        """All keys, or those of one repository, by path."""
        query = select(keys.c.path, keys.c.releases)
        if repository is not None:
            query = query.where(keys.c.repository == repository)
        with self._db.read() as connection:
            releases = {row.path: row.releases for row in connection.execute(query)}
        rows = (self._configuration.rows(sheet_of(path)).get((path,)) for path in sorted(releases))
        return tuple(_record(row, releases[row.path]) for row in rows if row is not None)

    def versions(self, path: ResourcePath) -> tuple[int, ...]:
        """Versions that can still be opened, oldest first."""
        query = select(key_versions.c.version).where(key_versions.c.path == str(path)).order_by(key_versions.c.version)
        with self._db.read() as connection:
            return tuple(connection.execute(query).scalars())

    def delete(self, change: Change, path: ResourcePath) -> bool:
        """Crypto-shred every version; false where there was none."""
        if not change.remove(sheet_of(str(path)), str(path)):
            return False
        change.connection.execute(delete(key_versions).where(key_versions.c.path == str(path)))
        return True

    def set_policy(self, change: Change, path: ResourcePath, policy: str) -> bool:
        """Replace the key's own release policy; false where there is no such key."""
        sheet = sheet_of(str(path))
        row = change.rows(sheet).get((str(path),))
        if row is None:
            return False
        change.put(sheet, row._replace(policy=policy)._asdict())
        return True

    def count_release(self, connection: Connection, path: ResourcePath, most: int | None) -> None:
        """Count one release, which is in the audit log already, inside the caller's transaction.

        Denied where the limit was reached meanwhile, by the counter or by the log.
        """
        if _COUNT.run(connection, {"p": str(path), "most": NO_LIMIT if most is None else most}) != 1:
            raise Denied("releases-exhausted", "the key was deleted or released as often as it may be", expected=most)
        if most is None or most > MAX_COUNTED:
            return
        row = _RECORDED.one(connection, {"p": str(path)})
        if row is not None and row[0] > most:
            raise Denied("releases-exhausted", "the log has as many releases as there may be", expected=most)

    def miscounted(self) -> tuple[tuple[str, int, int], ...]:
        """Keys whose counter is not the number of releases that the log has: path and both."""
        recorded = _recorded(keys.c.path).correlate(keys).scalar_subquery()
        query = select(keys.c.path, keys.c.releases, recorded).where(keys.c.releases != recorded).order_by(keys.c.path)
        with self._db.read() as connection:
            return tuple((row[0], row[1], row[2]) for row in connection.execute(query))

    def recount(self) -> None:
        """Set those counters to what the log has."""
        with self._db.change() as connection:
            recorded = _recorded(keys.c.path).correlate(keys).scalar_subquery()
            connection.execute(update(keys).where(keys.c.releases != recorded).values(releases=recorded))

    def only_test_keys(self) -> bool:
        """Whether every stored key is labelled `test`."""
        return all(record.is_test for record in self.list())

    def rewrap(self, *, everything: bool = False) -> int:
        """Wrap data keys with the root key that is current for their path; returns how many were wrapped again.

        Readers are not disturbed: each version changes in a transaction of its own. `everything` also wraps what
        names the current root already, for providers that keep versions under one name.
        """
        done = 0
        for path, version, root in self._sealed():
            if root == self._vault.root_for(path).name and not everything:
                continue
            with self._db.change() as connection:
                where = (key_versions.c.path == path) & (key_versions.c.version == version)
                row = connection.execute(select(key_versions).where(where).with_for_update()).one_or_none()
                if row is None:
                    continue
                old = Envelope(root=row.root, wrapped=row.wrapped, sealed=row.sealed)
                new = self._vault.rewrap(old, path=path, version=version)
                connection.execute(update(key_versions).where(where).values(root=new.root, wrapped=new.wrapped))
                done += 1
        return done

    def open_all(self) -> int:
        """Open every version once; returns how many. Whatever a single release would raise, this raises."""
        count = 0
        for path, version, _root in self._sealed():
            self._vault.open(self._envelope(ResourcePath.parse(path), version), path=path, version=version)
            count += 1
        return count

    @property
    def root_names(self) -> tuple[str, ...]:
        """Root keys that are configured, those that wrap first."""
        return self._vault.root_names

    def roots(self) -> dict[str, int]:
        """How many versions each root key wraps."""
        query = select(key_versions.c.root, func.count()).group_by(key_versions.c.root)
        with self._db.read() as connection:
            return {row[0]: row[1] for row in connection.execute(query)}

    def _sealed(self) -> Iterator[tuple[str, int, str]]:
        with self._db.read() as connection:
            rows = connection.execute(select(key_versions.c.path, key_versions.c.version, key_versions.c.root)).all()
        return ((row.path, row.version, row.root) for row in rows)


def _row(path: ResourcePath, version: int, envelope: Envelope, now: datetime) -> dict[str, object]:
    return {
        "path": str(path),
        "version": version,
        "root": envelope.root,
        "wrapped": envelope.wrapped,
        "sealed": envelope.sealed,
        "created": ms(now),
    }


def _record(row: Any, releases: int) -> KeyRecord:
    return KeyRecord(
        path=ResourcePath.parse(row.path),
        kind=KeyKind(row.kind),
        labels=tuple(json.loads(row.labels)),
        policy=row.policy,
        current_version=row.current,
        releases=releases,
        created=moment(row.created),
    )
