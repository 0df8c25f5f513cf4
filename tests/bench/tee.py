"""CPU TEE verification against its own signatures, against bare dcap-qvl, and a whole platform against both.

The signature-only limit of a platform counts the signatures that a request needs with chains and collateral cached:
one over the CPU report, and one over the report of each device. Nothing else is in it: no parsing, hashing of
evidence, JSON or policy. The platform attests again: chip, launch and devices are known, the nonce is new. The promise
is for CPU evidence as our own guest sends it, raw bytes in base64; the stock attester's arrays of numbers are reported
beside it. Evidence is forged, with the vendors' layouts; no genuine set answers one nonce.
"""

import json
from base64 import b64encode
from collections.abc import Callable
from datetime import UTC, datetime
from uuid import UUID

import dcap_qvl
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from attestation.crypto import binding
from attestation.findings import Result
from attestation.formats.der import parse_certificate
from attestation.formats.snp_evidence import CertKind, SnpEvidence, parse_snp_evidence
from attestation.formats.snp_report import parse_snp_report
from attestation.formats.tdx_evidence import TdxEvidence
from attestation.formats.tdx_quote import parse_tdx_quote
from attestation.simulate.amd import SimulatedChip, simulated_amd_collateral, simulated_amd_trust
from attestation.simulate.amd_pki import authorities, ca_keys
from attestation.simulate.intel import QuoteForm, simulated_intel_trust
from attestation.simulate.intel_pki import CollateralForm
from attestation.simulate.nvidia import NvidiaForge
from attestation.values import Level, Tee
from attestation.verify.expected import CpuExpected
from attestation.verify.nv_gpu import NvCache
from attestation.verify.nv_policy import NvPolicy
from attestation.verify.platform import (
    Expected,
    PlatformCollateral,
    PlatformEvidence,
    PlatformPolicy,
    PlatformTrust,
    verify_platform,
)
from attestation.verify.revocation import ChainKind, NoRevocation, RevocationPolicy, RevocationRule, RevocationStatus
from attestation.verify.snp import verify_snp
from attestation.verify.snp_certs import AmdCache
from attestation.verify.snp_policy import SnpPolicy
from attestation.verify.snp_trust import StaticAmdCollateral
from attestation.verify.tdx import IntelCache, verify_tdx
from attestation.verify.tdx_trust import StaticIntelCollateral, TdxPolicy
from attestation.verify.verified import VerifiedCpu
from tests.bench.figure import Figure, paired_ratio, seconds_per_call

SUITE = "tee"
NOW = datetime(2026, 11, 21, tzinfo=UTC)
NONCE = b64encode(bytes(range(32))).decode()
JWK = {
    "kty": "EC",
    "crv": "P-256",
    "alg": "ECDH-ES+A256KW",
    "x": "G8fAud93NgCg8C_0bY1YqVZ5zNlkb-cNsGTQia7m0is",
    "y": "RK1gonvUKKQOCSHDwz3SiN9EijCqmXS4sDeRbc8RnL0",
}
CHIP = SimulatedChip()
FORGE = NvidiaForge(seed="bench")
DEVICE_SIGNATURES = 1  # its report; its certificates are part of a chain that verified before
_ACCEPT = frozenset({RevocationStatus.GOOD, RevocationStatus.UNKNOWN})


def figures() -> list[Figure]:
    """Every figure of the suite."""
    return [*_snp(), *_tdx(), *_platform(1), *_platform(8), *_platform(1, stock=True), *_platform(8, stock=True)]


def _accepted(cpu: VerifiedCpu) -> VerifiedCpu:
    failed = [finding for finding in cpu.findings if finding.result is Result.FAIL]
    if failed:
        raise RuntimeError(failed)
    return cpu


def _snp() -> list[Figure]:
    """Cold: nothing is remembered, so root, ASK and VCEK are parsed and verified; four signatures. Warm: one."""
    ark, ask, _ = authorities(CHIP.product)
    evidence = CHIP.evidence()
    collateral, trust = StaticAmdCollateral(chain=(ark, ask)), simulated_amd_trust()

    known = AmdCache()

    def verify(cache: AmdCache) -> VerifiedCpu:
        return _accepted(
            verify_snp(
                evidence,
                trust=trust,
                collateral=collateral,
                policy=SnpPolicy(),
                expected=CpuExpected(report_data=bytes(64)),
                now=NOW,
                cache=cache,
            )
        )

    def warm() -> VerifiedCpu:
        return verify(known)

    def cold() -> VerifiedCpu:
        return verify(AmdCache())

    return [
        Figure(suite=SUITE, name="SNP report with chain", value=1e3 * seconds_per_call(cold), unit="ms"),
        Figure(
            suite=SUITE,
            name="SNP report with chain / its 4 raw signatures",
            value=paired_ratio(cold, _raw_snp(evidence)),
            at_most=2.5,
            caches="none",
        ),
        Figure(
            suite=SUITE,
            name="SNP report, chip known / its raw signature",
            value=paired_ratio(warm, _raw_report(evidence)),
            caches="chain, leaf",
        ),
        Figure(
            suite=SUITE,
            name="stock JSON to 1184 bytes",
            value=1e3 * seconds_per_call(_json_parser(evidence)),
            unit="ms",
        ),
    ]


def _json_parser(evidence: SnpEvidence) -> Callable[[], object]:
    text = CHIP.evidence_json()
    if parse_snp_evidence(text).certificates != evidence.certificates:
        raise RuntimeError("another leaf")
    return lambda: parse_snp_evidence(text)


