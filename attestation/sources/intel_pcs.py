"""Intel TDX collateral in its three shapes (tee.md 2.3), brought into one: the nine members that dcap-qvl names.

What Intel signed are the exact bytes of an inner JSON object, so these are cut out and never written anew; only
PcsClientTool's file holds them parsed, and there the compact spelling with the given order of keys is restored, which
the signature later confirms or refutes. Nothing here is believed.
"""

import json
import re
from collections.abc import Iterator
from datetime import datetime
from typing import Any
from urllib.parse import unquote

from attestation.errors import Malformed
from attestation.formats.collateral import MAX_DOCUMENT_BYTES, Document, Kind
from attestation.formats.json_strict import parse_json, require_object, require_text
from attestation.sources.http import Fetcher

PCS = "https://api.trustedservices.intel.com"
ROOT_CRL_URL = "https://certificates.trustedservices.intel.com/IntelSGXRootCA.der"
CAS = ("platform", "processor")
MAX_FILE_BYTES = 16 * 1024 * 1024  # PcsClientTool writes one file for all platforms of a site
MAX_PLATFORMS = 256
_MAX = MAX_DOCUMENT_BYTES[Kind.TDX]
_FMSPC = re.compile(r"[0-9a-f]{12}")
_SIGNATURE = re.compile(r"[0-9a-fA-F]{128}")  # r and s of P-256
_MEMBERS = frozenset({
    "pck_crl_issuer_chain", "root_ca_crl", "pck_crl", "tcb_info_issuer_chain", "tcb_info", "tcb_info_signature",
    "qe_identity_issuer_chain", "qe_identity", "qe_identity_signature",
})  # fmt: skip
_PEM = "-----BEGIN CERTIFICATE-----"


def tcb_url(fmspc: str) -> str:
    """TCB info of a platform family."""
    return f"{PCS}/tdx/certification/v4/tcb?fmspc={require_fmspc(fmspc)}"


def qe_identity_url() -> str:
    """Identity of the TD quoting enclave."""
    return f"{PCS}/tdx/certification/v4/qe/identity"


def pck_crl_url(ca: str) -> str:
    """CRL of a PCK CA."""
    return f"{PCS}/sgx/certification/v4/pckcrl?ca={ca}&encoding=der"


def require_fmspc(text: str) -> str:
    """Twelve hex digits, lower case. Raises Malformed."""
    if not _FMSPC.fullmatch(text.lower()):
        raise Malformed("tdx-fmspc", "not an FMSPC", expected="12 hex digits", got=repr(text[:40]))
    return text.lower()


def split_signed(body: bytes, member: str) -> tuple[str, str]:
    """Inner object, byte for byte, and signature of a PCS answer `{"<member>":{...},"signature":"<hex>"}`.

    Raises Malformed.
    """
    where = f"PCS {member}"
    require_object(parse_json(body, max_bytes=_MAX, what=where), where)
    text = body.decode()
    head = re.match(rf'\s*\{{\s*"{member}"\s*:\s*', text)
    if head is None:
        raise Malformed("tdx-envelope", "unexpected first member", where=where, expected=member)
    _, end = json.JSONDecoder().raw_decode(text, head.end())
    tail = re.fullmatch(r'\s*,\s*"signature"\s*:\s*"([0-9a-fA-F]{128})"\s*\}\s*', text[end:])
    if tail is None:
        raise Malformed("tdx-envelope", "unexpected end", where=where, expected="signature, 128 hex digits")
    return text[head.end() : end], tail[1]


def _chain(text: object, where: str) -> str:
    """Certificates from a response header or a file: PEM, URL-encoded or not."""
    pem = unquote(require_text(text, where))
    if not pem.startswith(_PEM):
        raise Malformed("tdx-chain", "not a PEM chain", where=where, got=repr(pem[:40]))
    return pem


def _hex(text: object, where: str) -> str:
    value = require_text(text, where).lower()
    if not value or len(value) % 2 or not re.fullmatch(r"[0-9a-f]+", value):
        raise Malformed("tdx-hex", "not hexadecimal", where=where, got=repr(value[:40]))
    return value


def _document(members: dict[str, str], *, now: datetime, source: str) -> Document:
    """The stored form: canonical JSON of the nine members, under the FMSPC that the TCB info names."""
    tcb_info = require_object(parse_json(members["tcb_info"], max_bytes=_MAX, what="tcb_info"), "tcb_info")
    fmspc = require_fmspc(require_text(tcb_info.get("fmspc"), "tcb_info.fmspc"))
    for name in ("tcb_info_signature", "qe_identity_signature"):
        if not _SIGNATURE.fullmatch(members[name]):
            raise Malformed("tdx-signature", "not a P-256 signature", where=name, expected="128 hex digits")
    require_object(parse_json(members["qe_identity"], max_bytes=_MAX, what="qe_identity"), "qe_identity")
    content = json.dumps(members, sort_keys=True, separators=(",", ":")).encode()
    return Document(kind=Kind.TDX, id=fmspc, content=content, first_seen=now, source=source)


