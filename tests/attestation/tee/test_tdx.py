"""Genuine Intel quotes at their times, and groups 35 to 55 of tee.md 5.4 on forged ones."""

import hashlib
import json
from base64 import b64encode
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import dcap_qvl
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from attestation.errors import AttestationError, Denied, Malformed, Misconfigured, Unavailable, Untrusted
from attestation.formats.event_log import parse_event_log
from attestation.formats.snp_evidence import SnpEvidence
from attestation.formats.tdx_collateral import parse_tdx_collateral
from attestation.formats.tdx_evidence import TdxEvidence, read_tdx_evidence
from attestation.formats.tdx_quote import parse_tdx_quote
from attestation.simulate import der
from attestation.simulate.intel import QuoteForm, simulated_intel_trust
from attestation.simulate.intel_pki import (
    CA_SERIAL,
    END,
    PCK_SERIAL,
    START,
    TCB_SERIAL,
    TDX_SVN,
    CollateralForm,
    certificate,
    derive_key,
    mint_crl,
    pem,
    root,
    sgx_extension,
    tcb_level,
)
from attestation.values import Tee
from attestation.verify.event_log import replay, verify_event_log
from attestation.verify.expected import CpuExpected
from attestation.verify.tdx import verify_tdx
from attestation.verify.tdx_chain import X509Cache, verify_quote_signatures, verify_signatures, verify_windows
from attestation.verify.tdx_trust import IntelTrust, StaticIntelCollateral, TcbStatus, TdxPolicy
from attestation.verify.unreadable import negative_or_zero_serial
from tests.attestation.tee import snp_cases
from tests.attestation.tee.tdx_cases import (
    T1_TIME,
    T2_TIME,
    TODAY,
    failures,
    refusal,
    verify_forged,
    verify_genuine,
)

T1 = ("dcap_tdx_quote", "dcap_tdx_quote_collateral.json")
T2 = ("quote_v5_sample.dat", "quote_v5_collateral.json")
GOOD = QuoteForm()
RAW = GOOD.sign()
FORM = CollateralForm()


@pytest.mark.parametrize(
    ("pair", "now", "code"),
    [
        pytest.param(T1, T1_TIME, "", id="T1-v4-inside"),
        pytest.param(T1, T1_TIME.replace(hour=9), "tdx-collateral-future", id="tee-039-T1-before"),
        pytest.param(
            T1, datetime.fromisoformat("2025-07-20T00:00:00Z"), "tdx-collateral-expired", id="tee-039-T1-after"
        ),
        pytest.param(T1, TODAY, "tdx-collateral-expired", id="tee-039-T1-today"),
        pytest.param(T2, T2_TIME, "", id="T2-v5-inside"),
        pytest.param(T2, T2_TIME - timedelta(days=2), "tdx-collateral-future", id="tee-039-T2-before"),
        pytest.param(T2, TODAY, "tdx-collateral-expired", id="tee-039-T2-today"),
    ],
)
def test_genuine_quotes(vectors: Path, pair: tuple[str, str], now: datetime, code: str) -> None:
    if code:
        with pytest.raises(Untrusted) as caught:
            verify_genuine(vectors, *pair, now)
        assert caught.value.code == code
        return
    cpu = verify_genuine(vectors, *pair, now)
    assert (cpu.tee, failures(cpu), cpu.claims["tcb_status"]) == (Tee.TDX, [], "UpToDate")


@pytest.mark.parametrize(("pair", "now"), [pytest.param(T1, T1_TIME, id="T1"), pytest.param(T2, T2_TIME, id="T2")])
def test_pure_chain_agrees_on_genuine_quotes(vectors: Path, pair: tuple[str, str], now: datetime) -> None:
    quote = parse_tdx_quote((vectors / "tdx" / pair[0]).read_bytes())
    collateral = parse_tdx_collateral((vectors / "tdx" / pair[1]).read_bytes())
    verify_windows(quote, collateral, IntelTrust.production(), now, X509Cache())
    verify_signatures(quote, collateral, IntelTrust.production(), X509Cache())


def _mixed(vectors: Path) -> bytes:
    """T3: its own TCB info and QE identity, chains and lists of T2, as the reference combines them."""
    folder = vectors / "tdx"
    members = json.loads((folder / T2[1]).read_bytes())
    for name, file, member in (
        ("tcb_info", "tcbInfo", "tcbInfo"),
        ("qe_identity", "enclaveIdentity", "enclaveIdentity"),
    ):
        text = (folder / f"{file}.json").read_text()
        start = text.index(f'"{member}":') + len(member) + 3
        _, end = json.JSONDecoder().raw_decode(text, start)
        members[name], members[f"{name}_signature"] = text[start:end], json.loads(text)["signature"]
    return json.dumps(members).encode()


def test_t3_is_out_of_date_for_dcap_and_has_future_lists_for_us(vectors: Path) -> None:
    """PCK CRL of February 2026 at a clock of November 2025: dcap-qvl accepts it and says OutOfDate; we refuse."""
    raw = (vectors / "tdx" / "tdx_quote_6.dat").read_bytes()
    now, document = datetime.fromisoformat("2025-11-20T00:00:00Z"), _mixed(vectors)
    bare = dcap_qvl.verify(raw, dcap_qvl.QuoteCollateralV3.from_json(document.decode()), int(now.timestamp()))
    assert bare.status == "OutOfDate"
    with pytest.raises(Untrusted) as caught:
        verify_tdx(
            TdxEvidence(quote=raw),
            trust=IntelTrust.production(),
            collateral=StaticIntelCollateral(documents=(document,)),
            policy=TdxPolicy(statuses=frozenset(TcbStatus) - {TcbStatus.REVOKED}),
            expected=CpuExpected.unchecked(),
            now=now,
        )
    assert caught.value.code == "tdx-collateral-future"