def _raw_report(evidence: SnpEvidence) -> Callable[[], object]:
    report, key, algorithm = parse_snp_report(evidence.report), CHIP.key.public_key(), ec.ECDSA(hashes.SHA384())
    signature = encode_dss_signature(report.signature_r, report.signature_s)
    return lambda: key.verify(signature, report.signed, algorithm)


def _raw_snp(evidence: SnpEvidence) -> Callable[[], object]:
    """The same four signatures, with keys loaded and structures taken apart beforehand."""
    ark, ask, _ = authorities(CHIP.product)
    scheme, digest = padding.PSS(padding.MGF1(hashes.SHA384()), 48), hashes.SHA384()
    root, issuer = ca_keys()["ark"].public_key(), ca_keys()["ask"].public_key()
    signed = [
        (key, parse_certificate(der))
        for key, der in ((root, ark), (root, ask), (issuer, evidence.certificates[CertKind.VCEK]))
    ]
    report = _raw_report(evidence)

    def call() -> None:
        for key, certificate in signed:
            key.verify(certificate.signature, certificate.tbs, scheme, digest)
        report()

    return call


def _tdx() -> list[Figure]:
    raw, document = QuoteForm().sign(), CollateralForm().render()
    trust, collateral = simulated_intel_trust(), StaticIntelCollateral(documents=(document,))
    root, native = parse_tdx_quote(raw).pck_chain[2], dcap_qvl.QuoteCollateralV3.from_json(document.decode())
    seconds, cache = int(NOW.timestamp()), IntelCache()

    def ours() -> VerifiedCpu:
        return _accepted(
            verify_tdx(
                TdxEvidence(quote=raw),
                trust=trust,
                collateral=collateral,
                policy=TdxPolicy(),
                expected=CpuExpected(report_data=bytes(64)),
                now=NOW,
                cache=cache,
            )
        )

    def bare() -> object:
        return dcap_qvl.verify_with_root_ca(raw, native, root, seconds)

    return [
        Figure(suite=SUITE, name="TDX v4 quote", value=1e3 * seconds_per_call(ours), unit="ms"),
        Figure(
            suite=SUITE,
            name="TDX v4 quote / dcap-qvl bare",
            value=paired_ratio(ours, bare),
            at_most=1.5,
            caches="parsed collateral, on both sides",
        ),
    ]


def _cert_table(vcek: bytes) -> bytes:
    """The host's table with one entry: GUID, offset, length, a terminating entry, data (tee.md 1.7)."""
    entry = UUID("63da758d-e664-4564-adc5-f4b93be8accd").bytes + (48).to_bytes(4, "little")
    return entry + len(vcek).to_bytes(4, "little") + bytes(24) + vcek


def _evidence(gpus: int, *, stock: bool = False) -> PlatformEvidence:
    nonce = binding.trustee_device_nonce(NONCE, JWK)
    devices = [FORGE.device(index=index, nonce=nonce.raw) for index in range(gpus)]
    listed = [
        {"arch": "HOPPER", "evidence": b64encode(d.report).decode(), "certificate": b64encode(d.chain).decode()}
        for d in devices
    ]
    additional = json.dumps({"nvidia": {"device_evidence_list": listed}}, separators=(",", ":"))
    fields = CHIP.fields().with_(report_data=binding.trustee_report_data(NONCE, JWK, additional))
    cpu = CHIP.evidence(fields)
    raw = {
        "raw": b64encode(cpu.report).decode(),
        "cert_table": b64encode(_cert_table(cpu.certificates[CertKind.VCEK])).decode(),
    }
    primary = json.loads(CHIP.evidence_json(fields)) if stock else raw
    return PlatformEvidence(tee=Tee.SNP, primary=primary, additional=additional, nonce=NONCE, tee_jwk=JWK)


def _platform(gpus: int, *, stock: bool = False) -> list[Figure]:
    evidence = _evidence(gpus, stock=stock)
    trust = PlatformTrust(amd=simulated_amd_trust(), nvidia=FORGE.trust)
    collateral = PlatformCollateral(
        amd=simulated_amd_collateral(), rims=FORGE.shelf(), revocation=NoRevocation(), nv_cache=NvCache()
    )
    rim = RevocationRule(kind=ChainKind.RIM, accept=_ACCEPT)
    policy = PlatformPolicy(nvidia=NvPolicy(revocation=RevocationPolicy(rim=rim)))
    session = Expected(tee=Tee.SNP, nonce=NONCE)

    def ours() -> None:
        platform = verify_platform(
            evidence, session=session, trust=trust, collateral=collateral, policy=policy, now=NOW
        )
        if any(device.level is not Level.TRUSTED for device in platform.devices):
            raise RuntimeError(platform.findings)

    raw = _raw_report(CHIP.evidence())
    signatures = 1 + DEVICE_SIGNATURES * gpus

    def limit() -> None:
        for _ in range(signatures):
            raw()

    name = f"SNP{' (stock JSON)' if stock else ''} + {gpus} Hopper"
    return [
        Figure(suite=SUITE, name=f"{name}, platforms per second", value=1 / seconds_per_call(ours), unit="/s/core"),
        Figure(
            suite=SUITE,
            name=f"{name}: part of the limit of {signatures} signatures",
            value=1 / paired_ratio(ours, limit),
            at_least=None if stock else 0.7,
            caches="chains, collateral, chip, launch and devices",
        ),
    ]
