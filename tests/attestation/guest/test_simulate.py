"""The simulated VM against the broker's own verifier: an honest one is bound, each fault is refused for its reason."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from attestation.cli.platform import platform_verifier
from attestation.cli.simulate import _FAULTS, simulate
from attestation.crypto.binding import DEFAULT_HASH
from attestation.errors import AttestationError
from attestation.guest.client import attest_body
from attestation.guest.evidence import Challenge
from attestation.simulate.vm import Fault, SimulatedVm
from attestation.values import Architecture, BindingProfile, Level, Tee
from attestation.verify.platform import Expected, PlatformEvidence, verify_platform
from attestation.verify.verified import BoundPlatform
from tests.attestation.tee.world import JWK, NONCE, NOW

INIT_DATA = 'version = "0.1.0"\nalgorithm = "sha256"\n[data]\n'
PROFILES = [BindingProfile.CGPU_V1, BindingProfile.TRUSTEE_RCAR]


def judge(vm: SimulatedVm, profile: BindingProfile) -> BoundPlatform:
    """What the broker makes of a VM's answer to one challenge."""
    verifier = platform_verifier(collateral=None, simulated_roots="builtin", sample=True)
    challenge = Challenge(nonce=NONCE, profile=profile, hash_name=DEFAULT_HASH, tee_key=JWK)
    body = attest_body(challenge, vm.collect(vm.provider(), challenge))
    init_data = body["init-data"]
    evidence = PlatformEvidence(
        tee=vm.tee,
        primary=body["tee-evidence"]["primary_evidence"],
        additional=body["tee-evidence"]["additional_evidence"],
        nonce=body["runtime-data"]["nonce"],
        tee_jwk=body["runtime-data"]["tee-pubkey"],
        init_data=init_data["body"] if init_data else None,
        profile=profile,
    )
    return verify_platform(
        evidence,
        session=Expected(tee=vm.tee, nonce=NONCE, profile=profile),
        trust=verifier.trust,
        collateral=verifier.collateral,
        policy=verifier.policy,
        now=NOW,
    )


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("tee", [Tee.SNP, Tee.TDX, Tee.SAMPLE])
def test_an_honest_vm_is_bound(tee: Tee, profile: BindingProfile) -> None:
    """CPU, GPU, init-data, nonce and key, under both profiles."""
    found = judge(SimulatedVm(tee=tee, init_data=INIT_DATA), profile)
    assert [device.level for device in found.devices] == [Level.TRUSTED]
    assert (found.cpu.tee, found.profile) == (tee, profile)
    assert found.init_data_digest is not None


def test_a_protected_pcie_board() -> None:
    """Eight GPUs and four switches over one nonce."""
    found = judge(SimulatedVm(gpus=8, switches=4), BindingProfile.CGPU_V1)
    assert (len(found.gpus), len(found.switches)) == (8, 4)


def test_blackwell() -> None:
    """The other architecture."""
    (device,) = judge(SimulatedVm(arch=Architecture.BLACKWELL), BindingProfile.CGPU_V1).devices
    assert (device.arch, device.level) == (Architecture.BLACKWELL, Level.TRUSTED)


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (Fault.REPLAY_GPU, "nonce-mismatch"),
        (Fault.DUPLICATE_GPU, "device-duplicate"),
        (Fault.STALE_NONCE, "report-data-mismatch"),
        (Fault.OTHER_INIT_DATA, "init-data-mismatch"),
    ],
)
def test_evidence_that_is_false_is_refused(fault: Fault, code: str, profile: BindingProfile) -> None:
    """For its own reason, under both profiles."""
    with pytest.raises(AttestationError) as refused:
        judge(SimulatedVm(init_data=INIT_DATA, faults=frozenset({fault})), profile)
    assert refused.value.code == code


def test_evidence_that_is_true_and_bad_is_judged_by_policy() -> None:
    """A changed measurement is honestly reported: the device is authentic and not trusted; a missing GPU is missing."""
    (device,) = judge(SimulatedVm(faults=frozenset({Fault.GPU_MEASUREMENT})), BindingProfile.CGPU_V1).devices
    assert device.level is Level.AUTHENTIC
    assert judge(SimulatedVm(faults=frozenset({Fault.MISSING_GPU})), BindingProfile.CGPU_V1).devices == ()
    good = judge(SimulatedVm(), BindingProfile.CGPU_V1).cpu.measurement
    for tee in (Tee.SNP, Tee.TDX):
        bad = judge(SimulatedVm(tee=tee, faults=frozenset({Fault.CPU_MEASUREMENT})), BindingProfile.CGPU_V1).cpu
        assert bad.measurement == "ee" * 48 != good


def test_command_line_offers_every_fault() -> None:
    """The table of the command is the vocabulary."""
    assert set(_FAULTS.choices) == set(Fault)


def test_roots_are_written_and_say_what_they_are(tmp_path: Path) -> None:
    """PEM files and one document for every simulated product."""
    result = CliRunner().invoke(simulate, ["roots", str(tmp_path / "sim")], catch_exceptions=False)
    assert "proves nothing" in result.stdout
    assert {p.name for p in (tmp_path / "sim").iterdir() if p.is_file()} >= {
        "nvidia-device-root.pem",
        "nvidia-rim-root.pem",
    }
    assert len(list((tmp_path / "sim" / "rims").iterdir())) == 5


def test_evidence_is_printed_as_the_body_of_attest() -> None:
    """For tools that post it themselves."""
    result = CliRunner().invoke(simulate, ["evidence", "--nonce", NONCE, "--gpus", "2"], catch_exceptions=False)
    body = json.loads(result.stdout)
    assert body["runtime-data"]["nonce"] == NONCE
    listed = json.loads(body["tee-evidence"]["additional_evidence"])["nvidia"]["device_evidence_list"]
    assert len(listed) == 2
