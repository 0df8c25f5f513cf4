"""Stored revocation answers within a device verification: the default policy, met and not met."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509 import ocsp

from attestation.findings import Result
from attestation.simulate.pki import CertSpec, mint
from attestation.values import Level
from attestation.verify.nv_collateral import NvCache
from attestation.verify.nv_policy import NvPolicy
from attestation.verify.revocation import ChainKind, RevocationPolicy, RevocationRule, RevocationStatus
from tests.attestation.forged_revocation import Signer, forge_ocsp
from tests.attestation.gpu.support import (
    FORGE,
    FORGED,
    HOPPER,
    NONCE,
    NOW,
    falls_short,
    find,
    refused,
    verify,
    with_rim,
)

GOOD, REVOKED = ocsp.OCSPCertStatus.GOOD, ocsp.OCSPCertStatus.REVOKED
DAY = timedelta(days=1)
DEVICE = FORGE.device(nonce=NONCE)


class Answers:
    """One OCSP response per certificate, by serial number."""

    def __init__(self, answers: Mapping[int, bytes]) -> None:
        self._answers = answers

    def ocsp_responses(self, certificate: x509.Certificate, issuer: x509.Certificate) -> Sequence[bytes]:
        found = self._answers.get(certificate.serial_number)
        return (found,) if found is not None else ()

    def crls(self, issuer: x509.Certificate) -> Sequence[bytes]:
        return ()


def answers(specs: Sequence[CertSpec], *, revoked: int | None = None, hold: bool = False) -> dict[int, bytes]:
    """Good answers for a chain, but for the certificate at position `revoked`."""
    certificates = mint(specs)
    reason = x509.ReasonFlags.certificate_hold if hold else x509.ReasonFlags.key_compromise
    found: dict[int, bytes] = {}
    for position in range(len(specs) - 1):
        key = specs[position + 1].key
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        bad = position == revoked
        found[specs[position].serial] = forge_ocsp(
            certificates[position], certificates[position + 1], Signer(certificates[position + 1], key),
            this_update=NOW - DAY, next_update=NOW + DAY, status=REVOKED if bad else GOOD,
            reason=reason if bad else None,
        )  # fmt: skip
    return found


DEVICE_SPECS, RIM_SPECS = FORGE.device_specs(HOPPER, 0), FORGE.rim_specs(HOPPER)
RIM_GOOD = answers(RIM_SPECS)


def judged(known: Mapping[int, bytes]) -> object:
    collateral = replace(FORGED, policy=NvPolicy(), revocation=Answers(known), cache=NvCache())
    return verify(DEVICE, collateral)


def test_default_policy_is_met_by_good_signers() -> None:
    """Reference-value signers good and recent; device certificates may be unknown."""
    collateral = replace(FORGED, policy=NvPolicy(), revocation=Answers(RIM_GOOD), cache=NvCache())
    assert verify(DEVICE, collateral).level is Level.TRUSTED
    both = replace(collateral, revocation=Answers(RIM_GOOD | answers(DEVICE_SPECS)))
    device = verify(DEVICE, both)
    assert device.level is Level.TRUSTED
    assert not [f for f in device.findings if f.code.startswith("revocation")]


@pytest.mark.parametrize("position", range(4), ids=["leaf", "brom", "provisioner", "identity"])
@pytest.mark.parametrize(("hold", "code"), [(False, "revocation-revoked"), (True, "revocation-hold")])
def test_revoked_device_certificate(position: int, hold: bool, code: str) -> None:
    """A revoked key proves nothing: refused, not merely distrusted."""
    refused(code, lambda: judged(RIM_GOOD | answers(DEVICE_SPECS, revoked=position, hold=hold)))


@pytest.mark.parametrize("position", range(3), ids=["signer", "l3", "l2"])
def test_revoked_signer(position: int) -> None:
    """A document under a revoked signer does not count."""
    collateral = replace(
        FORGED, policy=NvPolicy(), revocation=Answers(answers(RIM_SPECS, revoked=position)), cache=NvCache()
    )
    falls_short(verify(DEVICE, collateral), "revocation-revoked")


def test_a_document_under_a_revoked_signer_does_no_harm_to_a_good_one() -> None:
    """Two documents for one id, by two signers of one authority; in either order the good one decides."""
    leaf, *above = RIM_SPECS
    stranger = [replace(leaf, key=FORGE.key("another signer"), serial=leaf.serial + 1000), *above]
    withdrawn, good = (FORGE.rim(HOPPER, driver=True, specs=specs) for specs in (stranger, RIM_SPECS))
    known = answers(stranger, revoked=0) | RIM_GOOD
    for documents in ((withdrawn, good), (good, withdrawn)):
        shelf = with_rim("NV_GPU_DRIVER_GH100_590.12", *documents)
        device = verify(DEVICE, replace(shelf, policy=NvPolicy(), revocation=Answers(known)))
        assert device.level is Level.TRUSTED
        assert find(device.findings, "revocation-revoked").result is Result.WARN


STRICT = RevocationRule(kind=ChainKind.DEVICE, accept=frozenset({RevocationStatus.GOOD}))
LEAF = {serial: answer for serial, answer in answers(DEVICE_SPECS).items() if serial == DEVICE_SPECS[0].serial}
AUTHORITIES = {serial: answer for serial, answer in answers(DEVICE_SPECS).items() if serial not in LEAF}


@pytest.mark.parametrize(
    ("rules", "known", "met"),
    [
        pytest.param({"device_leaf": STRICT}, LEAF, True, id="leaf"),
        pytest.param({"device_leaf": STRICT}, AUTHORITIES, False, id="leaf-unknown"),
        pytest.param({"device_ca": STRICT}, AUTHORITIES, True, id="authorities"),
        pytest.param({"device_ca": STRICT}, LEAF, False, id="authorities-unknown"),
    ],
)
def test_each_role_has_its_own_rule(rules: Mapping[str, RevocationRule], known: dict[int, bytes], met: bool) -> None:
    """A device that misses one is authentic: only what is known to be revoked proves nothing."""
    policy = NvPolicy(revocation=replace(RevocationPolicy(), **rules))
    device = verify(DEVICE, replace(FORGED, policy=policy, revocation=Answers(RIM_GOOD | known), cache=NvCache()))
    if met:
        assert device.level is Level.TRUSTED
    else:
        falls_short(device, "revocation-unknown")


def test_stale_answers() -> None:
    later = replace(
        FORGED, policy=NvPolicy(), revocation=Answers(RIM_GOOD), cache=NvCache(), now=NOW + timedelta(days=40)
    )
    falls_short(verify(DEVICE, later), "revocation-stale")


def test_answers_are_judged_at_every_time() -> None:
    """One cache, two times: signatures are remembered, freshness is not."""
    cache = NvCache()
    today = replace(FORGED, policy=NvPolicy(), revocation=Answers(RIM_GOOD), cache=cache)
    assert verify(DEVICE, today).level is Level.TRUSTED
    falls_short(verify(DEVICE, replace(today, now=NOW + timedelta(days=40))), "revocation-stale")
    assert verify(DEVICE, today).level is Level.TRUSTED