def test_t3_binds_init_data(vectors: Path) -> None:
    quote = parse_tdx_quote((vectors / "tdx" / "tdx_quote_6.dat").read_bytes())
    assert quote.td.mr_config_id.hex().startswith("889abf47")
    assert (len(quote.trailing), quote.td.report_data[48:]) == (70, bytes(16))
    verify_quote_signatures(quote, IntelTrust.production(), X509Cache())


@pytest.mark.parametrize("_case", [pytest.param(None, id="tee-036-T4")])
def test_debug_td_is_genuine(vectors: Path, _case: None) -> None:
    """T4: everything that the quote carries verifies, and it is a DEBUG TD; no collateral of 2023 is at hand."""
    raw = (vectors / "tdx" / "tdx_quote_4.dat").read_bytes()
    quote = parse_tdx_quote(raw)
    verify_quote_signatures(quote, IntelTrust.production(), X509Cache())
    assert quote.td.td_attributes & 1
    with pytest.raises(Unavailable) as caught:
        verify_tdx(
            TdxEvidence(quote=raw),
            trust=IntelTrust.production(),
            collateral=StaticIntelCollateral(),
            policy=TdxPolicy(),
            expected=CpuExpected.unchecked(),
            now=TODAY,
        )
    assert caught.value.code == "tdx-collateral-missing"


def test_golden_event_log(vectors: Path) -> None:
    """Five events as a peer reads them; they do not replay to T4's registers, so none of them may be claimed."""
    golden = json.loads((vectors / "tdx" / "parse_tdx_claims_expected.json").read_bytes())["uefi_event_logs"]
    log = (vectors / "tdx" / "CCEL_data").read_bytes()
    events = parse_event_log(log)
    claims, finding = verify_event_log(log, replay(events))
    assert finding.code == ""
    shared = ("index", "type_name", "digests")
    assert [{k: c[k] for k in shared} for c in claims] == [{k: g[k] for k in shared} for g in golden]
    quote = parse_tdx_quote((vectors / "tdx" / "tdx_quote_4.dat").read_bytes())
    withheld, mismatch = verify_event_log(log, quote.td.rtmrs)
    assert (withheld, mismatch.code) == ((), "event-log-mismatch")


@pytest.mark.parametrize("version", [4, 5])
def test_forged_quotes_are_accepted(version: int) -> None:
    cpu = verify_forged(QuoteForm(version=version), expected=CpuExpected(report_data=bytes(64)))
    assert (failures(cpu), cpu.claims["tcb_status"]) == ([], "UpToDate")
    assert "simulated-roots" in {finding.code for finding in cpu.findings}


def test_claims_have_the_names_and_encodings_of_peers(vectors: Path) -> None:
    golden = json.loads((vectors / "tdx" / "parse_tdx_claims_expected.json").read_bytes())
    claims: Any = verify_forged().claims
    assert set(golden["quote"]["body"]) == set(claims["quote"]["body"])
    assert claims["quote"]["header"] == {**golden["quote"]["header"], "user_data": "00" * 20}
    assert set(claims["td_attributes"]) == set(golden["td_attributes"])


def _flip(offset: int) -> bytes:
    return RAW[:offset] + bytes([RAW[offset] ^ 1]) + RAW[offset + 1 :]


def _shorter_certification() -> bytes:
    """The certification data ends one byte before the signature data does."""
    size = int.from_bytes(RAW[766:770], "little")
    return RAW[:766] + (size - 1).to_bytes(4, "little") + RAW[770:]


def _longer_certification() -> bytes:
    """One byte after the PCK chain, inside of all lengths."""
    size, inner = (int.from_bytes(RAW[at : at + 4], "little") + 1 for at in (632, 766))
    return RAW[:632] + size.to_bytes(4, "little") + RAW[636:766] + inner.to_bytes(4, "little") + RAW[770:] + b"\0"


@pytest.mark.parametrize(("size", "code"), [(1024, None), (1025, "tdx-qe-auth")])
def test_data_of_the_quoting_enclave_has_a_size(size: int, code: str | None) -> None:
    raw = GOOD.with_(qe_auth=bytes(size)).sign()
    if code is None:
        assert len(parse_tdx_quote(raw).qe_auth) == size
        return
    with pytest.raises(Malformed) as caught:
        parse_tdx_quote(raw)
    assert caught.value.code == code