def read_dcap_json(body: bytes, *, now: datetime, source: str) -> Document:
    """dcap-qvl's own JSON. Raises Malformed."""
    value = require_object(parse_json(body, max_bytes=_MAX, what=source), source)
    if set(value) != _MEMBERS:
        raise Malformed("tdx-members", "unexpected members", where=source, expected=sorted(_MEMBERS), got=sorted(value))
    members = {name: require_text(value[name], f"{source} {name}") for name in _MEMBERS}
    for name in ("pck_crl", "root_ca_crl"):
        members[name] = _hex(members[name], name)
    return _document(members, now=now, source=source)


def _object_text(value: object, where: str) -> tuple[dict[str, Any], str]:
    """An object that PcsClientTool wrote as text (identities) or as JSON (TCB infos), and its compact spelling."""
    if isinstance(value, str):
        return require_object(parse_json(value, max_bytes=_MAX, what=where), where), value
    return require_object(value, where), json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def read_platform_collaterals(body: bytes, *, now: datetime, source: str) -> Iterator[Document]:
    """PcsClientTool's `platform_collaterals.json`: one document for each FMSPC with TDX and each PCK CA.

    Raises Malformed.
    """
    top = require_object(parse_json(body, max_bytes=MAX_FILE_BYTES, what=source), source)
    found = require_object(top.get("collaterals"), "collaterals")
    certificates = require_object(found.get("certificates"), "certificates")
    crls = require_object(found.get("pckcacrl"), "pckcacrl")
    pck_chains = require_object(certificates.get("SGX-PCK-Certificate-Issuer-Chain"), "PCK chains")
    tcb_chain = certificates.get("TCB-Info-Issuer-Chain") or certificates.get("SGX-TCB-Info-Issuer-Chain")
    _, identity = _object_text(found.get("tdqeidentity"), "tdqeidentity")
    qe_identity, qe_signature = split_signed(identity.encode(), "enclaveIdentity")
    infos = found.get("tcbinfos")
    if not isinstance(infos, list) or len(infos) > MAX_PLATFORMS:
        raise Malformed("tdx-members", "no list of TCB infos", where=source, expected=f"at most {MAX_PLATFORMS}")
    for entry in infos:
        info = require_object(entry, "tcbinfos").get("tdx_tcbinfo")
        if info is None:
            continue  # an SGX-only platform
        tcb_info, tcb_signature = split_signed(_object_text(info, "tdx_tcbinfo")[1].encode(), "tcbInfo")
        for ca in CAS:
            if not crls.get(f"{ca}Crl") or not pck_chains.get(ca.upper()):
                continue  # the site has no platform of this CA
            yield _document(
                {
                    "tcb_info": tcb_info,
                    "tcb_info_signature": tcb_signature,
                    "tcb_info_issuer_chain": _chain(tcb_chain, "TCB info chain"),
                    "qe_identity": qe_identity,
                    "qe_identity_signature": qe_signature,
                    "qe_identity_issuer_chain": _chain(
                        certificates.get("SGX-Enclave-Identity-Issuer-Chain"), "identity chain"
                    ),
                    "pck_crl": _hex(crls[f"{ca}Crl"], f"{ca}Crl"),
                    "pck_crl_issuer_chain": _chain(pck_chains[ca.upper()], f"{ca} chain"),
                    "root_ca_crl": _hex(found.get("rootcacrl"), "rootcacrl"),
                },
                now=now,
                source=source,
            )


def fetch_tdx(fetcher: Fetcher, fmspc: str, ca: str, *, now: datetime) -> Document:
    """Everything a TD quote of this family and PCK CA needs, from Intel's PCS. Raises Malformed."""
    tcb = fetcher.get(tcb_url(fmspc), max_bytes=_MAX)
    identity = fetcher.get(qe_identity_url(), max_bytes=_MAX)
    crl = fetcher.get(pck_crl_url(ca), max_bytes=_MAX)
    root = fetcher.get(ROOT_CRL_URL, max_bytes=_MAX)
    tcb_info, tcb_signature = split_signed(tcb.body, "tcbInfo")
    qe_identity, qe_signature = split_signed(identity.body, "enclaveIdentity")
    document = _document(
        {
            "tcb_info": tcb_info,
            "tcb_info_signature": tcb_signature,
            "tcb_info_issuer_chain": _chain(tcb.headers.get("tcb-info-issuer-chain"), "TCB-Info-Issuer-Chain"),
            "qe_identity": qe_identity,
            "qe_identity_signature": qe_signature,
            "qe_identity_issuer_chain": _chain(
                identity.headers.get("sgx-enclave-identity-issuer-chain"), "SGX-Enclave-Identity-Issuer-Chain"
            ),
            "pck_crl": crl.body.hex(),
            "pck_crl_issuer_chain": _chain(crl.headers.get("sgx-pck-crl-issuer-chain"), "SGX-PCK-CRL-Issuer-Chain"),
            "root_ca_crl": root.body.hex(),
        },
        now=now,
        source=tcb.url,
    )
    if document.id != require_fmspc(fmspc):
        raise Malformed("tdx-fmspc", "TCB info of another platform family", expected=fmspc, got=document.id)
    return document
