"""The store: migrations, envelopes, the audit chain, and one nonce answered once however many ask.

One contract for both databases: every test with `kbs` runs on SQLite and on a real PostgreSQL.
"""

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import delete, insert, select, update

from attestation.broker.cookie import ChallengeCookies
from attestation.errors import Denied, Misconfigured, Unavailable, Untrusted
from attestation.ops.challenge import issue_challenge
from attestation.sources.audit import AuditLog, verify_chain
from attestation.sources.db import Database
from attestation.sources.dump import dump, load
from attestation.sources.envelope import FileRootKey, OneRoot, Vault
from attestation.sources.schema import audit, key_versions, metadata, sessions
from attestation.sources.sessions import CLOCKS_APART, Ended, InProgress, Session, SessionStore
from attestation.sources.signing import CHALLENGE, SigningKeys
from attestation.values import ResourcePath, Secret
from tests.attestation.broker.broker import GPU_POLICY, NOW, PATH, Broker, broker


@pytest.fixture
def kbs(where: str, tmp_path: Path) -> Iterator[Broker]:
    with broker(tmp_path, store=None if where.startswith("/") else where) as made:
        yield made


def test_migrations_make_the_declared_schema(kbs: Broker) -> None:
    """Alembic sees no difference between the migrated store and the tables in code."""
    with kbs.world.database.read() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []


def test_a_newer_store_is_refused(kbs: Broker, where: str) -> None:
    """Downgrades would misread it."""
    with kbs.world.database.write() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(Misconfigured) as caught:
        Database.open(where)
    assert caught.value.code == "store-newer"


def test_secrets_are_not_in_the_files(kbs: Broker, where: str, request: pytest.FixtureRequest) -> None:
    """Neither while stored, nor after deletion, in database and write-ahead log."""
    secret = b"find-me-if-you-can-0123456789"
    kbs.put(secret=secret)
    kbs.drop()
    folder = Path(where) if kbs.world.database.sqlite else request.getfixturevalue("server").folder
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert len(files) > 1
    for file in files:
        assert secret not in file.read_bytes(), file.name


@pytest.mark.parametrize("change", ["path", "version", "bit"])
def test_envelopes_do_not_move(kbs: Broker, change: str) -> None:
    """A row moved to another path or version, or changed, opens nothing."""
    kbs.put()
    kbs.put()
    other = ResourcePath.parse("default/other/key")
    kbs.put(other)
    with kbs.world.database.write() as connection:
        row = connection.execute(
            select(key_versions).where(key_versions.c.path == str(PATH), key_versions.c.version == 1)
        ).one()
        target = (str(other), 1) if change == "path" else (str(PATH), 2)
        sealed = bytes([row.sealed[0] ^ 1]) + row.sealed[1:] if change == "bit" else row.sealed
        if change == "bit":
            target = (str(PATH), 1)
        connection.execute(
            update(key_versions)
            .where(key_versions.c.path == target[0], key_versions.c.version == target[1])
            .values(sealed=sealed, wrapped=row.wrapped)
        )
    with pytest.raises(Untrusted) as caught:
        kbs.world.keys.secret(ResourcePath.parse(target[0]), target[1])
    assert caught.value.code == "envelope"


def test_rewrap_changes_the_root_and_nothing_else(tmp_path: Path) -> None:
    """Old and new root during the change; afterwards the old one is not needed."""
    from secrets import token_bytes

    old = FileRootKey.create(tmp_path / "old.key", token_bytes)
    new = FileRootKey.create(tmp_path / "new.key", token_bytes)
    first = Vault(OneRoot(old), token_bytes).seal(Secret(b"s"), path="a/b/c", version=1)
    second = Vault(OneRoot(new, (old,)), token_bytes).rewrap(first, path="a/b/c", version=1)
    assert second.sealed == first.sealed
    assert second.root == new.name != old.name
    assert Vault(OneRoot(new), token_bytes).open(second, path="a/b/c", version=1) == Secret(b"s")
    with pytest.raises(Misconfigured):
        Vault(OneRoot(new), token_bytes).open(first, path="a/b/c", version=1)


