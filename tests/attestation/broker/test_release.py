"""Who gets a key, through challenge, evidence, appraisal and conditions, with the real verifier on forged vendors.

The forged vendors stand for real ones here (`simulated=False`), so that the production rules can be tested at all.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from joserfc import jws
from joserfc.jwk import ECKey

from attestation.broker.revocation import RevocationKind
from attestation.broker.session import Submission
from attestation.broker.token import TokenKey, render_token
from attestation.cli.platform import platform_verifier
from attestation.cli.verification import BUILTIN
from attestation.crypto.jwe import unseal
from attestation.crypto.jwk import tee_key_of
from attestation.errors import AttestationError, Denied, Misconfigured, Untrusted
from attestation.formats.nv_evidence import parse_evidence
from attestation.formats.snp_tcb import Product
from attestation.ops.release import Credentials, authenticate
from attestation.ops.revocations import revoke
from attestation.simulate.amd import MEASUREMENT
from attestation.simulate.intel import QuoteForm
from attestation.simulate.nvidia import ForgedEvidence
from attestation.values import Architecture, BindingProfile, GpuMode, ResourcePath, Tee
from attestation.verify.roots import NvTrust
from tests.attestation.broker.broker import ADMIN, GPU_POLICY, INIT_DATA, NOW, PATH, Broker, broker, chip, ready_broker
from tests.attestation.broker.drive import attest
from tests.attestation.tee.world import Guest

DEBUG_POLICY_BIT = 1 << 19


@pytest.fixture
def kbs(tmp_path: Path) -> Iterator[Broker]:
    with ready_broker(tmp_path) as made:
        yield made


def guest(**changes: Any) -> Guest:
    return Guest(init_data=INIT_DATA).with_(**changes)


def denied(made: Broker, path: ResourcePath = PATH) -> str:
    """Codes of the newest denial, from the audit log."""
    return str(made.world.audit.about(str(path), "release-denied")[-1].body["findings"])


def test_the_right_guest_gets_the_key(kbs: Broker) -> None:
    """One SNP chip, one Hopper GPU, known measurement, accepted init-data: by cookie and by token."""
    visit = kbs.handshake()
    assert visit.get() == b"k" * 32
    assert visit.get(bearer=False) == b"k" * 32
    released = kbs.world.audit.about(str(PATH), "released")
    assert [entry.body["version"] for entry in released] == [1, 1]
    assert released[0].body["chip_id"] == chip().chip_id.hex()
    assert kbs.world.audit.verify() >= 4


def test_first_failing_reason_is_in_the_log(kbs: Broker) -> None:
    """The guest sees a ticket, the audit log the finding."""
    kbs.references({"snp_launch_measurement": ["00" * 48]})
    with pytest.raises(Denied) as caught:
        kbs.handshake().get()
    ticket = caught.value.what.rpartition("ticket ")[2].rstrip(")")
    entry = kbs.world.audit.about(str(PATH), "release-denied")[-1]
    assert entry.body["ticket"] == ticket
    assert "measurement-unknown" in str(entry.body["findings"])


# What the default configuration releases nothing to. Each case takes an honest guest and changes one thing.


def release_denied(made: Broker, who: Guest, code: str, **kwargs: Any) -> None:
    with pytest.raises(Denied):
        made.handshake(who, **kwargs).get()
    assert code in denied(made)


@pytest.mark.parametrize("profile", list(BindingProfile))
def test_a_tdx_guest_gets_the_key(kbs: Broker, profile: BindingProfile) -> None:
    """A forged TDX quote and a forged GPU for the live session, in both binding profiles."""
    path = ResourcePath.parse("default/model/tdx")
    kbs.put(
        path, policy=GPU_POLICY.replace('tee = ["snp"]', 'tee = ["tdx"]').replace("snp_launch_measurement", "mr_td")
    )
    td = QuoteForm()
    kbs.references({"mr_td": [td.mr_td.hex()], "rtmr_1": [td.rtmrs[1].hex()], "rtmr_2": [td.rtmrs[2].hex()]})
    visit = kbs.handshake(guest(tee=Tee.TDX, profile=profile), tee="tdx")
    assert visit.get(path) == b"k" * 32
    with pytest.raises(Denied):
        visit.get()  # the other key is for SNP
    assert "cpu-tee-not-accepted" in denied(kbs)


def test_genuine_gpu_bytes_in_a_live_session_fail_by_their_nonce_alone(tmp_path: Path, vectors: Path) -> None:
    """NVIDIA's own evidence under NVIDIA's own roots, presented by an otherwise honest guest: one reason, the nonce."""
    made = platform_verifier(collateral=None, simulated_roots=BUILTIN, sample=False)
    roots = replace(made.trust, nvidia=NvTrust.production())
    with broker(tmp_path, verifier=replace(made, trust=roots)) as kbs:
        (entry,) = parse_evidence((vectors / "nvidia" / "hopper_evidence.json").read_bytes())
        device = ForgedEvidence(arch=Architecture.HOPPER, report=entry.report, chain=entry.chain, key=chip().key)
        with pytest.raises(Untrusted) as caught:
            kbs.handshake(evidence=lambda who: who.evidence([device]))
        assert caught.value.code == "nonce-mismatch"
        refused = [entry for entry in kbs.world.audit.entries() if entry.event == "attest-refused"]
        assert [entry.body["code"] for entry in refused] == ["nonce-mismatch"]


def _gpu_of(made: Broker) -> str:
    return (
        authenticate(made.world, Credentials(cookie=None, bearer=made.handshake().token), now=NOW)
        .facts.devices[0]
        .chip_id
    )


def _with_hosts(made: Broker, host: str, gpus: list[str]) -> ResourcePath:
    path = ResourcePath.parse("default/model/hosts")
    made.put(path, policy=GPU_POLICY.replace("[init_data]", f'[gpus.hosts]\n"{host}" = {gpus}\n[init_data]'))
    return path


def test_gpus_listed_for_this_cpu(kbs: Broker) -> None:
    """`[gpus.hosts]` in any case of the letters; the audit log says that a list was asked, the attestation what it knew."""
    path = _with_hosts(kbs, chip().chip_id.hex().upper(), [_gpu_of(kbs).lower()])
    visit = kbs.handshake()
    assert visit.get(path) == b"k" * 32
    assert kbs.world.audit.about(str(path), "released")[0].body["identity_allowlist"] == "match"
    assert visit.get() == b"k" * 32
    assert kbs.world.audit.about(str(PATH), "released")[0].body["identity_allowlist"] == "off"
    binding = authenticate(kbs.world, Credentials(cookie=None, bearer=visit.token), now=NOW).facts.binding
    assert (binding["guest_measured"], binding["identity_allowlist"], binding["local_gate"]) == (True, "off", "none")


@pytest.mark.parametrize(
    "moved", [pytest.param(True, id="tee-063-other-cpu"), pytest.param(False, id="tee-063-other-gpu")]
)
def test_nothing_to_a_gpu_of_another_host(kbs: Broker, moved: bool) -> None:
    ours, gpu = chip().chip_id.hex(), _gpu_of(kbs)
    path = _with_hosts(kbs, "ab" * 64, [gpu]) if moved else _with_hosts(kbs, ours, ["0000000000000000"])
    with pytest.raises(Denied):
        kbs.handshake().get(path)
    findings = kbs.world.audit.about(str(path), "release-denied")[-1].body["findings"]
    assert isinstance(findings, list)
    assert [f["code"] for f in findings] == ["gpu-not-of-this-host"]


def test_an_unknown_guest_is_not_measured(kbs: Broker) -> None:
    kbs.references({"snp_launch_measurement": ["00" * 48]})
    binding = authenticate(kbs.world, Credentials(cookie=None, bearer=kbs.handshake().token), now=NOW).facts.binding
    assert binding["guest_measured"] is False


def test_nothing_to_the_sample_tee(kbs: Broker, tmp_path: Path) -> None:
    """Not even a challenge by default; and where it is enabled, not beside a real key."""
    with pytest.raises(Denied) as caught:
        kbs.handshake(tee="sample")
    assert caught.value.code == "tee-disabled"
    with pytest.raises(Misconfigured) as refused, broker(tmp_path, sample=True):
        pass
    assert refused.value.code == "simulated-with-real-keys"


def test_nothing_to_simulated_roots_beside_real_keys(kbs: Broker, tmp_path: Path) -> None:
    """Start-up is refused on a store that holds any key not labelled test."""
    assert not kbs.world.keys.only_test_keys()
    with pytest.raises(Misconfigured) as refused, broker(tmp_path, simulated=True):
        pass
    assert refused.value.code == "simulated-with-real-keys"


def test_simulated_roots_release_test_keys_only_and_tokens_say_so(tmp_path: Path) -> None:
    """Keys stored by a simulated broker are labelled; one that appears without the label is not released."""
    with ready_broker(tmp_path, simulated=True) as made:
        assert made.world.keys.only_test_keys()
        visit = made.handshake()
        assert visit.get() == b"k" * 32
        claims = jws.deserialize_compact(visit.token, made.world.authority.current.key, algorithms=["ES256"]).payload
        assert b'"simulated":true' in claims
        other = replace(made.world, simulated=False)
        replace(made, world=other).put(ResourcePath.parse("default/model/real"), policy=GPU_POLICY)
        with pytest.raises(Denied):
            visit.get(ResourcePath.parse("default/model/real"))
        assert "forgeable-evidence" in denied(made, ResourcePath.parse("default/model/real"))


def test_nothing_to_a_debug_tee(kbs: Broker) -> None:
    """A debuggable guest is refused before any policy."""
    with pytest.raises(Denied) as caught:
        kbs.handshake(guest(), evidence=lambda g: g.evidence(policy=g.chip.fields().policy | DEBUG_POLICY_BIT))
    assert "debug" in caught.value.code


def test_nothing_without_the_required_gpu(kbs: Broker) -> None:
    """An honest CPU-only attestation is not enough."""
    release_denied(kbs, guest(gpus=0), "gpu-count-wrong")


def test_nothing_to_more_gpus_than_named(kbs: Broker) -> None:
    """A count is exact unless the policy says at least."""
    release_denied(kbs, guest(gpus=2), "gpu-count-wrong")


def test_nothing_to_a_gpu_without_cpu_affirmation(kbs: Broker) -> None:
    """Genuine GPU, unknown guest: the GPU claims nothing either."""
    release_denied(kbs, guest(), "cpu-not-affirmed", evidence=lambda g: g.evidence(measurement=bytes(48)))
    assert "measurement-unknown" in denied(kbs)


def test_nothing_to_one_gpu_twice(kbs: Broker) -> None:
    """The same device listed twice, and two reports of one device."""
    kbs.put(policy=GPU_POLICY.replace("count = 1", "count = 2"))
    for make in (_same_report_twice, _two_reports_of_one_gpu):
        with pytest.raises(Untrusted) as caught:
            kbs.handshake(guest(), evidence=make)
        assert caught.value.code == "device-duplicate"


def _same_report_twice(who: Guest) -> Any:
    return who.evidence(who.devices() * 2)


def _two_reports_of_one_gpu(who: Guest) -> Any:
    (device,) = who.devices()
    return who.evidence([device, device.resign(device.signed)])


def test_nothing_to_unknown_gpu_firmware(kbs: Broker) -> None:
    """Authentic is not trusted: one measurement differs from the vendor's reference."""
    from tests.attestation.tee.world import FORGE

    def make(who: Guest) -> Any:
        index = min(FORGE.measurements(who.arch))
        changed = FORGE.device(who.arch, 0, nonce=who.device_nonce().raw, measurements={index: b"\xee" * 48})
        return who.evidence([changed])

    release_denied(kbs, guest(), "measurement-mismatch", evidence=make)
    index = min(FORGE.measurements(guest().arch))
    findings: Any = kbs.world.audit.about(str(PATH), "release-denied")[-1].body["findings"]
    (finding,) = [f for f in findings if f["check"] == "gpu-level"]
    assert finding["got"] == f"measurement[{index}]: {'ee' * 48}"
    assert "NV_GPU_" in finding["hint"]  # the reference document that it was compared with


