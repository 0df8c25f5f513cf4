"""What an attacker tried with evidence, tokens and policies (docs/threat-model.md, "What was tried")."""

import json
import stat
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from itertools import islice
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from joserfc.jwk import ECKey
from sqlalchemy import select, update

from attestation.broker.admin import AdminIssuer
from attestation.broker.endorsement import TokenTrust
from attestation.broker.external import verify_external
from attestation.broker.roles import Role
from attestation.broker.session import CHALLENGE_LIFETIME, Submission
from attestation.cli.serve import _issuer
from attestation.crypto.b64 import b64url
from attestation.crypto.jwk import tee_key_of
from attestation.errors import AttestationError, Denied, Malformed, Misconfigured, Unavailable, Untrusted
from attestation.formats.initdata import parse_init_data
from attestation.ops.administer import authenticate_admin
from attestation.ops.attest import MAX_WAITING
from attestation.ops.challenge import issue_challenge
from attestation.ops.external import external_token
from attestation.ops.release import Credentials, authenticate
from attestation.ops.world import conditions_of
from attestation.service.app import ServiceLimits
from attestation.sources import schema, sessions
from attestation.sources.attestations import AttestationStore
from attestation.sources.rego_worker import RegoWorker
from attestation.sources.sessions import Ended, Session
from attestation.values import ResourcePath, Tee
from tests.attestation.broker.broker import (
    GPU_POLICY,
    INIT_DATA,
    NOW,
    Broker,
    Served,
    Visit,
    broker,
    ready_broker,
    served,
)
from tests.attestation.broker.drive import attest
from tests.attestation.broker.issuer import Signer
from tests.attestation.tee.world import Guest

HEAD = 'version = "0.1.0"\nalgorithm = "sha256"\n'
FOREIGN = Signer(name="elsewhere")
CHAIN = ".".join(["a"] * 20_000)


@pytest.fixture(scope="module")
def kbs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with ready_broker(tmp_path_factory.mktemp("kbs")) as made, served(made) as running:
        yield running


HIDDEN = [
    pytest.param(f"{CHAIN} = 1\n", id="plain"),
    pytest.param(f"[{CHAIN}]\n", id="header"),
    pytest.param(".".join([r'"\""'] * 20_000) + " = 1\n", id="quoted-with-escapes"),
    pytest.param(f'x = {{ a = """\n\'""", {CHAIN} = 1 }}\n', id="after-a-string-that-ends-in-quotes"),
    pytest.param(f'x = """""""" # "\ny = {{ {CHAIN} = 1 }}\n', id="after-two-more-quotes"),
]


@pytest.mark.parametrize("hidden", HIDDEN)
def test_keys_of_twenty_thousand_parts(hidden: str) -> None:
    """The parser needs time that grows with their square, and nobody signed this text yet: refused before it."""
    with pytest.raises(Malformed, match="too many dotted keys"):
        parse_init_data(HEAD + hidden)


@pytest.mark.parametrize(
    "inner",
    [
        pytest.param('"x.toml" = """\n' + ".".join(["a"] * 90) + ' = 1\n"""\n', id="deep-toml"),
        pytest.param('"x.toml" = """\na = 0x' + "f" * 5000 + '\n"""\n', id="number-too-long-to-write"),
        pytest.param(f'"policy.rego" = \'policy_data := {{"a":{"[" * 90}{"]" * 90}}}\'\n', id="deep-json"),
        pytest.param('"x.toml" = "a = nan"\n', id="no-number-toml"),
        pytest.param('"policy.rego" = \'policy_data := {"a":[1e999]}\'\n', id="infinite-json"),
    ],
)
def test_init_data_that_no_record_can_hold(kbs: Served, inner: str) -> None:
    """Genuine evidence with such a document is refused, and its challenge is spent."""
    with pytest.raises(Malformed) as caught:
        kbs.broker.handshake(Guest(init_data=f"{HEAD}[data]\n{inner}"))
    assert caught.value.code == "init-data-claims"
    assert kbs.broker.world.audit.tail(1)[0].body["code"] == "init-data-claims"


def test_a_defect_burns_the_challenge(tmp_path: Path) -> None:
    """Whatever stops us in the middle, nobody waits for that evidence afterwards: four waiters would be all workers."""

    class Broken:
        def verify(self, *_args: object, **_kwargs: object) -> Any:
            raise RecursionError

    with broker(tmp_path, verifier=Broken()) as made:
        cookies: list[str] = []
        with pytest.raises(RecursionError):
            _attest_with(made, cookies)
        with pytest.raises(Untrusted) as caught:
            _attest_with(made, cookies)
        assert caught.value.code == "session-burned"