_BODY = 48
_QUOTES: list[tuple[str, QuoteForm | bytes, list[str]]] = [
    ("tee-035-mrtd", _flip(_BODY + 136), ["tdx-quote-signature"]),
    ("tee-035-header", _flip(30), ["tdx-quote-signature"]),
    ("tee-035-report-data", _flip(_BODY + 520), ["tdx-quote-signature"]),
    ("tee-036-debug-not-signed", _flip(_BODY + 120), ["tdx-quote-signature"]),
    ("tee-036-debug-signed", GOOD.with_(td_attributes=1 | 1 << 28), ["tdx-debug"]),
    *(
        (f"tee-037-{n}", RAW[:n], ["truncated"])
        for n in (0, 1, 48, 632, 636, 700, 764, 770, 1154, 1218, 1220, 1258, 4000)
    ),
    ("tee-038-junk", RAW + b"\1", ["tdx-trailing-bytes"]),
    ("tee-038-zeros", RAW + bytes(70), []),
    ("tee-038-as-many-zeros-as-allowed", RAW + bytes(4096), []),
    ("tee-038-one-zero-more", RAW + bytes(4097), ["tdx-trailing-bytes"]),
    ("tee-038-many-zeros", RAW + bytes(5000), ["tdx-trailing-bytes"]),
    ("tee-043-fmspc", GOOD.with_(sgx=sgx_extension(fmspc="B0C06F000000")), ["tdx-fmspc-mismatch"]),
    ("tee-043-pceid", GOOD.with_(sgx=sgx_extension(pce_id="0100")), ["tdx-pceid-mismatch"]),
    ("tee-044-qe-mrsigner", GOOD.with_(qe_mrsigner=bytes(32)), ["tdx-qe-identity"]),
    ("tee-044-qe-prod-id", GOOD.with_(qe_prod_id=1), ["tdx-qe-identity"]),
    ("tee-044-qe-svn", GOOD.with_(qe_svn=1), ["tdx-qe-tcb"]),
    (
        "tee-044-qe-debug",
        GOOD.with_(qe_attributes=bytes.fromhex("1700000000000000e700000000000000")),
        ["tdx-qe-identity"],
    ),
    ("tee-044-qe-hash", GOOD.with_(qe_report_data=bytes(64) + b""), ["tdx-attestation-key"]),
    ("tee-044-qe-auth-0", GOOD.with_(qe_auth=b""), ["tdx-qe-auth"]),
    ("tee-044-qe-auth-64", GOOD.with_(qe_auth=bytes(64)), ["tdx-qe-auth"]),
    ("tee-044-qe-auth-huge", GOOD.with_(qe_auth=bytes(1025)), ["tdx-qe-auth"]),
    ("tee-045-platform-revoked", GOOD.with_(sgx=sgx_extension(pce_svn=5)), ["tdx-tcb-revoked"]),
    ("tee-045-out-of-date", GOOD.with_(sgx=sgx_extension(pce_svn=11)), ["tdx-tcb-status"]),
    ("tee-045-no-level", GOOD.with_(sgx=sgx_extension(pce_svn=4)), ["tdx-tcb-unsupported"]),
    ("tee-045-qe-out-of-date", GOOD.with_(qe_svn=3), ["tdx-tcb-status"]),
    ("tee-045-module-missing", GOOD.with_(tee_tcb_svn=bytes([5, 7, 3]) + bytes(13)), ["tdx-module-identity"]),
    ("tee-046-sept-ve", GOOD.with_(td_attributes=0), ["tdx-sept-ve"]),
    ("tee-046-service-td", GOOD.with_(version=5, mr_service_td=b"\1" * 48), ["tdx-service-td"]),
    ("tee-046-reserved-bit-20", GOOD.with_(td_attributes=1 << 28 | 1 << 20), ["tdx-reserved-attributes"]),
    ("tee-046-perfmon", GOOD.with_(td_attributes=1 << 28 | 1 << 63), ["tdx-perfmon"]),
    ("tee-046-pks", GOOD.with_(td_attributes=1 << 28 | 1 << 30), ["tdx-pks"]),
    ("tee-046-key-locker", GOOD.with_(td_attributes=1 << 28 | 1 << 31), ["tdx-key-locker"]),
    ("tee-047-sgx-quote", GOOD.with_(version=3, tee_type=0), ["tdx-tee-type"]),
    ("tee-048-version-3", GOOD.with_(version=3), ["tdx-version"]),
    ("tee-048-version-6", GOOD.with_(version=6), ["tdx-version"]),
    ("tee-048-key-type-3", GOOD.with_(key_type=3), ["tdx-key-type"]),
    ("tee-048-vendor", GOOD.with_(vendor=bytes(16)), ["tdx-vendor"]),
    *((f"tee-050-inner-type-{n}", GOOD.with_(certification_type=n), ["tdx-certification-type"]) for n in (1, 4, 7)),
    ("tee-051-td15-with-584", GOOD.with_(version=5, body_type=3, body_size=584), ["tdx-body-type"]),
    ("tee-051-sgx", GOOD.with_(version=5, body_type=1, body_size=384), ["tdx-body-type"]),
    ("tee-051-extended", GOOD.with_(version=5, body_type=4, body_size=800), ["tdx-body-type"]),
    ("tee-051-unknown", GOOD.with_(version=5, body_type=99), ["tdx-body-type"]),
    ("tee-051-size", GOOD.with_(version=5, body_size=0xFFFFFFFF), ["tdx-body-type"]),
    ("tee-051-td10-in-v5", GOOD.with_(version=5, body_type=2), []),
    ("tee-052-r-zero", RAW[:636] + bytes(32) + RAW[668:], ["tdx-quote-signature"]),
    ("xfam", GOOD.with_(xfam=1 << 40 | 3), ["tdx-xfam"]),
    ("xfam-without-x87", GOOD.with_(xfam=2), ["tdx-xfam"]),
    ("xfam-without-sse", GOOD.with_(xfam=1), ["tdx-xfam"]),
    ("xfam-least", GOOD.with_(xfam=3), []),
    ("largest", RAW.ljust(1 << 16, b"\0"), ["tdx-trailing-bytes"]),
    ("too-large", RAW.ljust((1 << 16) + 1, b"\0"), ["tdx-size"]),
    ("tee-037-longer-than-it-is", RAW[:632] + b"\xff\xff\xff\x7f" + RAW[636:], ["truncated"]),
    ("tee-037-one-byte-shorter", RAW[:632] + (len(RAW) - 637).to_bytes(4, "little") + RAW[636:], ["truncated"]),
    ("tee-037-certification-longer", RAW[:766] + b"\xff\xff\xff\x7f" + RAW[770:], ["truncated"]),
    ("tee-037-more-after-the-chain", _longer_certification(), ["trailing-bytes"]),
    ("tee-037-certification-shorter", _shorter_certification(), ["trailing-bytes"]),
]


@pytest.mark.parametrize(("quote", "codes"), [pytest.param(q, c, id=i) for i, q, c in _QUOTES])
def test_quotes(quote: QuoteForm | bytes, codes: list[str]) -> None:
    assert refusal(quote) == codes


P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


@pytest.mark.parametrize("_case", [pytest.param(None, id="tee-052-malleable")])
def test_both_signs_of_s_are_valid(_case: None) -> None:
    """ECDSA is malleable, so no digest over a signature identifies a quote."""
    s = int.from_bytes(RAW[668:700], "big")
    other = RAW[:668] + (P256_ORDER - s).to_bytes(32, "big") + RAW[700:]
    assert other != RAW
    assert refusal(other) == []


