"""Intel TDX quote, versions 4 and 5, taken apart by declared lengths (tee.md 2.1, Intel DCAP quoting library API).

SGX quotes, unknown body types and other key types are refused. `GetQuote` hands out a fixed buffer, so the quote ends
where its lengths say and what follows is kept apart: a digest of the buffer would not identify the quote.
"""

from base64 import b64decode
from dataclasses import dataclass

from attestation.errors import Malformed
from attestation.formats.reader import Reader

MAX_QUOTE_BYTES = 64 * 1024  # genuine quotes have 5 KiB
MAX_CHAIN_BYTES = 32 * 1024
MAX_QE_AUTH_BYTES = 1024  # 32 in every quote known
CHAIN_CERTIFICATES = 3
VERSIONS = (4, 5)
ECDSA_P256 = 2
TEE_TDX = 0x81
INTEL_QE_VENDOR = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")
TD_10, TD_15 = 2, 3  # body types of version 5; 1 is SGX, 4 has no specification that is public
_BODY_BYTES = {TD_10: 584, TD_15: 648}
_QE_REPORT_CERTIFICATION, _PCK_CHAIN = 6, 5
_BEGIN, _END = b"-----BEGIN CERTIFICATE-----", b"-----END CERTIFICATE-----"


@dataclass(frozen=True, slots=True, kw_only=True)
class TdReport:
    """The TD's own report; integers are little endian on the wire, digests stay bytes."""

    tee_tcb_svn: bytes
    mr_seam: bytes
    mrsigner_seam: bytes
    seam_attributes: bytes
    td_attributes: int
    xfam: int
    mr_td: bytes
    mr_config_id: bytes
    mr_owner: bytes
    mr_owner_config: bytes
    rtmrs: tuple[bytes, bytes, bytes, bytes]
    report_data: bytes
    tee_tcb_svn2: bytes | None  # TD 1.5: module SVN after a TD-preserving update
    mr_service_td: bytes | None


@dataclass(frozen=True, slots=True, kw_only=True)
class QeReport:
    """Report of the quoting enclave: the fields that bind the attestation key and identify the enclave."""

    raw: bytes
    mrsigner: bytes
    isv_prod_id: int
    isv_svn: int
    report_data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class TdxQuote:
    """A quote. `raw` ends where the quote ends; `signed` is header and body, with the body descriptor of version 5."""

    raw: bytes
    trailing: bytes
    signed: bytes
    version: int
    header: bytes
    body_type: int
    td: TdReport
    signature: bytes  # r and s, big endian
    attestation_key: bytes  # x and y
    qe_report: QeReport
    qe_signature: bytes
    qe_auth: bytes
    pck_chain: tuple[bytes, ...]  # DER: leaf, PCK CA, root


def _bad(code: str, what: str, where: str, *, expected: object = "", got: object = "") -> Malformed:
    return Malformed(code, what, where=f"tdx.{where}", expected=expected, got=got)


def parse_tdx_quote(data: bytes) -> TdxQuote:
    """A TDX quote in a buffer that may be longer. Raises Malformed."""
    if len(data) > MAX_QUOTE_BYTES:
        raise _bad("tdx-size", "quote is too large", "quote", expected=f"<= {MAX_QUOTE_BYTES} bytes", got=len(data))
    r = Reader(data, "tdx")
    version = _header(r)
    body_type = TD_10
    if version == 5:
        body_type, size = r.u16le("body_type"), r.u32le("body_size")
        if _BODY_BYTES.get(body_type) != size:
            raise _bad(
                "tdx-body-type", "not a TD report", "body_type", expected=_BODY_BYTES, got=f"type {body_type}, {size}"
            )
    td = _td_report(r, body_type)
    signed = data[: r.position]
    s = Reader(r.take(r.u32le("signature_data.size"), "signature_data"), "tdx.signature_data")
    end = r.position
    signature, key = s.take(64, "signature"), s.take(64, "attestation_key")
    inner = _certification(s, _QE_REPORT_CERTIFICATION, "qe_certification")
    s.finish()
    q = Reader(inner, "tdx.qe_certification")
    qe_report, qe_signature = _qe_report(q.take(384, "qe_report")), q.take(64, "qe_signature")
    auth_size = q.u16le("qe_auth.size")
    if auth_size > MAX_QE_AUTH_BYTES:
        raise _bad("tdx-qe-auth", "QE data is too large", "qe_auth", expected=MAX_QE_AUTH_BYTES, got=auth_size)
    qe_auth = q.take(auth_size, "qe_auth")
    chain = _pck_chain(_certification(q, _PCK_CHAIN, "pck_chain"))
    q.finish()
    return TdxQuote(
        raw=data[:end],
        trailing=data[end:],
        signed=signed,
        version=version,
        header=data[:48],
        body_type=body_type,
        td=td,
        signature=signature,
        attestation_key=key,
        qe_report=qe_report,
        qe_signature=qe_signature,
        qe_auth=qe_auth,
        pck_chain=chain,
    )


