"""The same store on PostgreSQL: two replicas, any of which answers any step."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from attestation.broker.session import Submission
from attestation.cli.platform import platform_verifier
from attestation.cli.verification import BUILTIN
from attestation.crypto.jwe import unseal
from attestation.crypto.jwk import tee_key_of
from attestation.errors import Misconfigured, Untrusted
from attestation.ops.challenge import issue_challenge
from attestation.ops.open_world import WorldOptions, close_world, open_world
from attestation.ops.release import Credentials, authenticate
from attestation.simulate.amd import MEASUREMENT
from attestation.sources.envelope import FileRootKey
from attestation.sources.sessions import Ended, Session
from tests.attestation.broker.broker import GPU_POLICY, INIT_DATA, NOW, PATH, Broker
from tests.attestation.broker.drive import attest, release_resource
from tests.attestation.broker.postgres import ABSENT, FOUND, postgres
from tests.attestation.tee.world import Guest


@pytest.fixture(scope="module")
def replicas(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Broker, Broker]]:
    """Two brokers on one database and one root key."""
    if not FOUND:
        pytest.skip(ABSENT)
    from secrets import token_bytes

    root = tmp_path_factory.mktemp("root") / "root.key"
    FileRootKey.create(root, token_bytes)
    verifier = platform_verifier(collateral=None, simulated_roots=BUILTIN)
    with postgres() as url:
        options = WorldOptions(store=url, root_key=root)
        first, second = (Broker(world=open_world(options, verifier, now=NOW)) for _ in range(2))
        first.references({"snp_launch_measurement": [MEASUREMENT.hex()]})
        first.put(policy=GPU_POLICY)
        yield first, second
        for made in (first, second):
            close_world(made.world)


def test_each_step_on_another_replica(replicas: tuple[Broker, Broker]) -> None:
    """Challenge here, evidence there, key here; the same body again on the other one gives the same token."""
    first, second = (made.world for made in replicas)
    issued = issue_challenge(first, version="0.4.0", tee="snp", now=NOW)
    private = ec.generate_private_key(ec.SECP256R1())
    key = tee_key_of(private.public_key())
    made = Guest(init_data=INIT_DATA).with_(nonce=issued.challenged.nonce, jwk=key.jwk).evidence()
    submission = Submission(
        nonce=made.nonce, tee_key=key, init_data=made.init_data, primary=made.primary, additional=made.additional
    )
    token = attest(second, cookie=issued.cookie, submission=submission, body_digest="aa", now=NOW).token
    assert attest(first, cookie=issued.cookie, submission=submission, body_digest="aa", now=NOW).token == token
    with pytest.raises(Untrusted):
        attest(first, cookie=issued.cookie, submission=submission, body_digest="bb", now=NOW)
    attested = authenticate(first, Credentials(cookie=issued.cookie, bearer=None), now=NOW)
    sealed = release_resource(first, attested, PATH, query={}, now=NOW)
    assert unseal(sealed, private).expose() == b"k" * 32
    assert first.audit.verify() == second.audit.verify()


def test_a_challenge_is_spent_once_across_replicas(replicas: tuple[Broker, Broker]) -> None:
    """Twelve outcomes with different bodies on two replicas: one is stored."""
    issued = issue_challenge(replicas[0].world, version="0.4.0", tee="snp", now=NOW)
    session = Session.of(issued.cookie, issued.challenged)
    told: list[Ended | None] = []

    def spend(number: int) -> None:
        world = replicas[number % 2].world
        mine = Ended(body=f"{number:064}", jti=f"j{number}", token="t")
        told.append(world.database.commit(lambda c: world.sessions.end(c, session, mine)))

    threads = [threading.Thread(target=spend, args=(n,)) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(told) == 12
    assert told.count(None) == 1


def test_appends_of_both_replicas_form_one_chain(replicas: tuple[Broker, Broker]) -> None:
    """The head row orders them."""
    before = replicas[0].world.audit.verify()

    def write(made: Broker) -> None:
        for _ in range(5):
            made.world.audit.record(event="test", subject="x", body={}, now=NOW)

    threads = [threading.Thread(target=write, args=(made,)) for made in replicas * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert replicas[1].world.audit.verify() == before + 30


def test_what_one_replica_changes_the_other_sees(replicas: tuple[Broker, Broker]) -> None:
    """Within the bound on stale configuration."""
    import time

    from attestation.sources.db import STALE_S

    first, second = replicas
    record = second.world.keys.get(PATH)
    assert record is not None
    first.put()
    time.sleep(STALE_S * 1.5)
    newer = second.world.keys.get(PATH)
    assert newer is not None
    assert newer.current_version == record.current_version + 1


def test_a_database_needs_a_root_key_file(tmp_path: Path) -> None:
    """It is never beside the data."""
    with pytest.raises(Misconfigured) as caught:
        open_world(
            WorldOptions(store="postgresql://x/y"),
            platform_verifier(collateral=None, simulated_roots=BUILTIN),
            now=NOW,
        )
    assert caught.value.code == "root-key-missing"