def _chain(*roles: tuple[str, str, int]) -> str:
    sgx = sgx_extension()
    return pem(*(certificate(r, i, serial=s, sgx=sgx if r == "pck" else None) for r, i, s in roles))


_LEAF, _CA, _ROOT = ("pck", "platform", PCK_SERIAL), ("platform", "root", CA_SERIAL), ("root", "root", 1)
_CHAINS: list[tuple[str, QuoteForm, list[str]]] = [
    ("tee-050-two", GOOD.with_(chain=_chain(_LEAF, _CA)), ["tdx-chain"]),
    ("tee-050-four", GOOD.with_(chain=_chain(_LEAF, _CA, _CA, _ROOT)), ["tdx-chain"]),
    ("tee-050-reversed", GOOD.with_(chain=_chain(_ROOT, _CA, _LEAF)), ["tdx-pck"]),
    ("tee-050-processor-leaf-platform-crl", GOOD.with_(ca="processor"), ["tdx-crl-issuer"]),
    ("tee-050-text-between", GOOD.with_(chain=_chain(_LEAF, _CA) + "x" + _chain(_ROOT)), ["tdx-chain"]),
    ("tee-050-not-base64", GOOD.with_(chain="-----BEGIN CERTIFICATE-----*-----END CERTIFICATE-----"), ["tdx-chain"]),
]


def _dated(role: str, **dates: datetime) -> QuoteForm:
    """A chain with other dates in one certificate."""
    rows = (("pck", "platform", PCK_SERIAL), ("platform", "root", CA_SERIAL), ("root", "root", 1))
    made = (
        certificate(r, i, serial=s, sgx=sgx_extension() if r == "pck" else None, **(dates if r == role else {}))
        for r, i, s in rows
    )
    return GOOD.with_(chain=pem(*made))


def _other_name() -> str:
    """A leaf with the SGX extension that is not called a PCK certificate."""
    return pem(certificate("tcb", "platform", serial=9, sgx=sgx_extension())) + _chain(_CA, _ROOT)


def _chain_bytes(size: int) -> QuoteForm:
    """The good chain, with line feeds after it."""
    return GOOD.with_(chain=_chain(_LEAF, _CA, _ROOT).ljust(size - 1, "\n"))  # and the NUL that ends it


_THREE = _chain(_LEAF, _CA, _ROOT)
_CHAINS += [
    ("tee-050-longest", _chain_bytes(32 * 1024), []),
    ("tee-050-too-long", _chain_bytes(32 * 1024 + 1), ["tdx-chain"]),
    ("tee-050-text-before", GOOD.with_(chain="x" + _THREE), ["tdx-chain"]),
    ("tee-050-text-after", GOOD.with_(chain=_THREE + "x"), ["tdx-chain"]),
    ("tee-050-no-end", GOOD.with_(chain=_THREE.rstrip()[: -len("-----END CERTIFICATE-----")]), ["tdx-chain"]),
    ("tee-050-one-not-base64", GOOD.with_(chain=_THREE.replace("\nMII", "\n*II", 1)), ["tdx-chain"]),
]
_SECOND = timedelta(seconds=1)
_CHAINS += [
    ("tee-050-other-leaf-name", GOOD.with_(chain=_other_name()), ["tdx-chain-names"]),
    ("tee-050-no-ca", GOOD.with_(chain=_chain(("pck", "root", PCK_SERIAL), _ROOT, _ROOT)), ["tdx-chain-names"]),
    *(
        row
        for role in ("pck", "platform")
        for row in (
            (f"tee-039-{role}-expired", _dated(role, end=TODAY - _SECOND), ["tdx-certificate-expired"]),
            (f"tee-039-{role}-last-second", _dated(role, end=TODAY), []),
            (f"tee-039-{role}-first-second", _dated(role, start=TODAY), []),
            (f"tee-039-{role}-early", _dated(role, start=TODAY + _SECOND), ["tdx-certificate-expired"]),
        )
    ),
]


@pytest.mark.parametrize(("quote", "codes"), [pytest.param(q, c, id=i) for i, q, c in _CHAINS])
def test_pck_chains(quote: QuoteForm, codes: list[str]) -> None:
    assert refusal(quote) == codes


def _edit(**changes: Callable[[str], str]) -> bytes:
    members = FORM.members()
    return json.dumps({name: changes.get(name, str)(text) for name, text in members.items()}).encode()


def _endless(issuer: str) -> bytes:
    """A list that does not say when the next one comes."""
    algorithm = bytes.fromhex("300a06082a8648ce3d040302")
    name = certificate("tcb", issuer, serial=9).issuer.public_bytes()
    tbs = der.sequence(der.integer(1), algorithm, name, der.time(START))
    return der.sequence(tbs, algorithm, der.bits(derive_key(issuer).sign(tbs, ec.ECDSA(hashes.SHA256()))))


