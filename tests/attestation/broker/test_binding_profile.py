"""The binding profile: agreed on in `/auth`, fixed by the session, required by a key. No way down for anybody between."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from attestation.appraise.policy_toml import parse_conditions
from attestation.errors import Denied, Misconfigured, Untrusted
from attestation.guest.client import KbsClient
from attestation.guest.evidence import Challenge, Evidence, EvidenceProvider, collect
from attestation.guest.http import PinnedHttp, Reply
from attestation.simulate.vm import SimulatedVm
from attestation.values import BindingProfile
from tests.attestation.broker.broker import GPU_POLICY, INIT_DATA, PATH, Broker, Served, ready_broker, served
from tests.conformance.rust_client import RustClient, TeeKey, Wire
from tests.conformance.transcripts import snp_attester

NATIVE, STOCK = BindingProfile.CGPU_V1, BindingProfile.TRUSTEE_RCAR
ONLY_NATIVE = GPU_POLICY.replace("version = 1\n", 'version = 1\nbinding_profile = "cgpu-v1"\n')
VM = SimulatedVm(init_data=INIT_DATA)


@pytest.fixture(scope="module")
def kbs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One GPU key, behind real listeners."""
    with ready_broker(tmp_path_factory.mktemp("kbs"), simulated=True) as made, served(made) as running:
        yield running


def own_guest(kbs: Served, *profiles: BindingProfile, **kwargs: Any) -> KbsClient:
    return KbsClient(PinnedHttp(kbs.url, certificate=None), VM.provider(), profiles=profiles, **kwargs)


def stock_guest(kbs: Served) -> RustClient:
    return RustClient(wire=Wire(kbs.url), tee="snp", attester=snp_attester, key=TeeKey.make())


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [
        pytest.param((NATIVE, STOCK), NATIVE, id="strongest-of-two"),
        pytest.param((STOCK, NATIVE), NATIVE, id="order-does-not-matter"),
        pytest.param((NATIVE,), NATIVE, id="native-only"),
        pytest.param((STOCK,), STOCK, id="stock-only"),
    ],
)
def test_our_guest_gets_its_key_by_the_strongest_profile(
    kbs: Served, offered: tuple[BindingProfile, ...], chosen: BindingProfile
) -> None:
    """The session says which one was used, and the record of the attestation too."""
    client = own_guest(kbs, *offered)
    assert client.fetch(PATH).expose() == b"k" * 32
    assert client.attested is not None
    assert client.attested.challenge.profile is chosen
    assert kbs.broker.world.attestations.recent(1)[0].facts.binding["profile"] == chosen


@pytest.mark.parametrize(
    ("extra", "answer"),
    [
        pytest.param("", "", id="upstream-old"),
        pytest.param({"supported-hash-algorithms": ["sha384"]}, "", id="upstream"),
        pytest.param({"binding-profiles": ["cgpu-v9"]}, "", id="unknown"),
        pytest.param({"binding-profiles": "cgpu-v1"}, "", id="text"),
        pytest.param({"binding-profiles": {"cgpu-v1": 1}}, "", id="object"),
        pytest.param({"binding-profiles": [["cgpu-v1"]]}, "", id="nested"),
        pytest.param({"binding-profiles": ["trustee-rcar-0.4"]}, "", id="only-stock"),
        pytest.param({"binding-profiles": ["cgpu-v9", "cgpu-v1"]}, {"binding-profile": "cgpu-v1"}, id="newer-guest"),
    ],
)
def test_answer_to_an_offer(kbs: Served, extra: Any, answer: Any) -> None:
    """Upstream's guests get upstream's empty string, byte for byte; an offer is answered with the choice."""
    wire = Wire(kbs.url)
    reply = wire.call("POST", "/kbs/v0/auth", {"version": "0.4.0", "tee": "snp", "extra-params": extra})
    wire.close()
    assert reply.status == 200
    assert reply.json()["extra-params"] == answer


def test_a_stock_guest_gets_its_key(kbs: Served) -> None:
    """Unmodified clients are served as before."""
    client = stock_guest(kbs)
    assert client.get_resource(f"resource/{PATH}") == b"k" * 32
    client.wire.close()


@pytest.mark.parametrize(("agreed", "used"), [(NATIVE, STOCK), (STOCK, NATIVE)], ids=["down", "up"])
def test_evidence_of_another_profile_than_agreed(kbs: Served, agreed: BindingProfile, used: BindingProfile) -> None:
    """The session decides, not the evidence: whoever binds otherwise is refused, in both directions."""

    def otherwise(provider: EvidenceProvider, challenge: Challenge) -> Evidence:
        return collect(provider, replace(challenge, profile=used))

    client = own_guest(kbs, agreed, collect=otherwise)
    with pytest.raises(Denied) as caught:
        client.fetch(PATH)
    assert caught.value.code == "denied"
    assert kbs.broker.world.audit.tail(1)[0].body["code"] == "report-data-mismatch"


def test_an_offer_that_was_cut_out_on_the_way(kbs: Served) -> None:
    """Without TLS somebody can remove the offer; a guest that insists on the native profile notices."""

    class Stripping(PinnedHttp):
        def call(self, method: str, path: str, *, json: Any = None, **kwargs: Any) -> Reply:
            if path.endswith("/auth"):
                json = json | {"extra-params": ""}
            return super().call(method, path, json=json, **kwargs)

    http = Stripping(kbs.url, certificate=None)
    with pytest.raises(Untrusted) as caught:
        KbsClient(http, VM.provider(), profiles=(NATIVE,)).fetch(PATH)
    assert caught.value.code == "profile-downgrade"
    kbs.broker.put(policy=ONLY_NATIVE)
    try:
        with pytest.raises(Denied):  # and a key that insists is safe with guests that do not
            KbsClient(http, VM.provider()).fetch(PATH)
    finally:
        kbs.broker.put(policy=GPU_POLICY)


def test_a_key_may_require_a_profile(tmp_path: Path) -> None:
    """Denied with a finding of its own for the stock profile, released for the native one."""
    with ready_broker(tmp_path, simulated=True) as made, served(made) as running:
        made.put(policy=ONLY_NATIVE)
        stock = stock_guest(running)
        stock.handshake()
        assert stock.get(f"resource/{PATH}").status == 403
        stock.wire.close()
        assert [f["code"] for f in _findings(made)] == ["binding-profile-too-weak"]
        assert own_guest(running, NATIVE, STOCK).fetch(PATH).expose() == b"k" * 32


def _findings(made: Broker) -> list[dict[str, str]]:
    findings = made.world.audit.tail(1)[0].body["findings"]
    assert isinstance(findings, list)
    return findings


@pytest.mark.parametrize("value", ['"cgpu-v0"', '["cgpu-v1"]', "1", '""'], ids=["unknown", "list", "number", "empty"])
def test_a_policy_names_a_profile_that_exists(value: str) -> None:
    """Anything else is refused where it is written."""
    assert parse_conditions(ONLY_NATIVE).binding_profile is NATIVE
    assert parse_conditions(GPU_POLICY).binding_profile is None
    with pytest.raises(Misconfigured) as caught:
        parse_conditions(ONLY_NATIVE.replace('"cgpu-v1"', value))
    assert caught.value.where == "binding_profile"
