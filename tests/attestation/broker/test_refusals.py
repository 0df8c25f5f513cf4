"""Evidence that nobody signed fills no audit log; what a CPU signed is recorded one by one."""

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from attestation.broker.session import Submission
from attestation.crypto.jwk import tee_key_of
from attestation.errors import AttestationError, Denied, Malformed, Unavailable, Untrusted, after_signature
from attestation.ops.refusals import MAX_NETWORKS, OTHERS, SHOWN, SINGLY_ALL, SINGLY_EACH, SUBJECT, WINDOW, Refusals
from attestation.sources.audit import Entry
from tests.attestation.broker.broker import NOW, Broker, broker, served

_OTHER = tee_key_of(ec.derive_private_key(9, ec.SECP256R1()).public_key())
FORGED = Untrusted("snp-signature-invalid", "forged")


def _refused(made: Broker, change: Any, times: int) -> None:
    for _ in range(times):
        with pytest.raises(AttestationError):
            made.handshake(change=change)


def _unsigned(sent: Submission) -> Submission:
    return replace(sent, primary={"attestation_report": {"version": "A" * 1000}})


def _entries(made: Broker) -> list[Entry]:
    return [entry for entry in made.world.audit.entries() if entry.event == "attest-refused"]


def test_unsigned_evidence_is_recorded_singly_and_then_as_a_number(tmp_path: Path) -> None:
    """Challenges are spent all the same, and the chain holds."""
    with broker(tmp_path) as made:
        _refused(made, _unsigned, SINGLY_EACH + 25)
        assert len(_entries(made)) == SINGLY_EACH
        made.world.refusals.sum_up(made.world.audit, NOW + WINDOW)
        *_, last = _entries(made)
        assert (last.subject, last.body["code"], last.body["count"]) == (SUBJECT, "refusals-summed-up", 25)
        assert last.body["codes"] == {"snp-evidence-number": 25}
        assert (last.body["since"], last.body["until"]) == (NOW.isoformat(), (NOW + WINDOW).isoformat())
        assert made.world.refusals.summed_up == 25
        made.world.audit.verify()


@pytest.mark.parametrize(
    ("what", "change"),
    [
        pytest.param("another session's key", lambda s: replace(s, tee_key=_OTHER), id="report-data"),
        pytest.param("devices left out", lambda s: replace(s, additional=""), id="devices"),
        pytest.param("another init-data", lambda s: replace(s, init_data=s.init_data + "# more\n"), id="init-data"),
    ],
)
def test_signed_evidence_is_recorded_one_by_one(tmp_path: Path, what: str, change: Any) -> None:
    with broker(tmp_path) as made:
        _refused(made, change, SINGLY_EACH + 3)
        assert len(_entries(made)) == SINGLY_EACH + 3, what


def test_networks_have_their_own_share_and_a_common_bound() -> None:
    refusals = Refusals()
    taken = [refusals.singly(FORGED, f"192.0.2.{n // 50}", NOW) for n in range(500)]
    assert taken[:50] == taken[50:100] == [True] * SINGLY_EACH + [False] * (50 - SINGLY_EACH)
    assert sum(taken) == SINGLY_ALL
    assert refusals.summed_up == 500 - SINGLY_ALL


def test_a_window_that_is_over_starts_anew() -> None:
    refusals, log = Refusals(), _Log()
    for _ in range(SINGLY_EACH):
        assert refusals.singly(FORGED, "a", NOW)
    assert not refusals.singly(FORGED, "a", NOW)
    refusals.sum_up(log, NOW + WINDOW - timedelta(seconds=1))  # type: ignore[arg-type]
    assert not log.bodies
    refusals.sum_up(log, NOW + WINDOW)  # type: ignore[arg-type]
    assert [body["count"] for body in log.bodies] == [1]
    assert refusals.singly(FORGED, "a", NOW + WINDOW)


def test_a_million_networks_are_few_words() -> None:
    refusals, log = Refusals(), _Log()
    for number in range(MAX_NETWORKS * 2):
        refusals.singly(FORGED, f"2001:db8:{number:x}::", NOW)
    refusals.sum_up(log, NOW, ending=True)  # type: ignore[arg-type]
    (body,) = log.bodies
    assert body["count"] == MAX_NETWORKS * 2 - SINGLY_ALL == sum(body["networks"].values())
    assert len(body["networks"]) == SHOWN + 1
    assert OTHERS in body["networks"]


def test_counts_outlive_a_database_that_does_not_answer() -> None:
    refusals, log = Refusals(), _Log(failures=1)
    for _ in range(SINGLY_EACH + 2):
        refusals.singly(FORGED, "a", NOW)
    with pytest.raises(Unavailable):
        refusals.sum_up(log, NOW + WINDOW)  # type: ignore[arg-type]
    refusals.singly(FORGED, "a", NOW + WINDOW)
    refusals.sum_up(log, NOW + 2 * WINDOW)  # type: ignore[arg-type]
    assert [body["count"] for body in log.bodies] == [2]
    assert log.bodies[0]["since"] == NOW.isoformat()


@pytest.mark.parametrize("kind", [Untrusted, Malformed, Denied])
def test_what_is_found_after_the_signature_says_so(kind: type[AttestationError]) -> None:
    before = kind("x", "x")
    with pytest.raises(kind) as caught, after_signature():
        raise kind("x", "x")
    assert (before.signed, caught.value.signed) == (False, True)


def test_a_server_that_ends_records_what_it_counted(tmp_path: Path) -> None:
    with broker(tmp_path) as made:
        with served(made) as running:
            for _ in range(SINGLY_EACH + 1):
                made.world.refusals.singly(FORGED, "192.0.2.1", NOW)
            with urlopen(f"{running.admin_url}/metrics") as answer:
                assert b"\nkata_gpu_kbs_refusals_summed_up_total 1.0\n" in answer.read()
        assert _entries(made)[-1].body["networks"] == {"192.0.2.1": 1}


class _Log:
    """An audit log that fails first."""

    def __init__(self, failures: int = 0) -> None:
        self.failures, self.bodies = failures, list[Any]()

    def record(self, *, body: Any, **_rest: object) -> int:
        if self.failures:
            self.failures -= 1
            raise Unavailable("store", "gone")
        self.bodies.append(body)
        return len(self.bodies)