_LEVELS = FORM.tcb_info["tcbLevels"]
_YESTERDAY, _TOMORROW = TODAY - timedelta(seconds=1), TODAY + timedelta(seconds=1)
_COLLATERAL: list[tuple[str, CollateralForm | bytes, list[str]]] = [
    ("tee-039-expired", CollateralForm(end=_YESTERDAY), ["tdx-collateral-expired"]),
    ("tee-039-future", CollateralForm(start=_TOMORROW), ["tdx-collateral-future"]),
    (
        "tee-039-tcb-info-expired",
        CollateralForm(info={"nextUpdate": "2026-11-21T00:00:00Z"}),
        ["tdx-collateral-expired"],
    ),
    (
        "tee-039-qe-identity-early",
        CollateralForm(identity={"issueDate": "2026-11-21T00:00:01Z"}),
        ["tdx-collateral-future"],
    ),
    ("tee-039-first-second", CollateralForm(start=TODAY), []),
    (
        "tee-039-tcb-signer-expired",
        _edit(
            tcb_info_issuer_chain=lambda _: pem(certificate("tcb", "root", serial=TCB_SERIAL, end=_YESTERDAY), root())
        ),
        ["tdx-certificate-expired"],
    ),
    (
        "tee-039-qe-signer-early",
        _edit(
            qe_identity_issuer_chain=lambda _: pem(
                certificate("tcb", "root", serial=TCB_SERIAL, start=_TOMORROW), root()
            )
        ),
        ["tdx-certificate-expired"],
    ),
    ("tee-039-root-crl-without-end", CollateralForm(root_crl=_endless("root")), ["tdx-crl-window"]),
    ("tee-039-pck-crl-without-end", CollateralForm(pck_crl=_endless("platform")), ["tdx-crl-window"]),
    ("tee-040-no-signer", _edit(tcb_info_issuer_chain=lambda _: ""), ["tdx-collateral-signer"]),
    (
        "tee-040-signer-of-another-name",
        _edit(tcb_info_issuer_chain=lambda _: pem(certificate("pck", "root", serial=9), root())),
        ["tdx-collateral-signer"],
    ),
    ("tee-040-signer-not-base64", _edit(tcb_info_issuer_chain=lambda t: t[:50] + "*"), ["tdx-certificate"]),
    ("tee-039-root-crl-expired", CollateralForm(root_crl=mint_crl("root", end=_YESTERDAY)), ["tdx-collateral-expired"]),
    (
        "tee-039-pck-crl-expired",
        CollateralForm(pck_crl=mint_crl("platform", end=_YESTERDAY)),
        ["tdx-collateral-expired"],
    ),
    (
        "tee-039-pck-crl-future",
        CollateralForm(pck_crl=mint_crl("platform", start=_TOMORROW)),
        ["tdx-collateral-future"],
    ),
    (
        "tee-040-tcb-info",
        _edit(tcb_info=lambda t: t.replace('"pcesvn":13', '"pcesvn":12')),
        ["tdx-collateral-signature"],
    ),
    (
        "tee-040-signature",
        _edit(tcb_info_signature=lambda _: FORM.members()["qe_identity_signature"]),
        ["tdx-collateral-signature"],
    ),
    (
        "tee-040-qe-identity",
        _edit(qe_identity=lambda t: t.replace('"isvsvn":4', '"isvsvn":1')),
        ["tdx-collateral-signature"],
    ),
    ("tee-041-empty-pck-crl", _edit(pck_crl=lambda _: ""), ["tdx-crl"]),
    ("tee-041-root-crl-as-pck-crl", CollateralForm(pck_crl=mint_crl("root")), ["tdx-crl-issuer"]),
    ("tee-042-pck", CollateralForm(pck_crl=mint_crl("platform", revoked=(PCK_SERIAL,))), ["tdx-revoked"]),
    ("tee-042-platform-ca", CollateralForm(root_crl=mint_crl("root", revoked=(CA_SERIAL,))), ["tdx-revoked"]),
    ("tee-042-tcb-signer", CollateralForm(root_crl=mint_crl("root", revoked=(TCB_SERIAL,))), ["tdx-revoked"]),
    ("tee-043-sgx-info", CollateralForm(info={"id": "SGX"}), ["tdx-collateral-id"]),
    ("tee-043-qe-id", CollateralForm(identity={"id": "QE"}), ["tdx-collateral-id"]),
    ("tee-045-level-revoked", CollateralForm(info={"tcbLevels": [tcb_level("Revoked")]}), ["tdx-tcb-revoked"]),
    (
        "tee-045-relaunch",
        CollateralForm(
            info={"tcbLevels": [tcb_level("UpToDate", tdx=bytes([5, 0, 9]) + bytes(13)), tcb_level("OutOfDate")]}
        ),
        ["tdx-tcb-status"],
    ),
    ("tee-053-shuffled", CollateralForm(info={"tcbLevels": _LEVELS[::-1]}), []),
    (
        "tee-053-15-components",
        CollateralForm(info={"tcbLevels": [tcb_level("UpToDate", cpu=bytes(15))]}),
        ["tdx-tcb-components"],
    ),
    (
        "tee-053-17-components",
        CollateralForm(info={"tcbLevels": [tcb_level("UpToDate", tdx=bytes(17))]}),
        ["tdx-tcb-components"],
    ),
    ("tee-053-re-serialised", CollateralForm(spaces=True), ["tdx-collateral-signature"]),
    (
        "tee-053-duplicate-key",
        _edit(tcb_info=lambda t: t.replace('"version":3', '"version":3,"version":3')),
        ["json-duplicate-key"],
    ),
    ("tee-054-mixed", CollateralForm(identity={"tcbEvaluationDataNumber": 17}), ["tdx-evaluation-mixed"]),
    ("signature-length", _edit(tcb_info_signature=lambda t: t[:-2]), ["tdx-collateral-hex"]),
    ("not-hex", _edit(pck_crl=lambda _: "zz"), ["tdx-collateral-hex"]),
    ("time", CollateralForm(info={"issueDate": "2026"}), ["tdx-collateral-time"]),
    ("number", CollateralForm(info={"version": "3"}), ["tdx-collateral-number"]),
    ("missing-member", b"{}", ["json-type"]),
]


@pytest.mark.parametrize(("collateral", "codes"), [pytest.param(s, c, id=i) for i, s, c in _COLLATERAL])
def test_collateral(collateral: CollateralForm | bytes, codes: list[str]) -> None:
    assert refusal(GOOD, collateral) == codes


def _with_documents(*documents: bytes) -> list[str]:
    try:
        cpu = verify_tdx(
            TdxEvidence(quote=RAW),
            trust=simulated_intel_trust(),
            collateral=StaticIntelCollateral(documents=documents),
            policy=TdxPolicy(),
            expected=CpuExpected.unchecked(),
            now=TODAY,
        )
    except AttestationError as exc:
        return [exc.code]
    return failures(cpu)


