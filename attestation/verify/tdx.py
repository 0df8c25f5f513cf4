"""Intel TDX verification: dcap-qvl for the cryptography and TCB evaluation, and around it what it leaves open.

dcap-qvl 0.7 accepts trailing bytes, revocation lists from the future, another PCE id and reserved TD attributes, and
returns normally for TCBs that are out of date (tee.md 3.1). Each of these is judged here. Its network helpers are
never called.
"""

import json
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any

import dcap_qvl

from attestation.errors import Denied, Malformed, Unavailable, Untrusted, after_signature
from attestation.findings import Finding, Result, passed
from attestation.formats.tdx_collateral import TdxCollateral, parse_tdx_collateral
from attestation.formats.tdx_evidence import TdxEvidence
from attestation.formats.tdx_quote import TdxQuote, parse_tdx_quote
from attestation.values import Tee
from attestation.verify.cache import BoundedCache
from attestation.verify.event_log import verify_event_log
from attestation.verify.expected import CpuExpected, verify_init_data, verify_report_data
from attestation.verify.tdx_chain import X509Cache, verify_signatures, verify_windows
from attestation.verify.tdx_claims import tdx_claims
from attestation.verify.tdx_policy import DEBUG, SEPT_VE_DISABLE, TdxFacts, check_tdx_policy, unknown_attributes
from attestation.verify.tdx_trust import IntelCollateral, IntelTrust, TcbStatus, TdxPolicy
from attestation.verify.verified import VerifiedCpu

QE_AUTH_BYTES = 32  # what dcap-qvl demands, and every quote known has
# Last words of dcap-qvl that no check of ours explains first; the refusal stands whatever the text.
_REASONS = (
    ("No matching", "tdx-tcb-unsupported"),
    ("evoked", "tdx-tcb-revoked"),
    ("ISVSVN", "tdx-qe-tcb"),
    ("QE", "tdx-qe-identity"),
    ("Enclave", "tdx-qe-identity"),
    ("MRSIGNER", "tdx-module-identity"),
    ("odule", "tdx-module-identity"),
)
_MAX_PLATFORMS = 1024  # PCK chains of a fleet
_MAX_COLLATERAL = 64  # sets of documents, one a platform family; 60 kB each


@dataclass(frozen=True, slots=True, kw_only=True)
class _Platform:
    """What collateral is looked up by, lower-case hex: platform family and PCE of the PCK certificate."""

    fmspc: str
    pce_id: str


@dataclass(frozen=True, slots=True)
class IntelCache:
    """Documents that were read before, owned by the caller. They are judged and verified on every use."""

    platforms: BoundedCache[_Platform] = field(default_factory=lambda: BoundedCache(_MAX_PLATFORMS))
    x509: X509Cache = field(default_factory=X509Cache)
    collateral: BoundedCache[tuple[TdxCollateral, Any]] = field(default_factory=lambda: BoundedCache(_MAX_COLLATERAL))


