"""Rows that decide releases, changed by somebody who writes to the database and has no root key: on either database.

What such a person can do without a trace, and what only a checkpoint shows, is in `docs/threat-model.md`.
"""

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from secrets import token_bytes
from typing import Any

import pytest
from alembic import command as alembic_command
from alembic.config import Config
from cryptography.hazmat.primitives.asymmetric import ec
from sqlalchemy import MetaData, Table, delete, insert, select, text, update

from attestation.broker.revocation import RevocationKind
from attestation.broker.roles import Role, Verb
from attestation.cli.main import cli, run
from attestation.cli.platform import platform_verifier
from attestation.cli.verification import BUILTIN
from attestation.crypto.backup import by_recipient, open_backup, seal_backup, to_recipient
from attestation.crypto.jwk import tee_key_of
from attestation.errors import AttestationError, Denied, Unavailable, Untrusted
from attestation.ops.administer import (
    add_user,
    authenticate_admin,
    issue_admin_token,
    revoke_user,
    set_key_policy,
    set_rego_policy,
    set_release_policy,
)
from attestation.ops.backup import create_backup, verify_backup
from attestation.ops.open_world import WorldOptions, close_world, open_world
from attestation.ops.readiness import probes
from attestation.ops.release import Credentials, authenticate
from attestation.ops.revocations import revoke, set_quota, unrevoke
from attestation.ops.root_keys import rotate_root
from attestation.simulate.amd import MEASUREMENT
from attestation.sources import configuration, schema
from attestation.sources.audit import AuditLog, entry_digest
from attestation.sources.audit_proof import check_extends, checkpoint
from attestation.sources.db import Database
from attestation.sources.envelope import FileRootKey
from attestation.sources.policy_store import PolicyKind
from attestation.sources.sheets import POLICIES, read_all, sheet_of
from attestation.sources.tenants import Quota
from attestation.values import ResourcePath
from tests.attestation.broker.broker import ADMIN, GPU_POLICY, NOW, PATH, Broker, Visit, broker, served
from tests.conformance.rust_client import Wire

STRICT = GPU_POLICY.replace('["hopper"]', '["blackwell"]')
OTHER = ResourcePath.parse("default/other/key")  # has no policy of its own
MINE = ec.generate_private_key(ec.SECP256R1())
TO, BY = to_recipient(tee_key_of(MINE.public_key()), token_bytes), by_recipient(MINE)
Action = Callable[[Broker], Any]  # at the broker that did it, or at another replica


def getting(visit: Visit, path: ResourcePath = PATH) -> Action:
    return lambda made: replace(visit, broker=made).get(path)


def own_policy(kbs: Broker) -> Action:
    kbs.put(policy=GPU_POLICY)
    visit = kbs.handshake()
    set_key_policy(kbs.world, ADMIN, PATH, STRICT, now=NOW)
    return getting(visit)


def default_policy(kbs: Broker) -> Action:
    kbs.put(OTHER)
    for policy in (GPU_POLICY, STRICT):
        set_release_policy(kbs.world, ADMIN, "default", policy, now=NOW)
    visit = kbs.handshake()
    return getting(visit, OTHER)


def rego_policy(kbs: Broker) -> Action:
    kbs.put(policy=GPU_POLICY)
    for answer in ("true", "false"):
        source = f"package policy\ndefault allow = {answer}\n"
        set_rego_policy(kbs.world, ADMIN, PolicyKind.REGO_RESOURCE, "resource-policy", source, now=NOW)
    return getting(kbs.handshake())


def references(kbs: Broker) -> Action:
    kbs.put(policy=GPU_POLICY)
    kbs.references({"snp_launch_measurement": ["00" * 48]})
    return lambda made: made.handshake().get()


def expired(kbs: Broker) -> Action:
    kbs.put(policy=GPU_POLICY)
    kbs.references({"snp_launch_measurement": [MEASUREMENT.hex()]}, lifetime=timedelta(0))
    return lambda made: made.handshake().get()


def revoked(kbs: Broker) -> Action:
    kbs.put(policy=GPU_POLICY)
    visit = kbs.handshake()
    attested = authenticate(kbs.world, Credentials(cookie=None, bearer=visit.token), now=NOW)
    revoke(kbs.world, ADMIN, RevocationKind.TOKEN, attested.jti, "stolen", now=NOW)
    return getting(visit)


def role(kbs: Broker) -> Action:
    add_user(kbs.world, ADMIN, "eve", Role.AUDITOR, ("alpha",), now=NOW)
    token = issue_admin_token(kbs.world, "eve", now=NOW)
    return lambda made: authenticate_admin(made.world, token, now=NOW).require(Verb.WRITE_GLOBAL)


def epoch(kbs: Broker) -> Action:
    add_user(kbs.world, ADMIN, "eve", Role.ADMIN, (), now=NOW)
    token = issue_admin_token(kbs.world, "eve", now=NOW)
    revoke_user(kbs.world, ADMIN, "eve", now=NOW)
    return lambda made: authenticate_admin(made.world, token, now=NOW)


def quota(kbs: Broker) -> Action:
    kbs.put(policy=GPU_POLICY)
    set_quota(kbs.world, ADMIN, "default", Quota(releases_per_hour=0), now=NOW)
    return getting(kbs.handshake())