def test_of_several_documents_the_first_that_fits_counts() -> None:
    """Where none does, the first one's reason is told."""
    good, expired = FORM.render(), CollateralForm(end=_YESTERDAY).render()
    future = CollateralForm(start=_TOMORROW).render()
    assert (_with_documents(expired, good), _with_documents(good, expired)) == ([], [])
    assert _with_documents(expired, future) == ["tdx-collateral-expired"]
    assert _with_documents(future, expired) == ["tdx-collateral-future"]


def test_the_root_is_judged_by_its_dates_as_well() -> None:
    """Pinned, and expired."""
    old = certificate("root", "root", serial=1, end=_YESTERDAY)
    pin = hashlib.sha256(old.public_bytes(Encoding.DER)).hexdigest()
    quote = _dated("root", end=_YESTERDAY)
    assert refusal(quote, trust=IntelTrust(root_sha256=pin, simulated=True)) == ["tdx-certificate-expired"]


def test_a_pinned_root_that_is_no_vendors_is_said() -> None:
    assert "simulated-roots" in {f.code for f in verify_forged().findings}
    trust = replace(simulated_intel_trust(), simulated=False)
    assert {f.code for f in verify_forged(trust=trust).findings if f.check == "tdx-chain"} == {""}


def test_a_platform_of_one_package_has_no_name() -> None:
    assert verify_forged(GOOD.with_(sgx=sgx_extension(platform_instance=None))).chip_id == ""


def _svn_256() -> CollateralForm:
    level = tcb_level("UpToDate")
    level["tcb"]["tdxtcbcomponents"][0]["svn"] = 256
    return CollateralForm(info={"tcbLevels": [level]})


@pytest.mark.parametrize("_case", [pytest.param(None, id="tee-053-svn-256")])
def test_svn_is_a_byte(_case: None) -> None:
    assert refusal(GOOD, _svn_256()) == ["tdx-tcb-components"]


@pytest.mark.parametrize("_case", [pytest.param(None, id="tee-045-statuses")])
def test_statuses(_case: None) -> None:
    """The status is dcap-qvl's; whether it is enough is ours."""
    old = GOOD.with_(sgx=sgx_extension(pce_svn=11))
    allowed = TdxPolicy(statuses=frozenset({TcbStatus.UP_TO_DATE, TcbStatus.OUT_OF_DATE}))
    assert verify_forged(old, policy=allowed).claims["tcb_status"] == "OutOfDate"
    assert refusal(old, policy=allowed) == []
    levels = [
        tcb_level("UpToDate", tdx=bytes([5, 0, 3]) + bytes(13)),
        tcb_level("OutOfDate", tdx=bytes([4, 0, 3]) + bytes(13)),
    ]
    relaunch = QuoteForm(version=5, tee_tcb_svn=bytes([4, 0, 3]) + bytes(13), tee_tcb_svn2=TDX_SVN)
    cpu = verify_forged(relaunch, CollateralForm(info={"tcbLevels": levels}))
    assert (cpu.claims["tcb_status"], failures(cpu)) == ("TDRelaunchAdvised", ["tdx-tcb-status"])


_POLICIES: list[tuple[str, TdxPolicy, list[str]]] = [
    ("tee-054-evaluation", TdxPolicy(min_evaluation=19), ["tdx-evaluation"]),
    ("tee-054-evaluation-at-least", TdxPolicy(min_evaluation=18), []),
    ("tcb-date", TdxPolicy(min_tcb_date=TODAY), ["tdx-tcb-date"]),
    ("tcb-date-of-that-day", TdxPolicy(min_tcb_date=datetime.fromisoformat("2025-05-14T00:00:00Z")), []),
    ("advisories", TdxPolicy(advisories=frozenset()), []),
    ("mr-seam", TdxPolicy(mr_seams=frozenset({"00" * 48})), ["tdx-mr-seam"]),
    ("mr-owner", TdxPolicy(mr_owners=frozenset({"01" * 48})), ["tdx-mr-owner"]),
    ("platform-allow", TdxPolicy(platform_allow=frozenset({"00"})), ["tdx-platform-allow"]),
    ("platform-deny", TdxPolicy(platform_deny=frozenset({verify_forged().chip_id})), ["tdx-platform-deny"]),
    ("dynamic", TdxPolicy(dynamic_platform=False, smt=False), ["tdx-dynamic-platform", "tdx-smt"]),
]


_ADVISED = CollateralForm(info={"tcbLevels": [tcb_level("UpToDate") | {"advisoryIDs": ["INTEL-SA-00001"]}]})


@pytest.mark.parametrize(
    ("advisories", "codes"),
    [
        pytest.param(None, [], id="any"),
        pytest.param(frozenset({"INTEL-SA-00001", "INTEL-SA-00002"}), [], id="listed"),
        pytest.param(frozenset({"INTEL-SA-00002"}), ["tdx-advisories"], id="another"),
        pytest.param(frozenset(), ["tdx-advisories"], id="none"),
    ],
)
def test_advisories(advisories: frozenset[str] | None, codes: list[str]) -> None:
    assert refusal(GOOD, _ADVISED, policy=TdxPolicy(advisories=advisories)) == codes


@pytest.mark.parametrize(
    ("bit", "allowed"),
    [(30, TdxPolicy(allow_pks=True)), (31, TdxPolicy(allow_key_locker=True)), (63, TdxPolicy(allow_perfmon=True))],
    ids=["tee-046-pks-allowed", "tee-046-key-locker-allowed", "tee-046-perfmon-allowed"],
)
def test_attributes_that_a_policy_allows(bit: int, allowed: TdxPolicy) -> None:
    """That one, and no other."""
    assert refusal(GOOD.with_(td_attributes=1 << 28 | 1 << bit), policy=allowed) == []
    others = 1 << 28 | sum(1 << other for other in (30, 31, 63) if other != bit)
    assert len(refusal(GOOD.with_(td_attributes=others), policy=allowed)) == 2