PPCIE_POLICY = GPU_POLICY.replace('mode = ["on"]', 'mode = ["ppcie"]')


def test_a_protected_pcie_board_gets_the_key(kbs: Broker) -> None:
    """8 GPUs in Protected PCIe and 4 locked switches; the key asks for the mode, and names the switches or not."""
    from tests.attestation.tee.world import FORGE

    def make(who: Guest) -> Any:
        return who.evidence(FORGE.board(nonce=who.device_nonce().raw))

    for switches in ("", "[switches]\ncount = 4\n"):
        kbs.put(policy=PPCIE_POLICY.replace("count = 1", "count = 8") + switches)
        assert kbs.handshake(guest(), evidence=make).get() == b"k" * 32


def test_nothing_to_a_part_of_a_protected_pcie_board(kbs: Broker) -> None:
    """A single GPU is consistent by itself, but its links to the others are not encrypted."""
    who = guest(mode=GpuMode.PPCIE)
    kbs.put(policy=PPCIE_POLICY)
    release_denied(kbs, who, "ppcie-incomplete")
    kbs.put(policy=PPCIE_POLICY.replace('["ppcie"]', '["on", "ppcie"]'))
    release_denied(kbs, who, "ppcie-incomplete")


def test_nothing_on_an_expired_reference_value(kbs: Broker) -> None:
    """Expiry is enforced on the day."""
    kbs.references({"snp_launch_measurement": [MEASUREMENT.hex()]}, lifetime=timedelta(days=1))
    assert kbs.handshake().get() == b"k" * 32
    kbs.clock.now = NOW + timedelta(days=2)
    release_denied(kbs, guest(), "reference-value-expired")