ATTACKS = [
    pytest.param(own_policy, "UPDATE keys SET policy = replace(policy, 'blackwell', 'hopper')", id="key-policy"),
    pytest.param(own_policy, "UPDATE keys SET sheet = sheet + 1, policy = ''", id="key-policy-gone"),
    pytest.param(default_policy, "UPDATE policies SET text = replace(text, 'blackwell', 'hopper')", id="policy"),
    pytest.param(default_policy, "DELETE FROM policies WHERE version = 2", id="newest-policy-deleted"),
    pytest.param(default_policy, "UPDATE policies SET version = 3 WHERE version = 1", id="older-policy-newest"),
    pytest.param(
        default_policy,
        "INSERT INTO policies SELECT kind, name, 3, text, author, created FROM policies WHERE version = 1",
        id="policy-added",
    ),
    pytest.param(default_policy, "UPDATE policies SET name = 'x' WHERE version = 2", id="policy-moved"),
    pytest.param(rego_policy, "UPDATE policies SET text = replace(text, 'false', 'true')", id="rego"),
    pytest.param(rego_policy, "DELETE FROM policies WHERE version = 2", id="rego-deleted"),
    pytest.param(references, "DELETE FROM reference_values WHERE version = 2", id="reference-deleted"),
    pytest.param(references, f"UPDATE reference_values SET value = '[\"{MEASUREMENT.hex()}\"]'", id="reference"),
    pytest.param(expired, "UPDATE reference_values SET expires = expires * 2", id="reference-expiry"),
    pytest.param(revoked, "DELETE FROM revocations", id="revocation-deleted"),
    pytest.param(revoked, "UPDATE revocations SET value = 'x'", id="revocation-moved"),
    pytest.param(role, "UPDATE users SET role = 'admin', repositories = '[]'", id="role"),
    pytest.param(epoch, "UPDATE users SET epoch = 1", id="user-epoch"),
    pytest.param(quota, "UPDATE tenants SET releases_per_hour = NULL", id="quota"),
    pytest.param(quota, "DELETE FROM tenants", id="quota-deleted"),
]


@pytest.fixture
def kbs(where: str, tmp_path: Path) -> Iterator[Broker]:
    with broker(tmp_path, store=None if where.startswith("/") else where) as made:
        made.references({"snp_launch_measurement": [MEASUREMENT.hex()]})
        yield made


def write(kbs: Broker, *statements: str) -> None:
    """By somebody with the broker's own rights in the database, who also has every replica look again."""
    with kbs.world.database.write(durable=True) as connection:
        for statement in (*statements, "UPDATE epochs SET value = value + 1"):
            connection.exec_driver_sql(statement)
    kbs.world.database._checked = 0.0


@contextmanager
def replica(kbs: Broker, where: str, tmp_path: Path) -> Iterator[Broker]:
    """A broker that was started now."""
    root = None if where.startswith("/") else tmp_path / "root.key"
    world = open_world(WorldOptions(store=where, root_key=root), kbs.world.verifier, now=NOW)
    try:
        yield Broker(world=world)
    finally:
        close_world(world)


def command(where: str, tmp_path: Path, *argv: str) -> int:
    root = [] if where.startswith("/") else ["--root-key", str(tmp_path / "root.key")]
    return run(cli, [*argv, "--store", where, *root])


@pytest.mark.parametrize(("prepare", "statement"), ATTACKS)
def test_rows_of_others_release_nothing(
    kbs: Broker, where: str, tmp_path: Path, prepare: Callable[[Broker], Action], statement: str
) -> None:
    """Refused before. Afterwards a broker that knew the rows goes by those, and one that reads them refuses."""
    action = prepare(kbs)
    with pytest.raises(AttestationError) as before:
        action(kbs)
    write(kbs, statement)
    with pytest.raises(AttestationError) as after:
        action(kbs)
    assert after.value.code in {before.value.code, "configuration-changed"}
    with replica(kbs, where, tmp_path) as other, pytest.raises(Unavailable) as caught:
        action(other)
    assert caught.value.code == "configuration-changed"


@pytest.mark.parametrize(
    "statement",
    [
        pytest.param("UPDATE keys SET current = 1", id="older-version"),
        pytest.param("UPDATE keys SET kind = 'bundle'", id="kind"),
        pytest.param("UPDATE keys SET labels = '[\"test\"]'", id="label"),
        pytest.param("UPDATE keys SET repository = 'alpha'", id="repository"),
        pytest.param("UPDATE keys SET created = 0", id="created"),
        pytest.param("UPDATE sheets SET digest = '' WHERE name <> 'policies'", id="digest"),
        pytest.param("DELETE FROM sheets", id="digests-deleted"),
        pytest.param("INSERT INTO sheets VALUES ('x', 'y')", id="digest-added"),
        pytest.param("UPDATE audit SET body = '{}' WHERE event = 'key-stored'", id="entry"),
        pytest.param("UPDATE audit SET body = 'x' WHERE event = 'key-stored'", id="entry-no-json"),
        pytest.param("UPDATE audit SET at = 9223372036854775807 WHERE event = 'key-stored'", id="entry-no-time"),
        pytest.param("DELETE FROM audit WHERE event = 'key-stored'", id="entries-deleted"),
    ],
)
def test_whatever_is_changed_releases_nothing(kbs: Broker, where: str, tmp_path: Path, statement: str) -> None:
    """Columns of a key, digests, and the entries that name them: here and in a broker that starts now."""
    kbs.put(secret=b"o" * 32, policy=GPU_POLICY)
    kbs.put()
    visit = kbs.handshake()
    assert visit.get() == b"k" * 32
    write(kbs, statement)
    with replica(kbs, where, tmp_path) as other:
        with pytest.raises(Unavailable) as caught:
            replace(visit, broker=other).get()
        assert caught.value.code == "configuration-changed"
        for made in (kbs, other):
            with pytest.raises(Unavailable) as caught:
                probes(made.world)["configuration"](NOW)
            assert caught.value.code in {"configuration-changed", "configuration-rollback"}