def _change(connection: Any, how: str) -> None:
    row = connection.execute(select(audit).where(audit.c.seq == 2)).one()
    if how == "edit":
        connection.execute(update(audit).where(audit.c.seq == 2).values(body=json.dumps({"by": "nobody"})))
    elif how == "drop":
        connection.execute(delete(audit).where(audit.c.seq == 2))
    elif how == "truncate":
        connection.execute(delete(audit).where(audit.c.seq >= 3))
    elif how == "forge":
        connection.execute(update(audit).where(audit.c.seq == 2).values(signature=b"\0" * 64))
    else:
        values = dict(row._mapping)
        connection.execute(insert(audit), values | {"seq": 4})


@pytest.mark.parametrize("how", ["edit", "drop", "truncate", "forge", "append"])
def test_audit_shows_every_change(kbs: Broker, how: str) -> None:
    """Edited, dropped, truncated, forged or appended entries break the chain."""
    for number in range(3):
        kbs.world.audit.record(event="test", subject=str(number), body={"by": "test"}, now=NOW)
    assert kbs.world.audit.verify() == 3
    with kbs.world.database.write() as connection:
        _change(connection, how)
    with pytest.raises(Untrusted):
        kbs.world.audit.verify()


def test_audit_needs_the_right_key(kbs: Broker) -> None:
    """Another key verifies nothing."""
    kbs.world.audit.record(event="test", subject="x", body={}, now=NOW)
    with pytest.raises(Untrusted) as caught:
        verify_chain(kbs.world.audit.entries(), Ed25519PrivateKey.generate().public_key())
    assert caught.value.code == "audit-signature"