def _attest_with(made: Broker, cookies: list[str], *, additional: str = "") -> None:
    if not cookies:
        issued = issue_challenge(made.world, version="0.4.0", tee="snp", now=NOW)
        cookies += [issued.cookie, issued.challenged.nonce]
    key = tee_key_of(ec.derive_private_key(7, ec.SECP256R1()).public_key())
    sent = Submission(nonce=cookies[1], tee_key=key, init_data=None, primary={}, additional=additional)
    attest(made.world, cookie=cookies[0], submission=sent, body_digest="00" * 32, now=NOW)


def test_a_refusal_is_recorded_in_few_words(kbs: Served) -> None:
    """Two megabytes of nonsense are not two megabytes of audit log, for ever."""
    megabyte = {"attestation_report": {"version": "A" * 1_000_000}}
    with pytest.raises(Malformed):
        kbs.broker.handshake(change=lambda s: _with(s, primary=megabyte))
    entry = kbs.broker.world.audit.tail(1)[0]
    assert entry.event == "attest-refused"
    assert entry.body["code"] == "snp-evidence-number"
    assert len(json.dumps(entry.to_json())) < 4096


def _with(submission: Any, **changes: Any) -> Any:
    return replace(submission, **changes)


@pytest.mark.parametrize("kid", [[], {}, 1, None])
def test_a_key_id_that_is_no_text(tmp_path: Path, kid: Any) -> None:
    """A foreign token is refused, whatever its unsigned header holds."""
    trust = TokenTrust.of(jwks=[json.dumps({"keys": [FOREIGN.jwk | {"kid": "k1"}]}).encode()])
    header = b64url(json.dumps({"alg": "ES256", "kid": kid}).encode())
    with broker(tmp_path, external=trust) as made, pytest.raises(Untrusted):
        external_token(made.world, Credentials(cookie=None, bearer=f"{header}.e30.AAAA"), now=NOW)


@pytest.mark.parametrize(
    ("claim", "code"),
    [
        pytest.param({"exp": 10**400, "nbf": 10**400}, "early", id="beyond-floats"),
        pytest.param({"exp": -(10**400)}, "expired", id="below-floats"),
        pytest.param({"exp": float("nan")}, "expired", id="nan"),
        pytest.param({"exp": float("inf")}, "expired", id="infinite"),
    ],
)
def test_times_that_no_clock_shows(tmp_path: Path, claim: dict[str, Any], code: str) -> None:
    """A token without an end is none, and one beyond every clock is no crash; of both kinds of foreign signer."""
    at = int(NOW.timestamp())
    claims = {"iss": "idp", "aud": "kbs", "sub": "eve", "role": "boss", "exp": at + 60} | claim
    token = FOREIGN.token(claims)
    issuer = AdminIssuer(key=ECKey.import_key(FOREIGN.key), issuer="idp", audience="kbs", roles={"boss": Role.ADMIN})
    with broker(tmp_path, admin_issuers=(issuer,)) as made, pytest.raises(Untrusted) as caught:
        authenticate_admin(made.world, token, now=NOW)
    assert caught.value.code == f"admin-token-{code}"
    trust = TokenTrust.of(jwks=[json.dumps({"keys": [FOREIGN.jwk | {"kid": "k1"}]}).encode()])
    with pytest.raises((Untrusted, Malformed)) as caught_too:
        verify_external(FOREIGN.token(claims, kid="k1"), trust, now=NOW)
    assert caught_too.value.code in (f"token-{code}", "json")


def test_nobody_signs_the_log_with_the_name_of_another(tmp_path: Path) -> None:
    """Whom an identity provider calls `root` is not the `root` of this broker: the audit log tells them apart."""
    claims = {"iss": "idp", "aud": "kbs", "sub": "root", "role": "boss", "exp": int(NOW.timestamp()) + 60}
    issuer = AdminIssuer(key=ECKey.import_key(FOREIGN.key), issuer="idp", audience="kbs", roles={"boss": Role.ADMIN})
    with broker(tmp_path, admin_issuers=(issuer,)) as made:
        assert authenticate_admin(made.world, FOREIGN.token(claims), now=NOW).name == "idp/root"