def test_digests_that_fit_need_a_signature(kbs: Broker, where: str, tmp_path: Path) -> None:
    """Somebody who knows this code writes the digest of what he put there; the log names another."""
    action = own_policy(kbs)
    sheet = sheet_of(str(PATH))
    with kbs.world.database.write() as connection:
        connection.execute(update(schema.keys).values(policy=GPU_POLICY))
        digest = sheet.digest(sheet.read(connection))
        connection.execute(update(schema.sheets).where(schema.sheets.c.name == sheet.name).values(digest=digest))
    with replica(kbs, where, tmp_path) as other, pytest.raises(Unavailable) as caught:
        action(other)
    assert (caught.value.code, caught.value.where) == ("configuration-changed", "sheets")


def test_a_schema_that_was_set_back_binds_nothing(kbs: Broker, where: str, tmp_path: Path) -> None:
    """The migration runs again, over rows of somebody else, and they stay unbound."""
    own_policy(kbs)
    config = Config()
    config.set_main_option("script_location", str(Path(schema.__file__).parent / "migrations"))
    with kbs.world.database.write(durable=True) as connection:
        config.attributes["connection"] = connection
        alembic_command.downgrade(config, "0003")
    write(kbs, "UPDATE keys SET policy = ''")
    with replica(kbs, where, tmp_path) as other, pytest.raises(Unavailable) as caught:
        other.handshake()
    assert caught.value.code == "configuration-changed"


def _copy(kbs: Broker, *left_out: str) -> dict[str, list[Any]]:
    with kbs.world.database.read() as connection:
        return {
            table.name: [row._asdict() for row in connection.execute(select(table))]
            for table in schema.metadata.sorted_tables
            if table.name not in left_out
        }


def _revoke_and_take_it_out(kbs: Broker, *, mended: bool) -> int:
    """The entry of a revocation that was in force for one handshake, then out of rows and log, its gap closed or not."""
    earlier = _copy(kbs, "audit", "audit_heads", "attestations", "sessions")
    revoke(kbs.world, ADMIN, RevocationKind.CHIP, "aa" * 64, "stolen", now=NOW)
    gone = kbs.world.audit.verify()
    kbs.handshake().get()
    _put_back(kbs, earlier)
    with kbs.world.database.write() as connection:
        connection.execute(delete(schema.audit).where(schema.audit.c.seq == gone))
        if mended:
            _mend(connection, gone)
    return gone


def _put_back(kbs: Broker, rows: dict[str, list[Any]]) -> None:
    with kbs.world.database.write(durable=True) as connection:
        for name, held in rows.items():
            table = schema.metadata.tables[name]
            connection.execute(table.delete())
            if held:
                connection.execute(insert(table), held)


def test_an_older_configuration_without_its_log(kbs: Broker, where: str, tmp_path: Path) -> None:
    """Every row and digest of the moment before a revocation: the log has a newer change."""
    kbs.put(policy=GPU_POLICY)
    earlier = _copy(kbs, "audit", "audit_heads", "attestations", "sessions")
    action = revoked(kbs)
    with pytest.raises(Untrusted):
        action(kbs)
    _put_back(kbs, earlier)
    write(kbs)
    with pytest.raises(Untrusted) as before:
        action(kbs)
    assert before.value.code == "revoked"
    with replica(kbs, where, tmp_path) as other, pytest.raises(Unavailable) as caught:
        other.handshake()
    assert caught.value.code == "configuration-changed"
    assert command(where, tmp_path, "store", "verify") == 1