def test_nothing_on_a_replayed_nonce(kbs: Broker) -> None:
    """Evidence for one challenge answers no other."""
    first: list[Submission] = []

    def keep(submission: Submission) -> Submission:
        first.append(submission)
        return submission

    kbs.handshake(change=keep)
    with pytest.raises(Untrusted) as caught:
        kbs.handshake(change=lambda _: first[0])
    assert caught.value.code == "nonce-mismatch"
    with pytest.raises(Untrusted) as caught:
        kbs.handshake(change=lambda s: replace(first[0], nonce=s.nonce))
    assert caught.value.code == "report-data-mismatch"


def test_nothing_to_the_holder_of_another_tee_key(kbs: Broker) -> None:
    """A stolen token yields a JWE that only the attested key opens; and the key in the request is covered by the quote."""
    visit = kbs.handshake()
    with pytest.raises(Untrusted):
        unseal(visit.sealed(), ec.generate_private_key(ec.SECP256R1()))
    thief = tee_key_of(ec.generate_private_key(ec.SECP256R1()).public_key())
    with pytest.raises(Untrusted) as caught:
        kbs.handshake(change=lambda s: replace(s, tee_key=thief))
    assert caught.value.code == "report-data-mismatch"


def test_nothing_without_init_data(kbs: Broker) -> None:
    """Absent init-data is not a waiver."""
    release_denied(kbs, guest(init_data=None), "init-data-absent")