def _header(r: Reader) -> int:
    version, key_type, tee = r.u16le("version"), r.u16le("att_key_type"), r.u32le("tee_type")
    if tee != TEE_TDX:
        raise _bad("tdx-tee-type", "not a TDX quote", "tee_type", expected=hex(TEE_TDX), got=hex(tee))
    if version not in VERSIONS:
        raise _bad("tdx-version", "unknown quote version", "version", expected=VERSIONS, got=version)
    if key_type != ECDSA_P256:
        raise _bad("tdx-key-type", "unknown attestation key type", "att_key_type", expected=ECDSA_P256, got=key_type)
    r.take(4, "reserved")
    vendor = r.take(16, "qe_vendor_id")
    if vendor != INTEL_QE_VENDOR:
        raise _bad(
            "tdx-vendor",
            "not Intel's quoting enclave",
            "qe_vendor_id",
            expected=INTEL_QE_VENDOR.hex(),
            got=vendor.hex(),
        )
    r.take(20, "user_data")
    return version


def _td_report(r: Reader, body_type: int) -> TdReport:
    newer = body_type == TD_15
    return TdReport(
        tee_tcb_svn=r.take(16, "tee_tcb_svn"),
        mr_seam=r.take(48, "mr_seam"),
        mrsigner_seam=r.take(48, "mrsigner_seam"),
        seam_attributes=r.take(8, "seam_attributes"),
        td_attributes=r.u64le("td_attributes"),
        xfam=r.u64le("xfam"),
        mr_td=r.take(48, "mr_td"),
        mr_config_id=r.take(48, "mr_config_id"),
        mr_owner=r.take(48, "mr_owner"),
        mr_owner_config=r.take(48, "mr_owner_config"),
        rtmrs=(r.take(48, "rtmr_0"), r.take(48, "rtmr_1"), r.take(48, "rtmr_2"), r.take(48, "rtmr_3")),
        report_data=r.take(64, "report_data"),
        tee_tcb_svn2=r.take(16, "tee_tcb_svn2") if newer else None,
        mr_service_td=r.take(48, "mr_service_td") if newer else None,
    )


def _qe_report(raw: bytes) -> QeReport:
    return QeReport(
        raw=raw,
        mrsigner=raw[128:160],
        isv_prod_id=int.from_bytes(raw[256:258], "little"),
        isv_svn=int.from_bytes(raw[258:260], "little"),
        report_data=raw[320:384],
    )


def _certification(r: Reader, kind: int, field: str) -> bytes:
    got, size = r.u16le(f"{field}.type"), r.u32le(f"{field}.size")
    if got != kind:
        raise _bad("tdx-certification-type", "unexpected certification data", field, expected=kind, got=got)
    return r.take(size, field)


def _pck_chain(data: bytes) -> tuple[bytes, ...]:
    """Three PEM certificates, leaf first, and at most NUL or white space around them."""
    if len(data) > MAX_CHAIN_BYTES:
        raise _bad("tdx-chain", "chain is too large", "pck_chain", expected=MAX_CHAIN_BYTES, got=len(data))
    head, *parts = data.split(_BEGIN)
    found = []
    for part in parts:
        body, end, rest = part.partition(_END)
        if not end or rest.strip(b"\0\r\n \t"):
            raise _bad("tdx-chain", "text between certificates", "pck_chain")
        try:
            found.append(b64decode(b"".join(body.split()), validate=True))
        except ValueError as exc:
            raise _bad("tdx-chain", "not base64", "pck_chain") from exc
    if head.strip() or len(found) != CHAIN_CERTIFICATES:
        raise _bad("tdx-chain", "not one PCK chain", "pck_chain", expected=CHAIN_CERTIFICATES, got=len(found))
    return tuple(found)