def verify_tdx(
    evidence: TdxEvidence,
    *,
    trust: IntelTrust,
    collateral: IntelCollateral,
    policy: TdxPolicy,
    expected: CpuExpected,
    now: datetime,
    cache: IntelCache | None = None,
) -> VerifiedCpu:
    """A genuine Intel platform signed this quote, at a TCB that is known, over the expected data.

    Raises Malformed, Untrusted, Denied (DEBUG and other states that nothing may allow) or Unavailable. What policy
    refuses is a failed finding.
    """
    # 1. Structure; what follows the quote in its buffer is zeros, or the quote is refused.
    quote = parse_tdx_quote(evidence.quote)
    trailing = _require_trailing(quote, policy)

    # 2. The platform that the PCK certificate names, and collateral for it.
    cache = IntelCache() if cache is None else cache
    pck = cache.platforms.remember(quote.pck_chain, lambda: _pck(quote.raw))
    documents = collateral.tdx(pck.fmspc)
    if not documents:
        raise Unavailable("tdx-collateral-missing", "no collateral", where="tdx", expected=f"FMSPC {pck.fmspc}")

    # 3. - 5. Dates, names, signatures and TCB levels, for the first set of collateral that fits.
    known, claims = _verify_with(quote, pck, documents, trust, now, cache)

    with after_signature():
        # 6. Attributes that dcap-qvl lets pass, and policy.
        unknown = unknown_attributes(quote.td.td_attributes)
        if unknown:
            raise Untrusted(
                "tdx-reserved-attributes", "reserved TD attributes are set", where="td_attributes", got=unknown
            )
        facts = TdxFacts(
            quote=quote,
            status=TcbStatus(claims["tcb"]["status"]),
            advisories=tuple(claims["tcb"]["advisory_ids"]),
            tcb_date=str(claims["platform"]["tcb_level"]["tcbDate"]),
            evaluation=known.tcb_info.evaluation,
            platform_instance=bytes(claims["platform"]["pck"]["platform_instance_id"] or b"").hex(),
            flags={
                name: claims["platform"]["pck"][name] for name in ("dynamic_platform", "cached_keys", "smt_enabled")
            },
        )

        # 7. Binding, and the registers that an event log explains.
        events, event_finding = verify_event_log(evidence.event_log, quote.td.rtmrs)
        findings = (
            passed("tdx-signature", f"quote version {quote.version}"),
            _root_finding(trust),
            trailing,
            *check_tdx_policy(facts, policy),
            event_finding,
            verify_report_data(quote.td.report_data, expected),
            verify_init_data(quote.td.mr_config_id, expected),
        )
        return VerifiedCpu(
            tee=Tee.TDX,
            product="TDX",
            chip_id=facts.platform_instance,
            report_data=quote.td.report_data,
            init_data=quote.td.mr_config_id,
            measurement=quote.td.mr_td.hex(),
            claims=tdx_claims(facts, claims, known, events),
            findings=findings,
        )


def _require_trailing(quote: TdxQuote, policy: TdxPolicy) -> Finding:
    size = len(quote.trailing)
    if any(quote.trailing) or size > policy.trailing_zeros:
        raise Untrusted(
            "tdx-trailing-bytes",
            "bytes after the quote",
            where="tdx",
            expected=f"at most {policy.trailing_zeros} zeros",
            got=f"{size} bytes",
        )
    return passed("tdx-structure", f"{len(quote.raw)} bytes, {size} zeros after them")


def _pck(raw: bytes) -> _Platform:
    """A claim until the quote verified; `_verify_native` compares what was verified with it."""
    try:
        named = dcap_qvl.parse_quote(raw).pck_extension()
    except ValueError as exc:
        raise Malformed("tdx-pck", "unreadable PCK certificate", where="pck_chain", got=str(exc)[:120]) from exc
    if named is None:
        raise Malformed("tdx-pck", "not a PCK certificate", where="pck_chain", expected="SGX extensions", got="none")
    return _Platform(fmspc=bytes(named.fmspc).hex(), pce_id=bytes(named.pce_id).hex())


def _collateral(data: bytes) -> tuple[TdxCollateral, Any]:
    parsed = parse_tdx_collateral(data)
    try:
        return parsed, dcap_qvl.QuoteCollateralV3.from_json(parsed.text)
    except ValueError as exc:
        raise Malformed("tdx-collateral", "unreadable collateral", where="tdx", got=str(exc)[:120]) from exc


def _verify_with(
    quote: TdxQuote, pck: _Platform, documents: Any, trust: IntelTrust, now: datetime, cache: IntelCache
) -> tuple[TdxCollateral, dict[str, Any]]:
    failure: Malformed | Untrusted | Denied | None = None
    for document in documents:
        try:
            known, native = cache.collateral.remember(document, partial(_collateral, document))
            _require_fitting(known, pck)
            verify_windows(quote, known, trust, now, cache.x509)
            return known, _verify_native(quote, known, native, trust, now, cache.x509)
        except (Malformed, Untrusted, Denied) as exc:
            failure = failure or exc
    assert failure is not None
    raise failure