def test_nothing_to_unknown_init_data(kbs: Broker) -> None:
    """Bound by the TEE and not in the key's list."""
    release_denied(kbs, guest(init_data=INIT_DATA.replace("token_configs", "other")), "init-data-unknown")


def test_nothing_to_swapped_init_data(kbs: Broker) -> None:
    """The document shown is not the one the TEE was launched with."""
    with pytest.raises(Untrusted) as caught:
        kbs.handshake(
            guest(init_data=INIT_DATA.replace("token_configs", "other")),
            change=lambda s: replace(s, init_data=INIT_DATA),
        )
    assert caught.value.code == "init-data-mismatch"


def test_nothing_to_milan_without_opt_in(kbs: Broker) -> None:
    """Its root seed can be extracted in software; the verifier's own policy refuses it first."""
    with pytest.raises(Denied) as caught:
        kbs.handshake(guest(chip=chip(product=Product.MILAN)))
    assert "product" in caught.value.code


def test_nothing_to_a_gpu_whose_mode_is_not_proven(kbs: Broker) -> None:
    """Protected PCIe is another mode than the one the key names."""
    release_denied(kbs, guest(mode=GpuMode.PPCIE), "gpu-mode-not-accepted")


def _foreign(made: Broker) -> str:
    """The same claims from an attestation service that is not ours."""
    attested = authenticate(made.world, Credentials(cookie=None, bearer=made.handshake().token), now=NOW)
    key = TokenKey.of(ECKey.generate_key("P-256").as_pem(private=True))
    return render_token(attested, replace(made.world.authority, current=key))