@pytest.mark.parametrize("missing", ["issuer", "audience"])
def test_an_identity_provider_without_names(tmp_path: Path, missing: str) -> None:
    """Its tokens for other services would be tokens of administrators here."""
    (tmp_path / "key.pem").write_bytes(
        FOREIGN.key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    lines = {"issuer": 'issuer = "idp"', "audience": 'audience = "kbs"', "algorithm": 'algorithm = "es256"'}
    rest = 'public_key = "key.pem"\n[roles]\nboss = "admin"\n'
    file = tmp_path / "idp.toml"
    file.write_text("\n".join([*lines.values(), rest]))
    assert _issuer(file).audience == "kbs"
    del lines[missing]
    file.write_text("\n".join([*lines.values(), rest]))
    with pytest.raises(Misconfigured):
        _issuer(file)


def test_challenges_cost_nothing(tmp_path: Path) -> None:
    """Anybody may ask for one: nothing is stored before evidence was answered."""
    with broker(tmp_path) as made:
        for _ in range(3):
            issue_challenge(made.world, version="0.4.0", tee="snp", now=NOW)
        with made.world.database.read() as connection:
            assert connection.execute(select(schema.sessions)).all() == []


def test_refused_evidence_ends_somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was refused is kept, so that it stays refused; the table is bounded, and old rows make room."""
    monkeypatch.setattr(sessions, "MAX_SESSIONS", 3)
    monkeypatch.setattr(sessions, "COUNT_S", 0.0)
    with broker(tmp_path) as made:
        for _ in range(3):
            with pytest.raises(AttestationError):
                _attest_with(made, [], additional="[]")
        with pytest.raises(Unavailable) as caught:
            _attest_with(made, [], additional="[]")
        assert caught.value.code == "sessions-full"
        made.world.sessions.sweep(NOW + CHALLENGE_LIFETIME + sessions.CLOCKS_APART)
        with pytest.raises(Malformed):
            _attest_with(made, [], additional="[]")


def test_a_new_key_is_recorded_with_its_policy(kbs: Served) -> None:
    """The first policy and the labels of a key decide who gets it: they are in the log as later ones are."""
    kbs.broker.put(ResourcePath.parse("default/new/key"), labels=("test",), policy=GPU_POLICY)
    body = kbs.broker.world.audit.tail(1)[0].body
    assert body["labels"] == ["test"]
    assert body["policy"] == str(conditions_of(GPU_POLICY).digest)


@pytest.fixture(scope="module")
def engine() -> Iterator[RegoWorker]:
    worker = RegoWorker()
    yield worker
    worker.close()


@pytest.mark.parametrize(
    ("rule", "sent"),
    [
        pytest.param('input.image == "good"', {"image": "good\0evil"}, id="text-ends-at-nul"),
        pytest.param('not contains(input.image, "evil")', {"image": "good\0evil"}, id="text-hidden-after-nul"),
        pytest.param('input.image == "good"', {"image\0": "good", "image": "evil"}, id="name-ends-at-nul"),
        pytest.param("input.svn < 5", {"svn": 2**64 + 1}, id="number-wraps"),
        pytest.param("input.svn < 5", {"deep": [{"svn": 1}], "svn": 2**63}, id="number-becomes-negative"),
    ],
)
def test_what_the_policy_engine_would_misread(engine: RegoWorker, rule: str, sent: dict[str, Any]) -> None:
    """The engine ends texts at NUL and takes integers modulo 2**64: such input is refused, and so is the release."""
    policy = f"package policy\nimport rego.v1\nallow if {rule}\ntrust_claims := {{}} if {rule}\n"
    assert not engine.allow(policy, sent, {})
    with pytest.raises(Malformed) as caught:
        engine.appraise(policy, sent, {})
    assert caught.value.code == "rego-input"


def test_what_the_policy_engine_reads_well(engine: RegoWorker) -> None:
    """Everything else goes through as it is."""
    policy = (
        'package policy\nimport rego.v1\nallow if { input.a == "gr\u00fcn"; input.b == [9223372036854775807, null] }\n'
    )
    assert engine.allow(policy, {"a": "gr\u00fcn", "b": [2**63 - 1, None]}, {})


def test_the_store_is_for_its_owner_alone(tmp_path: Path) -> None:
    """In a directory that everybody can read, too: there are names, policies and the audit log in it."""
    (tmp_path / "store").mkdir(mode=0o755)
    with broker(tmp_path) as made:
        made.put()
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "store").iterdir()}
    assert {"kbs.sqlite3", "kbs.sqlite3-wal", "root.key"} <= set(modes)
    assert set(modes.values()) == {0o600}


def test_two_bodies_on_two_brokers_at_once(tmp_path: Path) -> None:
    """One challenge, two sets of genuine evidence for two keys, sixteen requests: one of the keys is attested."""
    with ready_broker(tmp_path) as one, broker(tmp_path) as two:
        issued = issue_challenge(one.world, version="0.4.0", tee="snp", now=NOW)
        sent = [_honest(issued.challenged.nonce) for _ in range(2)]

        def answer(number: int) -> str:
            made, which = (one, two)[number // 2 % 2], number % 2
            while True:
                try:
                    return attest(
                        made.world, cookie=issued.cookie, submission=sent[which], body_digest=f"{which:064x}", now=NOW
                    ).token
                except Untrusted as exc:
                    return exc.code
                except Unavailable as exc:  # more twins than may wait
                    assert exc.code == "attest-in-progress"
                    time.sleep(0.01)

        with ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(answer, range(16)))
    # A broker that verifies the one body refuses the other meanwhile, whichever of them will have been the first.
    attested = {(number % 2, token) for number, token in enumerate(answers) if token != "nonce-replayed"}
    assert len(attested) == 1


def test_twins_of_slow_evidence_leave_workers_to_others(tmp_path: Path) -> None:
    """The same evidence many times while it is verified: a few requests wait for its answer, the rest come back."""
    verifying, go_on = Event(), Event()

    class Slow:
        def verify(self, *_args: object, **_kwargs: object) -> Any:
            verifying.set()
            go_on.wait(20)
            raise Untrusted("forged", "forged")

    with broker(tmp_path, verifier=Slow()) as made, ThreadPoolExecutor(8) as pool:
        issued = issue_challenge(made.world, version="0.4.0", tee="snp", now=NOW)
        twins = [pool.submit(_attest_with, made, [issued.cookie, issued.challenged.nonce]) for _ in range(8)]
        assert verifying.wait(20)
        first = list(islice(as_completed(twins, timeout=20), 8 - 1 - MAX_WAITING))
        assert {getattr(twin.exception(), "code", "") for twin in first} == {"attest-in-progress"}
        go_on.set()
        codes = Counter(getattr(twin.exception(), "code", "") for twin in twins)
    assert codes == {"forged": 1, "session-burned": MAX_WAITING, "attest-in-progress": 8 - 1 - MAX_WAITING}


def test_twins_leave_most_threads_to_others() -> None:
    """One verifies, so many wait for it, and as many are left."""
    assert ServiceLimits().threads > 1 + MAX_WAITING


def test_a_challenge_of_before_a_tee_was_disabled(tmp_path: Path) -> None:
    """Its cookie outlives the restart that disabled the TEE: genuine evidence for it is refused all the same."""
    with ready_broker(tmp_path) as made:
        issued = issue_challenge(made.world, version="0.4.0", tee="snp", now=NOW)
        sent = _honest(issued.challenged.nonce)
        restarted = replace(made.world, tees=frozenset({Tee.TDX}))
        with pytest.raises(Denied) as caught:
            attest(restarted, cookie=issued.cookie, submission=sent, body_digest="00" * 32, now=NOW)
        assert caught.value.code == "tee-disabled"


def test_a_challenge_that_was_spent_on_nothing(tmp_path: Path) -> None:
    """A row that is not added and not there, as a trigger or rule of others makes it: nobody gets a token on it."""
    with ready_broker(tmp_path) as made:
        with made.world.database.write() as connection:
            connection.exec_driver_sql("CREATE TRIGGER lost BEFORE INSERT ON sessions BEGIN SELECT RAISE(IGNORE); END")
        with pytest.raises(Unavailable):
            made.handshake()
        assert made.world.attestations.recent(1) == ()


def test_attestations_that_a_database_writer_invents(tmp_path: Path) -> None:
    """A session that never attested, a record for another key, one in another's place: none gets the key."""
    key = ec.derive_private_key(11, ec.SECP256R1())
    with ready_broker(tmp_path) as made, broker(tmp_path) as replica:  # whose cache has not seen the record
        world = made.world
        visit = made.handshake()
        true = authenticate(world, Credentials(cookie=None, bearer=visit.token), now=NOW)
        assert replace(visit, broker=replica).get() == b"k" * 32
        for jti, forger in (("invented", AttestationStore(world.database, bytes(32))), ("moved", world.attestations)):
            issued = issue_challenge(world, version="0.4.0", tee="snp", now=NOW)
            false = replace(true, jti=f"other-{jti}", tee_key=tee_key_of(key.public_key()).jwk)
            with world.database.write() as connection:
                forger.add(connection, false)
                connection.execute(
                    update(schema.attestations)
                    .where(schema.attestations.c.jti == false.jti)
                    .values(jti=jti, expires=schema.ms(NOW) * 2)
                )
                session = Session.of(issued.cookie, issued.challenged)
                world.sessions.end(connection, session, Ended(body="", jti=jti, token=""))
            with pytest.raises(Untrusted) as caught:
                Visit(broker=made, key=key, cookie=issued.cookie, token="").get(bearer=False)
            assert caught.value.code == "attestation-changed"
        assert [found.jti for found in world.attestations.recent(10)] == [true.jti]


def _honest(nonce: str) -> Submission:
    key = tee_key_of(ec.generate_private_key(ec.SECP256R1()).public_key())
    made = Guest(init_data=INIT_DATA, nonce=nonce, jwk=key.jwk).evidence()
    return Submission(nonce=nonce, tee_key=key, init_data=INIT_DATA, primary=made.primary, additional=made.additional)