@pytest.mark.parametrize("mended", [False, True])
def test_an_older_configuration_and_a_change_taken_out_of_the_log(
    kbs: Broker, where: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], *, mended: bool
) -> None:
    """What was recorded after that change does not fit any more, however the gap is closed: nobody serves or changes."""
    kbs.put(policy=GPU_POLICY)
    gone = _revoke_and_take_it_out(kbs, mended=mended)
    with replica(kbs, where, tmp_path) as other:
        for action in (lambda: probes(other.world)["configuration"](NOW), other.put):
            with pytest.raises(Unavailable) as caught:
                action()
            assert caught.value.code == "configuration-changed"
            assert caught.value.where == f"audit entry {gone}"
    assert command(where, tmp_path, "serve", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0") == 8
    assert "error[configuration-changed]: audit entry" in capsys.readouterr().err
    assert command(where, tmp_path, "store", "seal") == 1


def _mend(connection: Any, gone: int) -> None:
    """Numbers, links and digests of what follows; the signatures are what they were."""
    rows = connection.execute(
        select(schema.audit).where(schema.audit.c.seq >= gone - 1).order_by(schema.audit.c.seq)
    ).all()
    previous = rows[0].digest
    for seq, row in enumerate(rows[1:], gone):
        digest = entry_digest("broker", seq, row.at, row.event, row.subject, row.body, previous)
        same = schema.audit.c.seq == row.seq
        connection.execute(update(schema.audit).where(same).values(seq=seq, previous=previous, digest=digest))
        previous = digest
    connection.execute(update(schema.audit_heads).values(seq=gone + len(rows) - 2, digest=previous))


def test_a_store_that_was_set_back_whole(kbs: Broker, where: str, tmp_path: Path) -> None:
    """A broker that has seen more refuses it. One that starts then does not: a checkpoint kept elsewhere does."""
    kbs.put(policy=GPU_POLICY)
    earlier = _copy(kbs, "attestations", "sessions")
    revoked(kbs)
    kept = checkpoint(kbs.world.audit, NOW)
    _put_back(kbs, earlier)
    write(kbs)
    with pytest.raises(Unavailable) as caught:
        kbs.handshake()
    assert caught.value.code == "configuration-rollback"
    with replica(kbs, where, tmp_path) as other:
        assert other.handshake().get() == b"k" * 32
        with pytest.raises(Untrusted) as found:
            check_extends(kept, other.world.audit.entries())
    assert found.value.code == "audit-rollback"


def test_a_store_that_was_set_back_before_anybody_looked(kbs: Broker) -> None:
    """Log and rows, right after the change: the broker that wrote it knows that there was one."""
    kbs.put(policy=GPU_POLICY)
    visit = kbs.handshake()
    chip = authenticate(kbs.world, Credentials(cookie=None, bearer=visit.token), now=NOW).facts.cpu.chip_id
    earlier = _copy(kbs, "attestations", "sessions")
    revoke(kbs.world, ADMIN, RevocationKind.CHIP, chip, "stolen", now=NOW)
    _put_back(kbs, earlier)
    with pytest.raises(Unavailable) as caught:
        visit.get()
    assert caught.value.code == "configuration-rollback"


@pytest.mark.parametrize("mended", [False, True])
def test_a_change_that_a_replica_never_saw(kbs: Broker, where: str, tmp_path: Path, *, mended: bool) -> None:
    """Taken out of log and rows as soon as it was made, as a trigger can: replicas that run notice by the minute."""
    kbs.put(policy=GPU_POLICY)
    with replica(kbs, where, tmp_path) as other:
        look = probes(other.world)["configuration"]
        look(NOW)
        kbs.handshake().get()
        other.world.configuration.suspect = True
        look(NOW)
        _revoke_and_take_it_out(kbs, mended=mended)
        other.world.configuration.suspect = True
        with pytest.raises(Unavailable) as caught:
            look(NOW)
        assert caught.value.code == "configuration-changed"
        with pytest.raises(Unavailable):
            other.handshake()


@pytest.mark.parametrize(
    "statement",
    [
        pytest.param("UPDATE keys SET created = X'00'", id="bytes-for-a-number"),
        pytest.param("UPDATE keys SET policy = X'00'", id="bytes-for-a-text"),
        pytest.param("UPDATE policies SET version = 'x' WHERE version = 2", id="text-for-a-number"),
        pytest.param("UPDATE audit SET at = 'x' WHERE event = 'policy-set'", id="entry-at"),
        pytest.param("UPDATE audit SET signature = 'x'", id="entry-signature"),
        pytest.param("UPDATE audit SET body = X'00' WHERE event = 'attested'", id="entry-body"),
        pytest.param("UPDATE epochs SET value = 'x'", id="epoch"),
    ],
)
def test_columns_of_another_type(tmp_path: Path, statement: str) -> None:
    """SQLite keeps them. A look that crashed instead would be the last one, and the broker would go on releasing."""
    with broker(tmp_path) as made:
        made.put(policy=GPU_POLICY)
        for policy in (GPU_POLICY, STRICT):
            set_release_policy(made.world, ADMIN, "default", policy, now=NOW)
        visit = made.handshake()
        with made.world.database.write() as connection:
            connection.exec_driver_sql(statement)
        with pytest.raises(Unavailable) as caught:
            probes(made.world)["configuration"](NOW)
        assert caught.value.code == "configuration-changed"
        with pytest.raises(Unavailable):
            visit.get()


def test_an_entry_that_borrows_a_digest_hides_no_change(kbs: Broker) -> None:
    """It comes after every other, and names the configuration that is in force: neither is what that digest says."""
    kbs.put(policy=GPU_POLICY)
    visit = kbs.handshake()
    visit.get()
    with kbs.world.database.write() as connection:
        newest = connection.execute(
            select(schema.audit).where(text(schema.CHANGES)).order_by(schema.audit.c.seq.desc()).limit(1)
        ).one()
        connection.execute(insert(schema.audit), {**newest._asdict(), "seq": newest.seq + 1_000_000})
    write(kbs)
    with pytest.raises(Unavailable):
        revoke(kbs.world, ADMIN, RevocationKind.CHIP, "aa" * 64, "stolen", now=NOW)
    with pytest.raises(Unavailable) as caught:
        visit.get()
    assert caught.value.code == "configuration-changed"


def test_no_change_covers_up_another(kbs: Broker) -> None:
    """An administrator's change of one row does not bind what somebody else did to its neighbours."""
    default_policy(kbs)
    write(kbs, "DELETE FROM policies WHERE version = 2")
    with pytest.raises(Unavailable) as caught:
        set_release_policy(kbs.world, ADMIN, "alpha", GPU_POLICY, now=NOW)
    assert caught.value.code == "configuration-changed"
    with kbs.world.database.read() as connection:
        assert [row[1] for row in read_all(connection)[POLICIES]] == ["default"]


def test_what_comes_in_during_a_change_is_not_bound(kbs: Broker) -> None:
    """The digest is of the rows that were verified and of what the change put there, and of nothing read later."""
    kbs.put(policy=GPU_POLICY)
    with kbs.world.configuration.change() as change:
        kbs.world.keys.set_policy(change, PATH, STRICT)
        change.connection.execute(text("UPDATE keys SET policy = ''"))
        change.record("key-policy-set", str(PATH), {"policy": ""}, NOW)
    with pytest.raises(Unavailable) as caught:
        kbs.world.keys.get(PATH)
    assert caught.value.code == "configuration-changed"


def test_releases_and_changes_of_one_key_wait_for_each_other(kbs: Broker, where: str, tmp_path: Path) -> None:
    """Both lock the log and then rows, on two replicas: no deadlock, and whatever was changed verifies."""
    kbs.put(policy=GPU_POLICY)
    visit = kbs.handshake()
    with replica(kbs, where, tmp_path) as other, ThreadPoolExecutor(4) as pool:

        def change(number: int) -> None:
            made = (kbs, other)[number % 2]
            set_key_policy(made.world, ADMIN, PATH, f"{GPU_POLICY}# {number}\n", now=NOW)

        changes = [pool.submit(change, number) for number in range(20)]
        releases = [pool.submit(replace(visit, broker=(kbs, other)[number % 2]).get) for number in range(40)]
        assert [job.result() for job in releases] == [b"k" * 32] * 40
        for job in changes:
            job.result()
        assert other.world.configuration.survey().problem is None
    assert command(where, tmp_path, "store", "verify") == 0


def test_a_counter_that_was_set_back(kbs: Broker, where: str, tmp_path: Path) -> None:
    """The log has as many releases as there may be; a new key of the same name starts anew."""
    once = GPU_POLICY + "[release]\nmax_releases = 1\n"
    kbs.put(policy=once)
    kbs.handshake().get()
    for statement in ("UPDATE keys SET releases = 0", "UPDATE keys SET releases = -5"):
        write(kbs, statement)
        with pytest.raises(Denied) as caught:
            kbs.handshake().get()
        assert (caught.value.code, caught.value.got) == ("policy-denied", "releases-exhausted")
    assert command(where, tmp_path, "store", "verify") == 1
    kbs.drop()
    kbs.put(policy=once)
    assert kbs.handshake().get() == b"k" * 32
    assert command(where, tmp_path, "store", "verify") == 0


def test_every_change_leaves_a_store_that_verifies(
    kbs: Broker, where: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All that administrators do, and a rotation of the root key: rows, digests and log agree, here and elsewhere."""
    for prepare in (own_policy, default_policy, rego_policy, revoked, role, quota):
        prepare(kbs)
    unrevoke(kbs.world, ADMIN, RevocationKind.CHIP, "aa" * 64, now=NOW)
    kbs.drop(OTHER)
    rotate_root(kbs.world, ADMIN, now=NOW)
    assert kbs.world.configuration.survey().problem is None
    with replica(kbs, where, tmp_path) as other:
        assert other.world.users.list() == kbs.world.users.list()
        assert other.world.keys.list() == kbs.world.keys.list()
        assert other.world.revocations.all() == kbs.world.revocations.all()
    assert command(where, tmp_path, "store", "verify", "--output", "json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["intact"], found["problems"], found["differences"]) == (True, [], [])
    assert command(where, tmp_path, "store", "seal") == 0
    assert kbs.world.audit.tail(1)[0].event != "configuration-sealed"


def test_verify_names_what_differs(kbs: Broker, where: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each row, with what the store has and what the log has."""
    for prepare in (own_policy, default_policy, revoked, role, quota):
        prepare(kbs)
    jti = kbs.world.revocations.all()[0].value
    write(
        kbs,
        "DELETE FROM revocations",
        "DELETE FROM policies WHERE version = 2",
        "INSERT INTO policies SELECT kind, 'alpha', 1, text, author, created FROM policies",
        "UPDATE users SET role = 'admin', repositories = 'x'",
        "UPDATE tenants SET releases_per_hour = NULL",
        "UPDATE reference_values SET provenance = 'nobody'",
        "UPDATE keys SET labels = '[\"test\"]', releases = 7 WHERE path = 'default/model/llama'",
    )
    assert command(where, tmp_path, "store", "verify", "--output", "json") == 1
    found = json.loads(capsys.readouterr().out)
    assert {(row["what"], row["fact"], row["stored"], row["logged"]) for row in found["differences"]} == {
        ("key default/model/llama", "labels", '["test"]', "[]"),
        ("key default/model/llama", "releases", "7", "0"),
        ("policy alpha version 1", "row", "there", "nothing"),
        ("policy default version 2", "row", "nothing", "there"),
        ("reference snp_launch_measurement version 1", "provenance", "nobody", "test"),
        (f"revocation token {jti}", "row", "nothing", "there"),
        ("tenant default", "releases_per_hour", "null", "0"),
        ("user eve", "repositories", "x", '["alpha"]'),
        ("user eve", "role", "admin", "auditor"),
    }
    assert found["problems"][0].startswith("[configuration-changed] keys/")
    assert command(where, tmp_path, "store", "verify") == 1
    assert f"revocation token {jti}: row is nothing in the store, there in the log" in capsys.readouterr().out
    assert command(where, tmp_path, "store", "seal", "--accept-differences") == 0
    capsys.readouterr()
    assert command(where, tmp_path, "store", "verify") == 0, capsys.readouterr().out
    kbs.world.database._checked = 0.0
    record = kbs.world.keys.get(PATH)
    assert record is not None
    assert (record.labels, record.releases) == (("test",), 0)
    write(kbs, "UPDATE users SET role = 'operator'")
    assert command(where, tmp_path, "store", "verify") == 1
    assert "user eve: role is operator in the store, admin in the log" in capsys.readouterr().out


def test_who_answers_for_rows_binds_them(
    kbs: Broker, where: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not by itself: what the log does not explain has to be accepted, by name, and is in the log then."""
    action = own_policy(kbs)
    write(kbs, "UPDATE keys SET policy = replace(policy, 'blackwell', 'hopper')")
    assert command(where, tmp_path, "store", "seal") == 1
    assert "error[store-differences]" in capsys.readouterr().err
    with replica(kbs, where, tmp_path) as other, pytest.raises(Unavailable):
        action(other)
    capsys.readouterr()
    assert command(where, tmp_path, "store", "seal", "--accept-differences", "--output", "json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [(row["what"], row["fact"]) for row in found["differences"]] == [(f"key {PATH}", "policy")]
    kbs.world.database._checked = 0.0
    assert action(kbs) == b"k" * 32
    (entry,) = kbs.world.audit.about("configuration")
    assert (entry.event, entry.body["rows"]) == ("configuration-sealed", 2)
    assert entry.body["accepted"] == found["differences"]
    assert command(where, tmp_path, "store", "verify") == 0
    kbs.drop()
    assert command(where, tmp_path, "store", "verify") == 0


def test_guests_and_balancers_are_told(tmp_path: Path) -> None:
    """503 and to come back; which of the probes, and nothing about why. As soon as the row is back, the key."""
    with broker(tmp_path) as made:
        made.references({"snp_launch_measurement": [MEASUREMENT.hex()]})
        made.put(policy=GPU_POLICY)
        visit = made.handshake()
        with served(made) as running:
            guest, office = Wire(running.url), Wire(running.admin_url)
            for created, status, shown in ((0, 200, b"1.0"), (1, 503, b"0.0"), (-1, 200, b"1.0")):
                write(made, f"UPDATE keys SET created = created + {created}")
                made.world.configuration.suspect, running.service.health._checked = True, float("-inf")
                reply = guest.call("GET", "/readyz")
                assert reply.status == status
                assert (b'"instance": "configuration"' in reply.body.replace(b'":"', b'": "')) is (status == 503)
                reply = guest.call(
                    "GET", f"/kbs/v0/resource/{PATH}", headers={"authorization": f"Bearer {visit.token}"}
                )
                assert (reply.status, reply.header("retry-after") is not None) == (status, status == 503)
                assert b'kata_gpu_kbs_ready{check="configuration"} ' + shown in office.call("GET", "/metrics").body
            guest.close()
            office.close()


def test_a_broker_looks_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where nobody asks whether it is ready."""
    monkeypatch.setattr("attestation.service.upkeep.SWEEP_S", 0.0)
    monkeypatch.setattr("attestation.service.upkeep.LOOK_S", 0.05)
    monkeypatch.setattr("attestation.ops.readiness.SURVEY_S", 0.0)
    monkeypatch.setattr("attestation.service.health.FRESH_S", 0.0)
    with broker(tmp_path) as made:
        made.put(policy=GPU_POLICY)
        with served(made):
            write(made, "UPDATE keys SET policy = ''")
            until = time.monotonic() + 20
            while not made.world.audit.about("configuration") and time.monotonic() < until:
                time.sleep(0.02)
        found = [entry.event for entry in made.world.audit.about("configuration")]
    assert found == ["configuration-refused"]


def test_a_defect_ends_one_look_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a sweep raises: certificates are renewed, rows swept and compared afterwards as before."""
    monkeypatch.setattr("attestation.service.upkeep.SWEEP_S", 0.0)
    monkeypatch.setattr("attestation.service.upkeep.LOOK_S", 0.01)
    looks: list[int] = []

    def sweep(_now: object) -> int:
        looks.append(len(looks))
        raise ZeroDivisionError

    with broker(tmp_path) as made:
        monkeypatch.setattr(type(made.world.sessions), "sweep", lambda _self, now: sweep(now))
        with served(made):
            until = time.monotonic() + 20
            while len(looks) < 3 and time.monotonic() < until:
                time.sleep(0.01)
    assert len(looks) >= 3


@pytest.mark.parametrize("statement", ["UPDATE epochs SET value = 1", "DELETE FROM epochs"])
def test_an_epoch_that_was_set_back(kbs: Broker, where: str, tmp_path: Path, statement: str) -> None:
    """So that other replicas go on with what was in force: until they look at everything again, and no longer."""
    kbs.put(policy=GPU_POLICY)
    visit = kbs.handshake()
    with replica(kbs, where, tmp_path) as other:
        there = replace(visit, broker=other)
        assert there.get() == b"k" * 32
        before = _copy(kbs)["epochs"]
        set_key_policy(kbs.world, ADMIN, PATH, STRICT, now=NOW)
        _put_back(kbs, {"epochs": before})
        assert there.get() == b"k" * 32
        with kbs.world.database.write(durable=True) as connection:
            connection.exec_driver_sql(statement)
        for action in (lambda: probes(other.world)["configuration"](NOW), there.get, other.put, kbs.put):
            with pytest.raises(Unavailable) as caught:
                action()
            assert (caught.value.code, caught.value.where) == ("configuration-rollback", "epochs")
        assert command(where, tmp_path, "store", "seal") == 0
        probes(other.world)["configuration"](NOW)
        other.world.database._checked = 0.0
        with pytest.raises(Denied):
            there.get()
        other.put()


def test_a_change_that_nobody_records_is_none(kbs: Broker) -> None:
    """It would be refused everywhere from then on."""
    kbs.put(policy=GPU_POLICY)
    with pytest.raises(ValueError, match="no entry"), kbs.world.configuration.change() as change:
        kbs.world.keys.set_policy(change, PATH, STRICT)
    assert kbs.handshake().get() == b"k" * 32


def test_readiness_says_so_and_the_log_once(kbs: Broker) -> None:
    """Also where only rows changed that nobody reads; and all is well when they are back."""
    kbs.put(policy=GPU_POLICY)
    probe = probes(kbs.world)["configuration"]
    probe(NOW)
    assert kbs.handshake().get() == b"k" * 32
    write(kbs, "UPDATE keys SET policy = replace(policy, 'hopper', 'blackwell')")
    assert kbs.handshake().get() == b"k" * 32  # by what it knows; it looks at everything again within a minute
    kbs.world.configuration.suspect = True
    for _ in range(3):
        with pytest.raises(Unavailable):
            probe(NOW)
        with pytest.raises(Unavailable):
            kbs.handshake()
    (entry,) = kbs.world.audit.about("configuration")
    assert (entry.event, entry.body["code"]) == ("configuration-refused", "configuration-changed")
    assert entry.body["where"] == sheet_of(str(PATH)).name
    write(kbs, "UPDATE keys SET policy = replace(policy, 'blackwell', 'hopper')")
    probe(NOW)
    assert kbs.handshake().get() == b"k" * 32


def test_a_busy_log_is_confirmed(kbs: Broker, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who starts looks at what came after; a survey that found nothing wrong says so after many entries, and once."""
    kbs.put(policy=GPU_POLICY)
    probe = probes(kbs.world)["configuration"]
    for count in (0, 3, 0):
        monkeypatch.setattr("attestation.ops.readiness.CONFIRM_AFTER", 2)
        for _ in range(count):
            kbs.world.audit.record(event="test", subject="x", body={}, now=NOW)
        kbs.world.configuration.suspect = True
        probe(NOW)
    (entry,) = kbs.world.audit.about("configuration")
    assert entry.event == "configuration-confirmed"
    assert kbs.world.configuration.survey().behind == 0
    assert command(where, tmp_path, "store", "verify") == 0


def test_the_newest_change_is_found_by_its_index(kbs: Broker) -> None:
    """However many releases came after it."""
    query = (
        select(schema.audit)
        .where(schema.audit.c.stream == "broker", text(schema.CHANGES))
        .order_by(schema.audit.c.seq.desc())
        .limit(1)
    )
    explain = "EXPLAIN QUERY PLAN " if kbs.world.database.sqlite else "EXPLAIN "
    with kbs.world.database.write() as connection:
        if not kbs.world.database.sqlite:
            connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
            connection.exec_driver_sql("SET LOCAL enable_sort = off")
        bound = query.compile(connection, compile_kwargs={"literal_binds": True})
        plan = "\n".join(str(row) for row in connection.exec_driver_sql(explain + str(bound)))
    assert "audit_changes" in plan


def test_a_sheet_has_the_digest_that_it_always_had() -> None:
    """Stores of this version are read by the next ones: a column that joins or leaves a sheet is a migration."""
    row = POLICIES.row(
        {"kind": "release", "name": "default", "version": 1, "text": "x", "author": "a", "created": schema.ms(NOW)}
    )
    want = "5b769ff3e2c22290142f475f2af4876730186757b16396d5f563bc7add51e8d3"
    assert POLICIES.digest({POLICIES.key(row): row}) == want


def _of_an_older_version(where: str, tmp_path: Path, verifier: Any, *, policy: str) -> None:
    """Schema 0003: rows, and entries that name no digest over all of them. The key's policy is not that of its entry."""
    root = None if where.startswith("/") else tmp_path / "root.key"
    world = open_world(WorldOptions(store=where, root_key=root), verifier, now=NOW)
    made = Broker(world=world)
    made.references({"snp_launch_measurement": [MEASUREMENT.hex()]})
    made.put(policy=GPU_POLICY)
    rows = _copy(made)
    close_world(world)
    database = Database.connect(where)
    log = AuditLog(database, made.world.audit._key)
    try:
        with database.write() as connection:
            for name in rows:
                connection.execute(text(f"DROP TABLE {name}"))
            connection.execute(text("DROP TABLE alembic_version"))
        database.migrate("0003")
        rows["keys"][0]["policy"] = policy
        entries, _ = rows.pop("audit"), rows.pop("audit_heads")
        with database.write() as connection:
            connection.execute(text("DELETE FROM epochs"))
            found = MetaData()
            for name in set(rows) - {"sheets"}:
                table = Table(name, found, autoload_with=connection)
                held = [{column.name: row[column.name] for column in table.columns} for row in rows[name]]
                if held:
                    connection.execute(insert(table), held)
            for entry in entries:
                body = {fact: value for fact, value in json.loads(entry["body"]).items() if fact not in _NEW}
                log.append(connection, event=entry["event"], subject=entry["subject"], body=body, now=NOW)
    finally:
        database.close()


_NEW = {"configuration", "value"}


@pytest.mark.parametrize("policy", [GPU_POLICY, GPU_POLICY.replace("count = 1", "count = 2")])
def test_a_store_of_an_older_version_is_sealed_once(
    where: str, tmp_path: Path, policy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is released and nothing changed until somebody has said that the rows are theirs; then all is as before."""
    if not where.startswith("/"):
        FileRootKey.create(tmp_path / "root.key", token_bytes)
    verifier = platform_verifier(collateral=None, simulated_roots=BUILTIN)
    _of_an_older_version(where, tmp_path, verifier, policy=policy)
    root = None if where.startswith("/") else tmp_path / "root.key"
    world = open_world(WorldOptions(store=where, root_key=root), verifier, now=NOW)
    kbs = Broker(world=world)
    try:
        for action in (kbs.handshake, kbs.put, lambda: probes(world)["configuration"](NOW)):
            with pytest.raises(Unavailable) as caught:
                action()
            assert caught.value.code == "configuration-unsealed"
        file = create_backup(world, TO, now=NOW)
        assert not verify_backup(file, BY, world.vault.ring, now=NOW).sealed
        assert command(where, tmp_path, "store", "verify") == 1
        explained = policy == GPU_POLICY
        assert command(where, tmp_path, "store", "seal") == (0 if explained else 1)
        assert ("key default/model/llama: policy is sha256:" in capsys.readouterr().out) is not explained
        if not explained:
            assert command(where, tmp_path, "store", "seal", "--accept-differences") == 0
            capsys.readouterr()
        assert command(where, tmp_path, "store", "verify") == 0
        kbs.world.database._checked = 0.0
        probes(world)["configuration"](NOW)
        visit = kbs.handshake()
        if explained:
            assert visit.get() == b"k" * 32
        kbs.put()
        sealed = create_backup(world, TO, now=NOW)
        assert verify_backup(sealed, BY, world.vault.ring, now=NOW).sealed
    finally:
        close_world(world)


@pytest.mark.parametrize("change", ["policy", "revocation", "digest"])
def test_a_backup_with_other_rows_is_not_restored(kbs: Broker, tmp_path: Path, change: str) -> None:
    """By whoever can read it and seal it again; also without the broker's signature over the whole file."""
    revoked(kbs)
    header, *lines = open_backup(create_backup(kbs.world, TO, now=NOW), BY).decode().split("\n")
    if change == "revocation":
        lines = [line for line in lines if not line.startswith('["revocations"')]
    elif change == "digest":
        lines = [line for line in lines if not line.startswith('["sheets", {"name": "revocations"')]
    else:
        lines = [line.replace("hopper", "ampere") if line.startswith('["keys"') else line for line in lines]
    file = seal_backup("\n".join([header, *lines]).encode(), TO, token_bytes)
    with pytest.raises(Untrusted) as caught:
        verify_backup(file, BY, kbs.world.vault.ring, now=NOW)
    assert caught.value.code == "configuration-changed"


def test_a_long_log_is_walked_in_parts(kbs: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy broker's survey ends soon; the next look goes on, and nothing is skipped."""
    monkeypatch.setattr(configuration, "_WALK", 10)
    kbs.world.configuration.survey()
    for number in range(25):
        kbs.world.audit.record(event="test", subject=str(number), body={}, now=NOW)
    assert kbs.world.configuration.survey().problem is None
    parts = 1
    while kbs.world.configuration.behind:
        kbs.world.configuration.walk()
        parts += 1
    assert parts == 3
    kbs.world.audit.record(event="test", subject="x", body={}, now=NOW)
    write(kbs, "UPDATE audit SET subject = 'y' WHERE subject = 'x'")
    kbs.world.configuration.walk()
    assert kbs.world.configuration.suspect
    found = kbs.world.configuration.survey().problem
    assert found is not None
    assert found.code == "configuration-changed"