def test_audit_appends_from_many_threads_form_one_chain(kbs: Broker) -> None:
    """Two replicas, eight threads, one sequence."""
    replica = AuditLog(kbs.world.database, kbs.world.audit._key)

    def write(log: AuditLog) -> None:
        for _ in range(10):
            log.record(event="test", subject="x", body={}, now=NOW)

    threads = [threading.Thread(target=write, args=(log,)) for log in (kbs.world.audit, replica) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert kbs.world.audit.verify() == 80


def challenge(kbs: Broker) -> Session:
    issued = issue_challenge(kbs.world, version="0.4.0", tee="snp", now=NOW)
    return Session.of(issued.cookie, issued.challenged)


def test_a_challenge_is_spent_once(kbs: Broker, where: str) -> None:
    """Sixteen outcomes with different bodies over two replicas: exactly one is stored, and the others are told which."""
    session = challenge(kbs)
    second = Database.open(where)
    told: list[Ended | None] = []

    def spend(number: int) -> None:
        database = kbs.world.database if number % 2 else second
        mine = Ended(body=f"{number:064}", jti=f"j{number}", token="t")
        told.append(database.commit(lambda c: SessionStore(database).end(c, session, mine)))

    threads = [threading.Thread(target=spend, args=(n,)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    second.close()
    (stored,) = {ended for ended in told if ended is not None}
    assert told.count(None) == 1
    assert SessionStore(kbs.world.database).attested(session) == stored.jti


def test_the_same_body_waits_then_repeats(kbs: Broker, where: str) -> None:
    """In progress, then the stored token, on another replica too; a different body never."""
    store, session = kbs.world.sessions, challenge(kbs)
    assert store.claim(session, "aa") is None
    assert isinstance(store.claim(session, "aa"), InProgress)
    with pytest.raises(Untrusted) as caught:
        store.claim(session, "bb")
    assert caught.value.code == "nonce-replayed"
    good = Ended(body="aa", jti="j", token="t")
    with kbs.world.database.write() as connection:
        assert store.end(connection, session, good) is None
    store.remember(session, good)
    store.leave(session)
    second = Database.open(where)
    replica = SessionStore(second)
    assert store.attested(session) == replica.attested(session) == "j"
    assert replica.claim(session, "aa") is None, "another replica learns it when it is to store its own"
    with second.write() as connection:
        told = replica.end(connection, session, Ended(body="aa", jti="other", token="other"))
    for ended in (store.claim(session, "aa"), told):
        assert isinstance(ended, Ended)
        assert ended.repeat("aa") == "t"
        with pytest.raises(Untrusted) as caught:
            ended.repeat("bb")
        assert caught.value.code == "nonce-replayed"
    second.close()


def test_what_was_not_decided_may_be_tried_again(kbs: Broker) -> None:
    """Nothing is stored before the outcome: not by a replica that died, and not where collateral was missing."""
    store, session = kbs.world.sessions, challenge(kbs)
    assert store.claim(session, "aa") is None
    store.leave(session)
    assert store.claim(session, "bb") is None
    assert store.attested(session) is None


def test_sweep_removes_only_what_no_clock_can_name(kbs: Broker) -> None:
    """A replica whose clock is ahead deletes nothing that one behind would accept a second time."""
    session = challenge(kbs)
    with kbs.world.database.write() as connection:
        kbs.world.sessions.end(connection, session, Ended(body="aa"))
    assert kbs.world.sessions.sweep(session.expires + CLOCKS_APART - timedelta(milliseconds=1)) == 0
    assert kbs.world.sessions.sweep(session.expires + CLOCKS_APART) == 1
    with kbs.world.database.read() as connection:
        assert connection.execute(select(sessions)).all() == []


def test_a_restored_broker_knows_no_challenge_of_before(kbs: Broker, tmp_path: Path) -> None:
    """What was spent on the challenge is not in the backup; so its cookie must not be good any more."""
    issued = issue_challenge(kbs.world, version="0.4.0", tee="snp", now=NOW)
    lines = list(dump(kbs.world.database))
    assert not any('"challenge"' in line for line in lines)
    assert any('"attestation"' in line for line in lines)
    (tmp_path / "restored").mkdir()
    again = Database.connect(str(tmp_path / "restored"))
    load(again, iter(lines))
    key = SigningKeys(again, kbs.world.vault).load(CHALLENGE, NOW)[0]
    again.close()
    with pytest.raises(Untrusted) as caught:
        ChallengeCookies(key).open(issued.cookie, now=NOW)
    assert caught.value.code == "session-unknown"


def test_release_limit_holds_under_concurrency(kbs: Broker) -> None:
    """Counted in the transaction that records the release."""
    kbs.put(policy=GPU_POLICY)
    done: list[int] = []

    def take(number: int) -> None:
        try:
            with kbs.world.database.write(durable=True) as connection:
                kbs.world.keys.count_release(connection, PATH, 3)
        except Denied:
            return
        done.append(number)

    threads = [threading.Thread(target=take, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) == 3


def test_nothing_leaves_without_its_audit_entry(kbs: Broker) -> None:
    """Where the log cannot be written, the release is not counted either: one transaction."""

    class Full(AuditLog):
        def append(self, *_args: Any, **_kwargs: Any) -> int:
            raise Unavailable("disk-full", "no space")

    kbs.put(policy=GPU_POLICY)
    from attestation.simulate.amd import MEASUREMENT

    kbs.references({"snp_launch_measurement": [MEASUREMENT.hex()]})
    visit = kbs.handshake()
    full = Full(kbs.world.database, kbs.world.audit._key)
    visit.broker = replace(kbs, world=replace(kbs.world, audit=full))
    with pytest.raises(Unavailable) as caught:
        visit.get()
    assert caught.value.code == "disk-full"
    record = kbs.world.keys.get(PATH)
    assert record is not None
    assert record.releases == 0
