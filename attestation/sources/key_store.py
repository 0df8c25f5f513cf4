"""Keys and their versions. Secrets pass through the vault on the way in and out and are never in a listing."""

import json
from collections.abc import Iterator, Sequence
from datetime import datetime

from sqlalchemy import Connection, Row, bindparam, delete, func, insert, select, update

from attestation.broker.keys import MAX_SECRET_BYTES, TEST_LABEL, KeyKind, KeyRecord
from attestation.errors import Denied, Malformed
from attestation.sources.db import Database
from attestation.sources.envelope import Envelope, Vault
from attestation.sources.schema import key_versions, keys, moment, ms
from attestation.sources.statement import Statement
from attestation.values import ResourcePath, Secret

NO_LIMIT = (1 << 63) - 1
_BY_PATH = select(keys).where(keys.c.path == bindparam("p"))
_BY_VERSION = select(key_versions).where(
    key_versions.c.path == bindparam("p"), key_versions.c.version == bindparam("v")
)
_COUNT = Statement(
    update(keys)
    .where(keys.c.path == bindparam("p"), keys.c.releases < bindparam("most"))
    .values(releases=keys.c.releases + 1)
)


class KeyStore:
    """Every method is one transaction, or part of the caller's where it takes a connection."""

    def __init__(self, database: Database, vault: Vault) -> None:
        self._db, self._vault = database, vault

    def put(
        self,
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
        """
        if len(secret) > MAX_SECRET_BYTES:
            raise Malformed("secret-size", "secret is too long", expected=MAX_SECRET_BYTES, got=len(secret))
        with self._db.change() as connection:
            row = connection.execute(select(keys).where(keys.c.path == str(path)).with_for_update()).one_or_none()
            version = 1 if row is None else row.current + 1
            if expected is not None and expected != version - 1:
                raise Denied("key-version", "somebody else stored this key", expected=expected, got=version - 1)
            if row is None:
                connection.execute(
                    insert(keys),
                    {
                        "path": str(path),
                        "repository": path.repository,
                        "kind": str(kind),
                        "labels": json.dumps(sorted(set(labels))),
                        "policy": policy or "",
                        "current": version,
                        "releases": 0,
                        "created": ms(now),
                    },
                )
            else:
                changed = {"current": version} | ({} if policy is None else {"policy": policy})
                connection.execute(update(keys).where(keys.c.path == str(path)).values(**changed))
            envelope = self._vault.seal(secret, path=str(path), version=version)
            connection.execute(insert(key_versions), _row(path, version, envelope, now))
        return version

    def get(self, path: ResourcePath) -> KeyRecord | None:
        """Metadata, None where there is no such key. `releases` may lag; `count_release` counts."""
        return self._db.remember(("key", path), lambda: self._read(path))

    def _read(self, path: ResourcePath) -> KeyRecord | None:
        with self._db.read() as connection:
            row = connection.execute(_BY_PATH, {"p": str(path)}).one_or_none()
        return None if row is None else _record(row)

    def secret(self, path: ResourcePath, version: int) -> Secret:
        """The secret of one version. Callers hold a grant, or are the operator's own tools."""
        envelope = self._db.remember(("version", path, version), lambda: self._envelope(path, version))
        return self._vault.open(envelope, path=str(path), version=version)

    def _envelope(self, path: ResourcePath, version: int) -> Envelope:
        with self._db.read() as connection:
            row = connection.execute(_BY_VERSION, {"p": str(path), "v": version}).one_or_none()
        if row is None:
            raise Malformed("key-version", "no such version", where=str(path), got=version)
        return Envelope(root=row.root, wrapped=row.wrapped, sealed=row.sealed)

    def list(self, repository: str | None = None) -> tuple[KeyRecord, ...]:
        """All keys, or those of one repository, by path."""
        query = select(keys).order_by(keys.c.path)
        if repository is not None:
            query = query.where(keys.c.repository == repository)
        with self._db.read() as connection:
            return tuple(_record(row) for row in connection.execute(query))

    def versions(self, path: ResourcePath) -> tuple[int, ...]:
        """Versions that can still be opened, oldest first."""
        query = select(key_versions.c.version).where(key_versions.c.path == str(path)).order_by(key_versions.c.version)
        with self._db.read() as connection:
            return tuple(connection.execute(query).scalars())

    def delete(self, path: ResourcePath) -> bool:
        """Crypto-shred every version; false where there was none."""
        with self._db.change() as connection:
            connection.execute(delete(key_versions).where(key_versions.c.path == str(path)))
            return connection.execute(delete(keys).where(keys.c.path == str(path))).rowcount == 1

    def set_policy(self, path: ResourcePath, policy: str) -> bool:
        """Replace the key's own release policy; false where there is no such key."""
        with self._db.change() as connection:
            changed = connection.execute(update(keys).where(keys.c.path == str(path)).values(policy=policy))
            return changed.rowcount == 1

    def count_release(self, connection: Connection, path: ResourcePath, most: int | None) -> None:
        """Count one release inside the caller's transaction; Denied where the limit was reached meanwhile."""
        if _COUNT.run(connection, {"p": str(path), "most": NO_LIMIT if most is None else most}) != 1:
            raise Denied("releases-exhausted", "the key was deleted or released as often as it may be", expected=most)

    def only_test_keys(self) -> bool:
        """Whether every stored key is labelled `test`."""
        with self._db.read() as connection:
            rows = connection.execute(select(keys.c.labels)).scalars()
            return all(TEST_LABEL in json.loads(labels) for labels in rows)

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


def _record(row: Row[tuple[object, ...]]) -> KeyRecord:
    return KeyRecord(
        path=ResourcePath.parse(row.path),
        kind=KeyKind(row.kind),
        labels=tuple(json.loads(row.labels)),
        policy=row.policy,
        current_version=row.current,
        releases=row.releases,
        created=moment(row.created),
    )
