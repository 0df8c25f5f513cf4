"""Answering a request in NRAS' shape, gpu-attestation.md 4.3: verify offline, then say so in tokens of our own.

Evidence that cannot be believed is an error, as with NRAS; evidence that is believed and falls short is an answer
whose overall result is false. A board (8 GPUs and 4 switches) is judged by `verify evidence`, not here: NVIDIA's
clients send GPUs and switches in separate requests.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise

from attestation.appraise.eat import EatKey, EatTerms, detached_eat
from attestation.appraise.nv_claims import ClaimsVersion
from attestation.errors import Malformed, Untrusted
from attestation.findings import Result
from attestation.formats.json_strict import parse_json, require_object, require_text
from attestation.formats.nv_evidence import MAX_JSON_BYTES, NvEvidence, parse_evidence
from attestation.values import Architecture, DeviceKind, JsonObject, JsonValue, Nonce
from attestation.verify.nv_gpu import Collateral, DeviceProof, prove_device
from attestation.verify.revocation import RevocationStatus, check_revocation
from attestation.verify.rim import VerifiedRim, verify_rim
from attestation.verify.topology import check_set

_ARCHITECTURES = {
    DeviceKind.GPU: frozenset({Architecture.HOPPER, Architecture.BLACKWELL}),
    DeviceKind.NVSWITCH: frozenset({Architecture.LS10}),
}
_SET_CHECKS = frozenset({"distinct-devices", "one-nonce", "one-mode"})
_SLOTS = ("driver", "vbios", "bios")


@dataclass(frozen=True, slots=True, kw_only=True)
class NrasRequest:
    """Devices of one kind, and the nonce that the client chose for them."""

    nonce: Nonce
    evidence: tuple[NvEvidence, ...]
    version: ClaimsVersion


@dataclass(frozen=True, slots=True, kw_only=True)
class NrasIdentity:
    """Who signs the answers, and for whom."""

    key: EatKey
    issuer: str
    audience: str | None
    new_id: Callable[[], str]


def parse_request(body: bytes, kind: DeviceKind, default: ClaimsVersion) -> NrasRequest:
    """`{"nonce", "arch", "evidence_list", "claims_version"}`; a nonce inside an evidence entry is ignored.

    Raises Malformed.
    """
    value = require_object(parse_json(body, max_bytes=MAX_JSON_BYTES, what="request"), "request")
    for name in ("nonce", "arch", "evidence_list"):
        if name not in value:
            raise Malformed("nras-request", "member is missing", where=name)
    try:
        version = ClaimsVersion(require_text(value.get("claims_version", str(default)), "claims_version"))
    except ValueError as exc:
        raise Malformed(
            "nras-version", "unknown claims version", where="claims_version", expected="2.0|3.0",
            got=repr(value["claims_version"])[:40],
        ) from exc  # fmt: skip
    evidence = parse_evidence(body)
    if any(one.arch not in _ARCHITECTURES[kind] for one in evidence):
        raise Malformed("nras-arch", "architecture of another endpoint", expected=sorted(_ARCHITECTURES[kind]))
    return NrasRequest(nonce=Nonce.from_hex(require_text(value["nonce"], "nonce")), evidence=evidence, version=version)


def answer(request: NrasRequest, collateral: Collateral, identity: NrasIdentity, *, issued: datetime) -> JsonValue:
    """The detached EAT about the devices of a request. Raises Malformed and Untrusted, naming the device."""
    proofs = [_prove(position, one, request, collateral) for position, one in enumerate(request.evidence)]
    for finding in check_set(proofs):
        if finding.check in _SET_CHECKS and finding.result is Result.FAIL:
            raise Untrusted(finding.code, "the devices are no set", expected=finding.expected, got=finding.got)
    terms = EatTerms(
        issuer=identity.issuer,
        audience=identity.audience,
        issued=issued,
        version=request.version,
        new_id=identity.new_id,
    )
    devices = [proof.device for proof in proofs]
    chains = [_rim_chains(device.claims, collateral) for device in devices]
    return detached_eat(devices, request.nonce, key=identity.key, terms=terms, rim_chains=chains)


def _prove(position: int, one: NvEvidence, request: NrasRequest, collateral: Collateral) -> DeviceProof:
    try:
        return prove_device(one.report, one.chain, collateral, nonce=request.nonce, arch=one.arch)
    except (Malformed, Untrusted) as exc:
        where = f"evidence_list[{position}] {exc.where}".strip()
        raise type(exc)(exc.code, exc.what, where=where, expected=exc.expected, got=exc.got) from exc


def _rim_chains(claims: JsonObject, collateral: Collateral) -> Mapping[str, JsonObject]:
    """Chain claims of the documents that a device's measurements were compared with."""
    found: dict[str, JsonObject] = {}
    for slot in _SLOTS:
        rim_id, sha256 = claims.get(f"cgpu-{slot}-rim-id"), claims.get(f"cgpu-{slot}-rim-sha256")
        if not isinstance(rim_id, str) or not isinstance(sha256, str):
            continue
        for document in collateral.rims.rims(rim_id):
            if hashlib.sha256(document).hexdigest() == sha256:
                cache = collateral.cache.rims if collateral.cache is not None else None
                found[slot] = _chain(verify_rim(document, anchors=collateral.trust.rim_roots, cache=cache), collateral)
    return found


def _chain(rim: VerifiedRim, collateral: Collateral) -> JsonObject:
    certificates = rim.path.certificates
    rule = collateral.policy.revocation.rim
    statuses = [
        check_revocation(one.certificate, issuer.certificate, collateral.revocation, rule=rule, now=collateral.now)
        for one, issuer in pairwise(certificates)
    ]
    order = (RevocationStatus.REVOKED, RevocationStatus.STALE, RevocationStatus.UNKNOWN, RevocationStatus.GOOD)
    worst = min(statuses, key=lambda s: order.index(s.status))
    end = min(c.not_after for c in certificates)
    revoked = worst.status is RevocationStatus.REVOKED
    return {
        "x-nvidia-cert-status": "revoked" if revoked else "expired" if end < collateral.now else "valid",
        "x-nvidia-cert-ocsp-status": "unknown" if worst.status is RevocationStatus.STALE else str(worst.status),
        "x-nvidia-cert-expiration-date": end.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "x-nvidia-cert-revocation-reason": worst.reason if revoked else None,
    }
