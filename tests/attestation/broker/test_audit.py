"""The audit log as evidence: every change shows, proofs hold offline, and a full disk stops releases."""

import contextlib
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, insert, select, update

from attestation.cli.main import cli, run
from attestation.crypto.merkle import inclusion_proof, leaf_hash, tree_root, verify_inclusion
from attestation.errors import AttestationError, Malformed, Unavailable, Untrusted
from attestation.sources.audit_proof import Checkpoint, check_extends, checkpoint, make_proof, verify_proof
from attestation.sources.schema import audit, audit_heads
from tests.attestation.broker.broker import NOW, PATH, Broker, broker, ready_broker

LENGTH = 6


@pytest.fixture
def kbs(tmp_path: Path) -> Iterator[Broker]:
    with broker(tmp_path) as made:
        for number in range(LENGTH):
            made.world.audit.record(event="test", subject=f"default/a/{number}", body={"n": number}, now=NOW)
        yield made


def _swap(connection: Any) -> None:
    for seq, to in ((2, 100), (3, 2), (100, 3)):
        connection.execute(update(audit).where(audit.c.seq == seq).values(seq=to))


def _insert(connection: Any) -> None:
    row = dict(connection.execute(select(audit).where(audit.c.seq == 3)).one()._mapping)
    for seq in range(LENGTH, 2, -1):
        connection.execute(update(audit).where(audit.c.seq == seq).values(seq=seq + 1))
    connection.execute(insert(audit), row)


def _cut(connection: Any) -> None:
    """Whoever owns the database sets the head back as well."""
    connection.execute(delete(audit).where(audit.c.seq > 3))
    digest = connection.execute(select(audit.c.digest).where(audit.c.seq == 3)).scalar()
    connection.execute(update(audit_heads).values(seq=3, digest=digest))


def _edit(column: str, value: Any) -> Any:
    return lambda connection: connection.execute(update(audit).where(audit.c.seq == 3).values({column: value}))


TAMPERING = {
    "edit-body": _edit("body", '{"n":7}'),
    "edit-event": _edit("event", "other"),
    "edit-subject": _edit("subject", "default/b/2"),
    "edit-time": _edit("at", 1),
    "edit-previous": _edit("previous", "0" * 64),
    "edit-digest": _edit("digest", "1" * 64),
    "edit-signature": _edit("signature", bytes(64)),
    "delete": lambda c: c.execute(delete(audit).where(audit.c.seq == 3)),
    "delete-first": lambda c: c.execute(delete(audit).where(audit.c.seq == 1)),
    "insert": _insert,
    "reorder": _swap,
    "truncate": lambda c: c.execute(delete(audit).where(audit.c.seq > 3)),
    "empty": lambda c: c.execute(delete(audit)),
    "no-head": lambda c: (c.execute(delete(audit).where(audit.c.seq > 3)), c.execute(delete(audit_heads))),
}


@pytest.mark.parametrize("how", TAMPERING)
def test_tampering_shows(kbs: Broker, how: str) -> None:
    """Whatever column is edited, whatever row is dropped, added or moved."""
    assert kbs.world.audit.verify() == LENGTH
    with kbs.world.database.write() as connection:
        TAMPERING[how](connection)
    with pytest.raises(Untrusted):
        kbs.world.audit.verify()


def test_a_log_set_back_whole_shows_against_a_checkpoint(kbs: Broker) -> None:
    """By itself a shorter log is a valid log: that is what checkpoints are kept elsewhere for."""
    log = kbs.world.audit
    kept = Checkpoint.from_json(json.loads(json.dumps(checkpoint(log, NOW).to_json())))
    kept.verify(log.public_key)
    log.record(event="test", subject="later", body={}, now=NOW)
    check_extends(kept, log.entries())
    with kbs.world.database.write() as connection:
        _cut(connection)
    assert log.verify() == 3
    with pytest.raises(Untrusted) as caught:
        check_extends(kept, log.entries())
    assert caught.value.code == "audit-rollback"