def _nras_shaped(made: Broker) -> str:
    key = ECKey.generate_key("P-384")
    payload = b'{"iss":"https://nras.attestation.nvidia.com","x-nvidia-overall-att-result":true,"jti":"1"}'
    return jws.serialize_compact({"alg": "ES384", "kid": "nv-eat-kid-prod"}, payload, key, algorithms=["ES384"])


def _nonceless(made: Broker) -> str:
    """Signed by us, but for no handshake of ours."""
    attested = authenticate(made.world, Credentials(cookie=None, bearer=made.handshake().token), now=NOW)
    return render_token(replace(attested, jti="never-recorded", nonce=""), made.world.authority)


def _other_audience(made: Broker) -> str:
    attested = authenticate(made.world, Credentials(cookie=None, bearer=made.handshake().token), now=NOW)
    return render_token(attested, replace(made.world.authority, audience="another-broker"))


def _unsigned(made: Broker) -> str:
    _head, body, _ = made.handshake().token.split(".")
    return f"eyJhbGciOiJub25lIn0.{body}."


@pytest.mark.parametrize(
    ("make", "code"),
    [
        pytest.param(_nras_shaped, "token-key", id="nras-shaped"),
        pytest.param(_foreign, "token-key", id="external"),
        pytest.param(_nonceless, "token-unknown", id="nonce-less"),
        pytest.param(_other_audience, "token-aud", id="other-audience"),
        pytest.param(_unsigned, "token-key", id="alg-none"),
        pytest.param(lambda _: "a.b.c", "token-signature", id="garbage"),
        pytest.param(lambda _: "\u00e9" * 50, "token-signature", id="not-ascii"),
        pytest.param(lambda _: "x" * 100_000, "token-size", id="long"),
    ],
)
def test_nothing_on_other_tokens(kbs: Broker, make: Callable[[Broker], str], code: str) -> None:
    """Only a token of ours, for a handshake of ours, finds an attestation."""
    token = make(kbs)
    with pytest.raises(Untrusted) as caught:
        authenticate(kbs.world, Credentials(cookie=None, bearer=token), now=NOW)
    assert caught.value.code == code


def test_nothing_after_expiry_or_revocation(kbs: Broker) -> None:
    """Five minutes, or until the operator takes it back."""
    visit = kbs.handshake()
    gpu = authenticate(kbs.world, Credentials(cookie=None, bearer=visit.token), now=NOW).facts.devices[0].chip_id
    revoke(kbs.world, ADMIN, RevocationKind.GPU, gpu, "stolen", now=NOW)
    with pytest.raises(Untrusted) as caught:
        visit.get()
    assert caught.value.code == "revoked"
    fresh = kbs.handshake(guest(gpus=0))
    kbs.clock.now = NOW + timedelta(minutes=6)
    for bearer in (True, False):
        with pytest.raises(Untrusted):
            fresh.get(bearer=bearer)


