"""Model keys at work: data keys wrapped and unwrapped without the key leaving, and shard keys derived from it."""

import hmac
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from attestation.broker.keys import KeyKind
from attestation.broker.model_key import derive_shard_key
from attestation.broker.roles import Principal, Role
from attestation.cli.main import cli, run
from attestation.crypto.b64 import parse_b64
from attestation.crypto.jwe import unseal
from attestation.crypto.sealed_secret import unwrap_layer_key
from attestation.errors import AttestationError, Denied, Malformed, Misconfigured
from attestation.ops.model_keys import derive_key, unwrap_key, wrap_key
from attestation.ops.release import Credentials, authenticate
from attestation.values import ResourcePath, Secret
from tests.attestation.broker.broker import ADMIN, GPU_POLICY, NOW, Broker, Visit, broker, ready_broker
from tests.attestation.broker.drive import release_resource
from tests.conformance.target import local_target

MODEL = ResourcePath.parse("default/model/made")
KEY = bytes(range(32))


@pytest.fixture
def kbs(tmp_path: Path) -> Iterator[Broker]:
    with ready_broker(tmp_path) as made:
        made.put(MODEL, KEY, kind=KeyKind.MODEL_KEY, policy=GPU_POLICY)
        yield made


def test_wrapped_for_the_guest_and_back(kbs: Broker) -> None:
    """A guest with the model key opens it; so does the broker, also after a rotation; nothing else does."""
    version, packet = wrap_key(kbs.world, ADMIN, MODEL, b"data key", now=NOW)
    assert version == 1
    assert unwrap_layer_key(packet, kek=Secret(kbs.handshake().get(MODEL))) == b"data key"
    kbs.put(MODEL, b"n" * 32, kind=KeyKind.MODEL_KEY)
    version, data = unwrap_key(kbs.world, ADMIN, MODEL, packet, now=NOW)
    assert (version, data.expose()) == (1, b"data key")
    assert wrap_key(kbs.world, ADMIN, MODEL, b"data key", now=NOW)[0] == 2
    other = ResourcePath.parse("default/model/other")
    kbs.put(other, KEY[::-1], kind=KeyKind.MODEL_KEY)
    with pytest.raises(Malformed) as caught:
        unwrap_key(kbs.world, ADMIN, other, packet, now=NOW)
    assert caught.value.code == "wrapped-key"
    events = [entry.event for entry in kbs.world.audit.about(str(MODEL), "key-unwrapped")]
    assert events == ["key-unwrapped"]


def test_derivation_is_hkdf() -> None:
    """RFC 5869 with the model key as pseudorandom key; path and label separate keys."""
    path = ResourcePath.parse("r/t/n")
    got = derive_shard_key(Secret(KEY), path, "shard-1").expose()
    info = b"kata-gpu-kbs shard key v1\0r/t/n\0shard-1"
    assert got == hmac.digest(KEY, info + b"\x01", "sha256")  # the first block of the expansion, written out
    others = {
        derive_shard_key(Secret(KEY), path, "shard-2").expose(),
        derive_shard_key(Secret(KEY), ResourcePath.parse("r/t/m"), "shard-1").expose(),
        derive_shard_key(Secret(KEY[::-1]), path, "shard-1").expose(),
    }
    assert len(others | {got}) == 4


def ask(visit: Visit, query: dict[str, str], path: ResourcePath = MODEL) -> bytes:
    world = visit.broker.world
    who = authenticate(world, Credentials(cookie=None, bearer=visit.token), now=NOW)
    return unseal(release_resource(world, who, path, query=query, now=NOW), visit.key).expose()


def test_shard_keys_in_one_get(kbs: Broker) -> None:
    """One label gives the key, several a bundle; publisher and guest derive the same; one release is counted."""
    visit = kbs.handshake()
    one = ask(visit, {"derive": "shard-1"})
    assert one == derive_key(kbs.world, ADMIN, MODEL, "shard-1", now=NOW)[1].expose()
    many = json.loads(ask(visit, {"derive": "shard-1,shard-2"}))["keys"]
    assert parse_b64(many["shard-1"], where="key") == one
    assert set(many) == {"shard-1", "shard-2"}
    assert ask(visit, {}) == KEY
    record = kbs.world.keys.get(MODEL)
    assert record is not None
    assert len(kbs.world.audit.about(str(MODEL), "released")) == 3