@pytest.mark.parametrize("serial", [b"\2\1\0", b"\2\1\x84"], ids=["tee-050-serial-zero", "tee-050-serial-negative"])
def test_serial_numbers_are_positive(serial: bytes) -> None:
    """Before any library looks at them, which may warn or refuse in its own words."""
    leaf = certificate("pck", "platform", serial=PCK_SERIAL, sgx=sgx_extension()).public_bytes(Encoding.DER)
    head, found, rest = leaf.partition(b"\xa0\3\2\1\2\2\1\4")
    assert found
    changed = head + found[:5] + serial + rest
    text = f"-----BEGIN CERTIFICATE-----\n{b64encode(changed).decode()}\n-----END CERTIFICATE-----\n"
    assert refusal(GOOD.with_(chain=text + _chain(_CA, _ROOT))) == ["tdx-certificate-serial"]
    assert negative_or_zero_serial(changed)
    assert not negative_or_zero_serial(leaf)


@pytest.mark.parametrize(("policy", "codes"), [pytest.param(p, c, id=i) for i, p, c in _POLICIES])
def test_policy(policy: TdxPolicy, codes: list[str]) -> None:
    assert refusal(policy=policy) == codes


@pytest.mark.parametrize(
    ("statuses", "code"),
    [
        pytest.param(frozenset(), "tdx-policy-empty", id="none"),
        pytest.param(frozenset(TcbStatus), "tdx-policy-revoked", id="tee-045-revoked"),
    ],
)
def test_policies_that_cannot_be_meant(statuses: frozenset[TcbStatus], code: str) -> None:
    with pytest.raises(Misconfigured) as caught:
        TdxPolicy(statuses=statuses)
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("trust", "code"), [pytest.param(IntelTrust.production(), "tdx-anchor-mismatch", id="tee-049-intel-root")]
)
def test_simulated_quotes_are_refused_under_intels_root(trust: IntelTrust, code: str) -> None:
    assert refusal(trust=trust) == [code]


@pytest.mark.parametrize("_case", [pytest.param(None, id="tee-047-tdx-as-snp")])
def test_tdx_quote_offered_as_snp(_case: None) -> None:
    assert snp_cases.refusal(SnpEvidence(report=RAW, certificates={})) == ["snp-length"]


@pytest.mark.parametrize(
    ("offset", "codes"),
    [
        pytest.param(timedelta(seconds=-1), [], id="tee-068-tdx-last-second"),
        pytest.param(timedelta(0), ["tdx-collateral-expired"], id="tee-068-tdx-next-update"),
    ],
)
def test_collateral_ends_when_its_update_is_due(offset: timedelta, codes: list[str]) -> None:
    end = TODAY
    assert refusal(GOOD, CollateralForm(end=end), now=end + offset) == codes
    assert START < end < END


@pytest.mark.parametrize("_case", [pytest.param(None, id="tee-042-dcap-agrees")])
def test_pure_chain_and_dcap_agree_on_a_corpus(_case: None) -> None:
    """Differential: whatever dcap-qvl accepts has a chain of signatures that the oracle confirms, and the reverse
    for every broken signature of this corpus."""
    corpus = [RAW, QuoteForm(version=5).sign(), *(_flip(o) for o in (0x30, 60, 200, 640, 705, 780, 1160, 1230))]
    document = FORM.render()
    known, native = parse_tdx_collateral(document), dcap_qvl.QuoteCollateralV3.from_json(document.decode())
    root_der = parse_tdx_quote(RAW).pck_chain[2]
    outcomes = []
    for raw in corpus:
        try:
            verify_signatures(parse_tdx_quote(raw), known, simulated_intel_trust(), X509Cache())
            ours = True
        except AttestationError:
            ours = False
        try:
            dcap_qvl.verify_with_root_ca(raw, native, root_der, int(TODAY.timestamp()))
            theirs = True
        except ValueError:
            theirs = False
        assert ours == theirs
        outcomes.append(ours)
    assert outcomes == [True, True] + [False] * 8
    assert root().subject.rfc4514_string().endswith("CN=Intel SGX Root CA")


def _event(index: int, data: bytes, *, count: int = 1, kind: int = 4) -> bytes:
    digest = hashlib.sha384(data).digest()
    head = index.to_bytes(4, "little") + kind.to_bytes(4, "little") + count.to_bytes(4, "little")
    return head + (b"\x0c\x00" + digest) * count + len(data).to_bytes(4, "little") + data


_SPEC = b"Spec ID Event03\0" + bytes(4) + b"\0\2\0\2" + b"\1\0\0\0" + b"\x0c\0\x30\0" + b"\0"


def _header(spec: bytes) -> bytes:
    return bytes(4) + b"\3\0\0\0" + bytes(20) + len(spec).to_bytes(4, "little") + spec


_HEADER = _header(_SPEC)
LOG = _HEADER + _event(1, b"config") + _event(2, b"kernel") + _event(2, b"cmdline")


def test_event_log_explains_the_registers() -> None:
    rtmrs = replay(parse_event_log(LOG))
    good = GOOD.with_(rtmrs=rtmrs)
    for padding in (b"", b"\xff" * 100, bytes(100)):
        cpu = verify_forged(good, event_log=LOG + padding)
        claims: Any = cpu.claims["uefi_event_logs"]
        assert (failures(cpu), [c["index"] for c in claims]) == ([], [1, 2, 2])
        assert all(c["digest_matches_event"] for c in claims)


@pytest.mark.parametrize("_case", [pytest.param(None, id="tee-055-rtmr-mismatch")])
def test_only_replaying_registers_give_claims(_case: None) -> None:
    rtmrs = list(replay(parse_event_log(LOG)))
    rtmrs[1] = bytes(48)
    cpu = verify_forged(GOOD.with_(rtmrs=tuple(rtmrs)), event_log=LOG)
    claims: Any = cpu.claims["uefi_event_logs"]
    assert (failures(cpu), [c["index"] for c in claims]) == (["event-log-mismatch"], [1])
    assert [f.got for f in cpu.findings if f.code == "event-log-mismatch"] == ["RTMR1"]