def _flip(text: str) -> str:
    return ("1" if text[0] != "1" else "2") + text[1:]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        pytest.param(lambda d: d["entry"]["body"].update(n=9), "audit-chain", id="body"),
        pytest.param(lambda d: d["entry"].update(signature="00" * 64), "audit-signature", id="signature"),
        pytest.param(lambda d: d["checkpoint"].update(size=5), "checkpoint-signature", id="size"),
        pytest.param(lambda d: d["checkpoint"].update(root="00" * 32), "checkpoint-signature", id="root"),
        pytest.param(lambda d: d.update(path=d["path"][:-1]), "merkle-proof", id="short-path"),
        pytest.param(lambda d: d.update(path=[*d["path"], "00" * 32]), "merkle-proof", id="long-path"),
        pytest.param(lambda d: d.update(path=[_flip(d["path"][0]), *d["path"][1:]]), "merkle-proof", id="path"),
        pytest.param(lambda d: d.update(path="zz"), "audit-proof", id="not-hex"),
        pytest.param(lambda d: d.update(extra=1), "audit-proof", id="extra"),
        pytest.param(lambda d: d["checkpoint"].update(size="6"), "checkpoint", id="type"),
        pytest.param(lambda d: d["entry"].pop("seq"), "audit-entry", id="member"),
        pytest.param(lambda d: d["entry"].update(at="yesterday"), "audit-entry", id="time"),
    ],
)
def test_changed_proofs_do_not_hold(kbs: Broker, change: Any, code: str) -> None:
    """Each case changes one thing in a good proof."""
    log = kbs.world.audit
    document = json.loads(json.dumps(make_proof(log, 4, NOW)))
    assert verify_proof(document, log.public_key).body == {"n": 3}
    change(document)
    with pytest.raises(AttestationError) as caught:
        verify_proof(document, log.public_key)
    assert caught.value.code == code


def test_proof_of_another_entry_of_the_same_log(kbs: Broker) -> None:
    """Both entries are signed and in the log; the path belongs to one of them."""
    log = kbs.world.audit
    first, second = make_proof(log, 2, NOW), make_proof(log, 3, NOW)
    with pytest.raises(Untrusted) as caught:
        verify_proof(first | {"entry": second["entry"]}, log.public_key)
    assert caught.value.code == "merkle-proof"
    with pytest.raises(Malformed):
        make_proof(log, LENGTH + 1, NOW)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 70), st.data())
def test_merkle_proofs(size: int, data: st.DataObject) -> None:
    """Every leaf of every tree is proven, and under no other index, size or root."""
    leaves = [leaf_hash(bytes([n])) for n in range(size)]
    root, index = tree_root(leaves), data.draw(st.integers(0, size - 1))
    proof = inclusion_proof(leaves, index)
    verify_inclusion(leaves[index], index, size, proof, root)
    other = data.draw(st.integers(0, size))
    for wrong in ((leaves[index], other, size, root), (leaf_hash(b"no"), index, size, root)):
        if wrong[:2] != (leaves[index], index):
            with pytest.raises(Untrusted):
                verify_inclusion(wrong[0], wrong[1], wrong[2], proof, wrong[3])


@pytest.mark.parametrize(("length", "code"), [(64, "merkle-proof"), (65, "merkle-index")])
def test_merkle_proofs_have_a_length(length: int, code: str) -> None:
    """No tree is higher; a longer proof is not walked."""
    with pytest.raises(Untrusted) as caught:
        verify_inclusion(leaf_hash(b""), 0, 1, [bytes(32)] * length, bytes(32))
    assert caught.value.code == code


def test_merkle_vectors() -> None:
    """The tree of RFC 9162's own example data (certificate-transparency reference test vectors)."""
    inputs = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"]
    leaves = [leaf_hash(bytes.fromhex(text)) for text in inputs]
    assert tree_root([]).hex() == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert tree_root(leaves[:1]).hex() == "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d"
    assert tree_root(leaves[:2]).hex() == "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"
    assert tree_root(leaves).hex() == "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328"