def _require_fitting(known: TdxCollateral, pck: _Platform) -> None:
    """Collateral of the right kind, for this platform and PCE, all of one evaluation."""
    for code, where, expected, got in (
        ("tdx-collateral-id", "tcb_info", ("TDX", 3), (known.tcb_info.id, known.tcb_info.version)),
        ("tdx-collateral-id", "qe_identity", ("TD_QE", 2), (known.qe_identity.id, known.qe_identity.version)),
        ("tdx-fmspc-mismatch", "tcb_info", pck.fmspc, known.fmspc),
        ("tdx-pceid-mismatch", "tcb_info", pck.pce_id, known.pce_id),
        ("tdx-evaluation-mixed", "qe_identity", known.tcb_info.evaluation, known.qe_identity.evaluation),
    ):
        if expected != got:
            raise Untrusted(code, "collateral does not fit the quote", where=where, expected=expected, got=got)


def _verify_native(
    quote: TdxQuote, known: TdxCollateral, native: Any, trust: IntelTrust, now: datetime, cache: X509Cache
) -> dict[str, Any]:
    seconds = int(now.timestamp())
    try:
        verifier = dcap_qvl.QuoteVerifier(quote.pck_chain[2])
        claims = verifier.verify_with_policy(quote.raw, native, seconds, dcap_qvl.QuotePolicy.claims_only(seconds))
        parsed: dict[str, Any] = json.loads(claims.to_json())
    except ValueError as exc:
        _explain(quote, known, trust, str(exc), cache)
        raise Untrusted("tdx-refused", "refused by dcap-qvl", where="tdx", got=str(exc)[:200]) from exc
    pck = parsed["platform"]["pck"]
    verified = _Platform(fmspc=bytes(pck["fmspc"]).hex(), pce_id=bytes(pck["pce_id"]).hex())
    if verified != _Platform(fmspc=known.fmspc, pce_id=known.pce_id):
        raise Untrusted("tdx-pck", "verified another platform", where="tdx", expected=known.fmspc, got=verified)
    return parsed


def _explain(quote: TdxQuote, known: TdxCollateral, trust: IntelTrust, text: str, cache: X509Cache) -> None:
    """A refusal gets a stable code: ours where a check of ours fails as well, then by what dcap-qvl said."""
    verify_signatures(quote, known, trust, cache)
    with after_signature():
        _explain_genuine(quote, text)


def _explain_genuine(quote: TdxQuote, text: str) -> None:
    td = quote.td
    for code, holds, expected in (
        ("tdx-debug", not td.td_attributes & DEBUG, "DEBUG off"),
        ("tdx-sept-ve", bool(td.td_attributes & SEPT_VE_DISABLE), "SEPT_VE_DISABLE on"),
        ("tdx-service-td", not any(td.mr_service_td or b""), "no bound service TD"),
        ("tdx-qe-auth", len(quote.qe_auth) == QE_AUTH_BYTES, f"{QE_AUTH_BYTES} bytes of QE data"),
    ):
        if not holds:
            raise Denied(
                code, "the quote is genuine and in a state that nothing allows", where="tdx", expected=expected
            )
    for fragment, code in _REASONS:
        if fragment in text:
            raise Untrusted(code, "refused by dcap-qvl", where="tdx", got=text[:200])


def _root_finding(trust: IntelTrust) -> Finding:
    if not trust.simulated:
        return passed("tdx-chain", "Intel SGX Root CA")
    return Finding(
        check="tdx-chain",
        result=Result.WARN,
        code="simulated-roots",
        expected="Intel's root",
        got="simulated root",
        hint="signed by a test PKI: proves nothing about hardware",
    )