@pytest.mark.parametrize(("size", "claimed"), [(4096, True), (4097, False)])
def test_large_events_are_claimed_by_digest_alone(size: int, claimed: bool) -> None:
    log = _HEADER + _event(1, bytes(size))
    ((claim,), _) = verify_event_log(log, replay(parse_event_log(log)))
    assert (claim["event"] is not None, claim["digest_matches_event"]) == (claimed, True)


_LOGS: list[tuple[str, bytes, str]] = [
    ("tee-055-truncated", LOG[:-1], "truncated"),
    ("tee-055-register-4", LOG + _event(5, b"x"), "event-log"),
    ("tee-055-register-minus", LOG + _event(0, b"x"), "event-log"),
    ("tee-055-no-digest", LOG + _event(1, b"x", count=0), "event-log"),
    ("tee-055-two-digests", LOG + _event(1, b"x", count=2), "event-log"),
    ("tee-055-no-header", LOG[10:], "event-log"),
    ("tee-055-junk-after", LOG + bytes(7) + b"\1", "truncated"),
    ("tee-055-size", LOG[:-11] + b"\xff\xff\xff\x7f" + LOG[-7:], "event-log"),
    ("tee-055-large", LOG + bytes(1 << 20), "event-log"),
    ("tee-055-too-large", LOG.ljust((1 << 20) + 1, b"\0"), "event-log"),
    ("tee-055-other-digest", LOG + _event(1, b"x").replace(b"\x0c\0", b"\x0b\0", 1), "event-log"),
    ("tee-055-other-log", LOG.replace(b"Spec ID Event03", b"Spec ID Event02"), "event-log"),
    ("tee-055-two-algorithms", LOG.replace(b"\1\0\0\0\x0c\0\x30\0", b"\2\0\0\0\x0c\0\x30\0"), "event-log"),
    ("tee-055-sha-256", LOG.replace(b"\x0c\0\x30\0", b"\x0b\0\x20\0", 1), "event-log"),
    ("tee-055-short-digest", LOG.replace(b"\x0c\0\x30\0", b"\x0c\0\x20\0", 1), "event-log"),
    ("tee-055-longer-header", _header(_SPEC + b"x") + _event(1, b"x"), "trailing-bytes"),
    ("tee-055-event-too-large", _HEADER + _event(1, bytes(512 * 1024 + 1)), "event-log"),
    ("tee-055-too-many", _HEADER + _event(1, b"") * 10_001, "event-log"),
    ("tee-055-other-padding", LOG + b"\1" * 40, "event-log"),
    ("tee-055-says-no-digest", LOG + _event(1, b"x").replace(b"\1\0\0\0\x0c", b"\0\0\0\0\x0c"), "event-log"),
    ("tee-055-says-two-digests", LOG + _event(1, b"x").replace(b"\1\0\0\0\x0c", b"\2\0\0\0\x0c"), "event-log"),
    ("tee-055-half-padding", LOG + b"\xff" * 20 + b"\0" * 20, "event-log"),
]


@pytest.mark.parametrize(("log", "code"), [pytest.param(data, code, id=i) for i, data, code in _LOGS])
def test_broken_event_logs(log: bytes, code: str) -> None:
    with pytest.raises(Malformed) as caught:
        verify_forged(event_log=log)
    assert caught.value.code == code


_READ: list[tuple[str, bytes, int]] = [
    ("tee-055-nothing", _HEADER, 0),
    ("tee-055-first-register", LOG + _event(1, b"x"), 4),
    ("tee-055-last-register", LOG + _event(4, b"x"), 4),
    ("tee-055-not-extended", LOG + _event(1, b"x", kind=3), 3),
    ("tee-055-not-extended-anywhere", LOG + _event(0, b"x", kind=3), 3),
    ("tee-055-largest-event", _HEADER + _event(1, bytes(512 * 1024)), 1),
    ("tee-055-as-many-as-fit", _HEADER + _event(1, b"") * 10_000, 10_000),
    ("tee-055-full-buffer", LOG.ljust(1 << 20, b"\xff"), 3),
    ("tee-055-one-byte-of-padding", LOG + b"\xff", 3),
]


@pytest.mark.parametrize(("log", "events"), [pytest.param(data, n, id=i) for i, data, n in _READ])
def test_event_logs_that_are_read(log: bytes, events: int) -> None:
    assert len(parse_event_log(log)) == events


def test_evidence_json() -> None:
    document = json.loads(GOOD.evidence_json(LOG))
    evidence = read_tdx_evidence(document)
    assert (len(evidence.quote), evidence.event_log) == (len(RAW), LOG)
    for wrong in ({}, {"quote": 1}, {"quote": "*"}, {"quote": "A" * 200_000}):
        with pytest.raises(Malformed):
            read_tdx_evidence(wrong)


def test_debug_is_denied_not_untrusted() -> None:
    with pytest.raises(Denied):
        verify_forged(GOOD.with_(td_attributes=1 | 1 << 28))


def test_every_byte_of_the_quote_is_covered() -> None:
    """Flipping one bit anywhere before the certificates is refused with one of our errors."""
    covered = len(RAW) - len(GOOD.pck_chain()) - 1
    for offset in range(0, covered, 41):
        with pytest.raises(AttestationError):
            verify_forged(_flip(offset))


def test_truncation_anywhere_is_malformed() -> None:
    for size in range(0, len(RAW), 173):
        with pytest.raises(Malformed):
            parse_tdx_quote(RAW[:size])


def test_replaced_form_is_frozen() -> None:
    assert replace(GOOD, xfam=3).sign() != RAW