def test_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Checkpoint, proof and their verification; `verify-proof` needs no store."""
    with ready_broker(tmp_path) as made:
        made.handshake().get()
        seq = made.world.audit.tail(1)[0].seq
    store = ["--store", str(tmp_path / "store")]

    def to_file(name: str, *argv: str) -> str:
        assert run(cli, [*argv, *store]) == 0
        (tmp_path / name).write_text(capsys.readouterr().out)
        return str(tmp_path / name)

    kept = to_file("checkpoint.json", "audit", "checkpoint")
    proof = to_file("proof.json", "audit", "proof", str(seq))
    key = to_file("audit.pem", "audit", "public-key")
    assert run(cli, ["audit", "verify", "--checkpoint", kept, *store]) == 0
    assert run(cli, ["audit", "verify-proof", proof, "--key", key]) == 0
    assert f"proven: entry {seq} of {seq}" in capsys.readouterr().out
    (tmp_path / "bad.json").write_text(Path(proof).read_text().replace("built-in", "other-in"))
    assert run(cli, ["audit", "verify-proof", str(tmp_path / "bad.json"), "--key", key]) == 1
    assert run(cli, ["audit", "verify-proof", proof, "--key", proof]) == 2
    capsys.readouterr()
    assert run(cli, ["audit", "who", str(PATH), "--output", "json", *store]) == 0
    body = json.loads(capsys.readouterr().out)["released"][0]["body"]
    assert body["collateral"] == "built-in"
    assert len(body["devices"]) == 1
    assert run(cli, ["audit", "tail", "--repository", "default", "--output", "json", *store]) == 0
    assert {e["subject"] for e in json.loads(capsys.readouterr().out)["entries"]} == {str(PATH)}
    assert run(cli, ["audit", "tail", "--repository", "acme", *store]) == 0
    assert capsys.readouterr().out == "no entries\n"


@contextmanager
def _limited(folder: Path) -> Iterator[Callable[[Broker], Callable[[], None]]]:
    """A way to take all space, which gives a way to return it: a small file system, or a small database elsewhere."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)]
    if os.geteuid() == 0 and subprocess.run(mount, check=False, capture_output=True).returncode == 0:
        try:
            yield lambda _made: _fill(folder / "filler")
        finally:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)
    else:
        yield _no_more_pages


def _fill(filler: Path) -> Callable[[], None]:
    descriptor = os.open(filler, os.O_WRONLY | os.O_CREAT)
    with contextlib.suppress(OSError):
        while os.write(descriptor, b"x" * 65536):
            pass
    os.close(descriptor)
    return filler.unlink


def _no_more_pages(made: Broker) -> Callable[[], None]:
    with made.world.database.write(durable=True) as connection:
        used = connection.exec_driver_sql("PRAGMA page_count").scalar()
        connection.exec_driver_sql(f"PRAGMA max_page_count = {used}")

    def more() -> None:
        with made.world.database.write(durable=True) as connection:
            connection.exec_driver_sql("PRAGMA max_page_count = 1000000")

    return more


def _fill_and_free(folder: Path, times: int) -> None:
    with _limited(folder) as take_all, ready_broker(folder) as made:
        released = 0
        for _ in range(times):
            visit = made.handshake()
            assert visit.get() == b"k" * 32
            give_back = take_all(made)
            released, stopped = released + 1, 0
            while stopped < 5:  # what SQLite has reserved already is used up first
                try:
                    released += visit.get() == b"k" * 32
                except Unavailable as exc:
                    assert exc.code == "store"
                    stopped += 1
            assert len(made.world.audit.about(str(PATH), "released")) == released
            give_back()
            assert visit.get() == b"k" * 32
            released += 1
            assert len(made.world.audit.about(str(PATH), "released")) == released
            made.world.audit.verify()


def test_a_full_disk_stops_releases_until_there_is_space(tmp_path: Path) -> None:
    """Nothing leaves, nothing is counted, the log stays whole; the next guest after the repair is served."""
    _fill_and_free(tmp_path / "disk", 1)


@pytest.mark.soak
def test_a_disk_that_fills_again_and_again(tmp_path: Path) -> None:
    """Ten times."""
    _fill_and_free(tmp_path / "disk", 10)