@pytest.mark.parametrize("labels", ["", ",", "a,a", "a,../b", "a b", "é", ",".join(f"s{i}" for i in range(1025))])
def test_labels_that_are_refused(kbs: Broker, labels: str) -> None:
    """Nothing is released or counted."""
    with pytest.raises(Malformed) as caught:
        ask(kbs.handshake(), {"derive": labels})
    assert caught.value.code == "shard-label"
    assert kbs.world.audit.about(str(MODEL), "released") == ()


def test_only_model_keys_derive_and_wrap(kbs: Broker) -> None:
    """A stored secret ignores the parameter, as upstream ignores queries; administrators are told."""
    plain = ResourcePath.parse("default/plain/secret")
    kbs.put(plain, b"x" * 32, policy=GPU_POLICY)
    assert ask(kbs.handshake(), {"derive": "shard-1"}, plain) == b"x" * 32
    for call in (
        lambda: wrap_key(kbs.world, ADMIN, plain, b"d", now=NOW),
        lambda: derive_key(kbs.world, ADMIN, plain, "s", now=NOW),
        lambda: derive_key(kbs.world, ADMIN, ResourcePath.parse("default/no/such"), "s", now=NOW),
        lambda: wrap_key(kbs.world, Principal(name="a", role=Role.AUDITOR), MODEL, b"d", now=NOW),
        lambda: unwrap_key(
            kbs.world, Principal(name="o", role=Role.OPERATOR, repositories=("other",)), MODEL, "", now=NOW
        ),
        lambda: unwrap_key(kbs.world, ADMIN, MODEL, "nonsense", now=NOW),
    ):
        with pytest.raises((Malformed, Denied, Misconfigured)):
            call()
    assert kbs.world.audit.about(str(plain), "key-wrapped") == ()


def test_on_the_command_line(tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    """Files of mode 0600 that are never overwritten; standard output for pipes."""
    store = ["--store", str(tmp_path / "store")]
    with broker(tmp_path) as made:
        made.put(MODEL, KEY, kind=KeyKind.MODEL_KEY)
    (tmp_path / "data").write_bytes(b"data key")
    assert run(cli, ["key", "wrap", str(MODEL), str(tmp_path / "data"), *store]) == 0
    (tmp_path / "wrapped").write_bytes(capsysbinary.readouterr().out)
    out = tmp_path / "out"
    unwrap = ["key", "unwrap", str(MODEL), str(tmp_path / "wrapped"), *store]
    assert run(cli, [*unwrap, "--out", str(out)]) == 0
    assert (out.read_bytes(), out.stat().st_mode & 0o777) == (b"data key", 0o600)
    assert run(cli, [*unwrap, "--out", str(out)]) == 2
    capsysbinary.readouterr()
    assert run(cli, ["key", "derive", str(MODEL), "shard-1", "--out", "-", *store]) == 0
    assert capsysbinary.readouterr().out == derive_shard_key(Secret(KEY), MODEL, "shard-1").expose()


def test_over_the_admin_api(tmp_path: Path) -> None:
    """Wrap and unwrap by bearer token; a wrong packet is the caller's error."""
    with local_target(tmp_path) as kbs:
        assert kbs.admin("POST", "/api/v1/keys/default/model/k").status == 200
        wrapped = kbs.admin("POST", "/api/v1/wrap/default/model/k", b"data").json()
        back = kbs.admin("POST", "/api/v1/unwrap/default/model/k", wrapped["annotation"].encode()).json()
        assert parse_b64(back["data"], where="data") == b"data"
        assert kbs.admin("POST", "/api/v1/unwrap/default/model/k", b"nonsense").status == 400
        assert kbs.admin("POST", "/api/v1/wrap/default/model/k", b"").status == 400
        assert kbs.admin("POST", "/api/v1/wrap/default/no/such", b"d").status == 404
        assert kbs.admin("POST", "/api/v1/wrap/default/model/k", b"d", token="").status == 401


def test_errors_are_ours() -> None:
    """A key of another length derives nothing."""
    with pytest.raises(AttestationError):
        derive_shard_key(Secret(b"short"), MODEL, "s")