def test_nothing_from_a_key_without_policy(kbs: Broker) -> None:
    """No conditions means no release, and an absent key looks the same."""
    kbs.put(ResourcePath.parse("default/a/b"))
    visit = kbs.handshake()
    for path in ("default/a/b", "default/no/such"):
        with pytest.raises(Denied) as caught:
            visit.get(ResourcePath.parse(path))
        assert caught.value.code == "policy-denied"


def test_limits(kbs: Broker) -> None:
    """At most n releases, and only inside the window."""
    kbs.put(policy=GPU_POLICY + "[release]\nmax_releases = 2\n")
    visit = kbs.handshake()
    assert visit.get() == visit.get()
    with pytest.raises(Denied):
        visit.get()
    assert "releases-exhausted" in denied(kbs)
    kbs.put(policy=GPU_POLICY + "[release]\nnot_before = 2027-01-01T00:00:00Z\n")
    with pytest.raises(Denied):
        visit.get()
    assert "outside-time-window" in denied(kbs)


def test_a_burned_challenge_stays_burned(kbs: Broker) -> None:
    """After refused evidence, good evidence for the same nonce comes too late; the same good body twice does not."""
    from attestation.ops.challenge import issue_challenge

    issued = issue_challenge(kbs.world, version="0.4.0", tee="snp", now=NOW)
    key = tee_key_of(ec.generate_private_key(ec.SECP256R1()).public_key())
    made = guest(nonce=issued.challenged.nonce, jwk=key.jwk).evidence()
    good = Submission(
        nonce=made.nonce, tee_key=key, init_data=made.init_data, primary=made.primary, additional=made.additional
    )
    bad = replace(good, additional="")

    def send(submission: Submission, digest: str, cookie: str = issued.cookie) -> str:
        return attest(kbs.world, cookie=cookie, submission=submission, body_digest=digest, now=NOW).token

    with pytest.raises(AttestationError):
        send(bad, "bb")
    with pytest.raises(Untrusted) as caught:
        send(good, "aa")
    assert caught.value.code == "session-burned"


def test_rotation_and_bundles(kbs: Broker) -> None:
    """A new version is what the next GET returns; a bundle gives every shard, if every shard's policy allows it."""
    import json

    kbs.put(secret=b"n" * 32)
    visit = kbs.handshake()
    assert visit.get() == b"n" * 32
    shards = [ResourcePath.parse(f"default/model/shard{i}") for i in range(3)]
    for path in shards:
        kbs.put(path, secret=str(path).encode(), policy=GPU_POLICY)
    from attestation.broker.keys import KeyKind

    bundle = ResourcePath.parse("default/model/all")
    kbs.put(bundle, json.dumps([str(path) for path in shards]).encode(), kind=KeyKind.BUNDLE, policy=GPU_POLICY)
    assert set(json.loads(visit.get(bundle))["keys"]) == {str(path) for path in shards}
    assert len(kbs.world.audit.about(str(shards[0]), "released")) == 1
    kbs.put(shards[1], policy=GPU_POLICY.replace("count = 1", "count = 8"))
    with pytest.raises(Denied):
        visit.get(bundle)


def test_token_with_eight_gpus_is_small(kbs: Broker) -> None:
    """Under 4 KB, so that it travels in any header."""
    visit = kbs.handshake(guest(gpus=8))
    assert len(visit.token) < 4096


def test_the_native_binding_profile(kbs: Broker) -> None:
    """Offered and chosen, the evidence must be bound by it: evidence of the other profile is refused."""
    native = guest(profile=BindingProfile.CGPU_V1)
    assert kbs.handshake(native).get() == b"k" * 32
    other = guest(profile=BindingProfile.TRUSTEE_RCAR)
    with pytest.raises(Untrusted) as caught:
        kbs.handshake(native, evidence=lambda g: other.with_(nonce=g.nonce, jwk=g.jwk).evidence())
    assert caught.value.code == "report-data-mismatch"
