"""A synthetic Intel authority: root, PCK CA, TCB signing, PCK leaves, revocation lists and collateral.

Its root is in nobody's pins; `simulated_intel_trust` names it, and only for tests and dangerous flags.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property, lru_cache
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding

from attestation.simulate import der
from attestation.verify.tdx_trust import IntelTrust

START, END = datetime(2026, 1, 1, tzinfo=UTC), datetime(2046, 1, 1, tzinfo=UTC)
FMSPC, PCE_ID = "90C06F000000", "0000"
PLATFORM_INSTANCE = hashlib.sha256(b"simulated platform").digest()[:16]
CPU_SVN, PCE_SVN = bytes([3, 3, 2, 2, 4, 1, 0, 5]) + bytes(8), 13
TDX_SVN = bytes([5, 0, 3]) + bytes(13)
QE_MRSIGNER = bytes.fromhex("dc9e2a7c6f948f17474e34a7fc43ed030f7c1563f1babddf6340c82e0e54a8c5")
_SGX = "1.2.840.113741.1.13.1"
_ORGANIZATION = "Simulated Intel (no platform has these keys)"
_SHA256 = hashes.SHA256()
_NAMES = {
    "root": "Intel SGX Root CA",
    "platform": "Intel SGX PCK Platform CA",
    "processor": "Intel SGX PCK Processor CA",
    "tcb": "Intel SGX TCB Signing",
    "pck": "Intel SGX PCK Certificate",
}


@lru_cache(maxsize=16)
def derive_key(label: str) -> ec.EllipticCurvePrivateKey:
    """A P-256 key of this PKI."""
    return ec.derive_private_key(
        int.from_bytes(hashlib.sha256(f"simulated intel {label}".encode()).digest(), "big") >> 1, ec.SECP256R1()
    )


def sign_raw(key: ec.EllipticCurvePrivateKey, data: bytes) -> bytes:
    """r and s, 32 bytes each, big endian."""
    r, s = decode_dss_signature(key.sign(data, ec.ECDSA(_SHA256)))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def _name(role: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(x509.NameOID.COMMON_NAME, _NAMES[role]),
            x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, _ORGANIZATION),
        ]
    )


@lru_cache(maxsize=64)
def certificate(
    role: str, issuer: str, *, serial: int, start: datetime = START, end: datetime = END, sgx: bytes | None = None
) -> x509.Certificate:
    """One certificate of the PKI; PCK leaves carry the SGX extension."""
    authority = role in ("root", "platform", "processor")
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(role))
        .issuer_name(_name(issuer))
        .public_key(derive_key(role).public_key())
        .serial_number(serial)
        .not_valid_before(start)
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(derive_key(role).public_key()), critical=False)
    )
    if sgx is not None:
        extension = x509.UnrecognizedExtension(x509.ObjectIdentifier(_SGX), sgx)
        builder = builder.add_extension(extension, critical=False)
    return builder.sign(derive_key(issuer), _SHA256, ecdsa_deterministic=True)  # the root is pinned by its digest


def sgx_extension(
    *,
    fmspc: str = FMSPC,
    pce_id: str = PCE_ID,
    cpu_svn: bytes = CPU_SVN,
    pce_svn: int = PCE_SVN,
    platform_instance: bytes | None = PLATFORM_INSTANCE,
) -> bytes:
    """The PCK leaf's SGX extension (tee.md 2.2); without `platform_instance` of a single-package platform."""

    def member(suffix: str, value: bytes) -> bytes:
        return der.sequence(der.oid(f"{_SGX}.{suffix}"), value)

    tcb = der.sequence(
        *(member(f"2.{i + 1}", der.integer(svn)) for i, svn in enumerate(cpu_svn)),
        member("2.17", der.integer(pce_svn)),
        member("2.18", der.octets(cpu_svn)),
    )
    flags = der.sequence(*(member(f"7.{i}", der.boolean_true()) for i in (1, 2, 3)))
    return der.sequence(
        member("1", der.octets(hashlib.sha256(b"simulated ppid").digest()[:16])),
        member("2", tcb),
        member("3", der.octets(bytes.fromhex(pce_id))),
        member("4", der.octets(bytes.fromhex(fmspc))),
        member("5", der.tlv(0x0A, b"\x01")),
        *([] if platform_instance is None else [member("6", der.octets(platform_instance))]),
        member("7", flags),
    )


def mint_crl(issuer: str, *, revoked: tuple[int, ...] = (), start: datetime = START, end: datetime = END) -> bytes:
    """Revocation list of `root` or of a PCK CA, DER."""
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(_name(issuer))
        .last_update(start)
        .next_update(end)
        .add_extension(x509.CRLNumber(1), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(derive_key(issuer).public_key()), critical=False
        )
    )
    for serial in revoked:
        builder = builder.add_revoked_certificate(
            x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(start).build()
        )
    return builder.sign(derive_key(issuer), _SHA256).public_bytes(Encoding.DER)


def pem(*certificates: x509.Certificate) -> str:
    """Concatenated PEM."""
    return "".join(one.public_bytes(Encoding.PEM).decode() for one in certificates)


ROOT_SERIAL, CA_SERIAL, TCB_SERIAL, PCK_SERIAL = 1, 2, 3, 4


def root() -> x509.Certificate:
    """The simulated root."""
    return certificate("root", "root", serial=ROOT_SERIAL)


def simulated_intel_trust() -> IntelTrust:
    """The pin of the simulated root."""
    return IntelTrust(root_sha256=hashlib.sha256(root().public_bytes(Encoding.DER)).hexdigest(), simulated=True)


def _components(svns: bytes) -> list[dict[str, int]]:
    return [{"svn": svn} for svn in svns]


def tcb_level(
    status: str, *, cpu: bytes = CPU_SVN, pce: int = PCE_SVN, tdx: bytes = TDX_SVN, date: str = "2025-05-14T00:00:00Z"
) -> dict[str, Any]:
    """One level of TCB info."""
    tcb = {"sgxtcbcomponents": _components(cpu), "pcesvn": pce, "tdxtcbcomponents": _components(tdx)}
    return {"tcb": tcb, "tcbDate": date, "tcbStatus": status}


def qe_level(isvsvn: int, status: str = "UpToDate") -> dict[str, Any]:
    """One level of the QE identity or of a module identity."""
    return {"tcb": {"isvsvn": isvsvn}, "tcbDate": "2025-05-14T00:00:00Z", "tcbStatus": status}


def _dates(start: datetime, end: datetime) -> dict[str, str]:
    layout = "%Y-%m-%dT%H:%M:%SZ"
    return {"issueDate": start.strftime(layout), "nextUpdate": end.strftime(layout)}


@dataclass(frozen=True, kw_only=True)
class CollateralForm:
    """Everything that goes into a set of collateral. `info` and `identity` replace members before signing."""

    info: Mapping[str, Any] = field(default_factory=dict)
    identity: Mapping[str, Any] = field(default_factory=dict)
    ca: str = "platform"
    start: datetime = START
    end: datetime = END
    root_crl: bytes | None = None
    pck_crl: bytes | None = None
    spaces: bool = False  # sign another spelling than the one that is sent

    @cached_property
    def tcb_info(self) -> dict[str, Any]:
        """TCB info as it will be signed."""
        zeros = {"mrsigner": "00" * 48, "attributes": "00" * 8, "attributesMask": "FF" * 8}
        return {
            "id": "TDX",
            "version": 3,
            **_dates(self.start, self.end),
            "fmspc": FMSPC,
            "pceId": PCE_ID,
            "tcbType": 0,
            "tcbEvaluationDataNumber": 18,
            "tdxModule": zeros,
            "tdxModuleIdentities": [{"id": "TDX_01", **zeros, "tcbLevels": [qe_level(4), qe_level(2, "OutOfDate")]}],
            "tcbLevels": [tcb_level("UpToDate"), tcb_level("OutOfDate", pce=11), tcb_level("Revoked", pce=5)],
            **self.info,
        }

    @cached_property
    def qe_identity(self) -> dict[str, Any]:
        """QE identity as it will be signed."""
        return {
            "id": "TD_QE",
            "version": 2,
            **_dates(self.start, self.end),
            "tcbEvaluationDataNumber": 18,
            "miscselect": "00000000",
            "miscselectMask": "FFFFFFFF",
            "attributes": "11000000000000000000000000000000",
            "attributesMask": "FBFFFFFFFFFFFFFF0000000000000000",
            "mrsigner": QE_MRSIGNER.hex().upper(),
            "isvprodid": 2,
            "tcbLevels": [qe_level(4), qe_level(2, "OutOfDate")],
            **self.identity,
        }

    def members(self) -> dict[str, str]:
        """The nine members, signed."""
        signer = pem(certificate("tcb", "root", serial=TCB_SERIAL), root())
        out: dict[str, str] = {
            "pck_crl_issuer_chain": pem(certificate(self.ca, "root", serial=CA_SERIAL), root()),
            "root_ca_crl": (self.root_crl or mint_crl("root", start=self.start, end=self.end)).hex(),
            "pck_crl": (self.pck_crl or mint_crl(self.ca, start=self.start, end=self.end)).hex(),
        }
        for name, body in (("tcb_info", self.tcb_info), ("qe_identity", self.qe_identity)):
            text = json.dumps(body, separators=(",", ":"))
            out[name] = json.dumps(body) if self.spaces else text
            out[f"{name}_signature"] = sign_raw(derive_key("tcb"), text.encode()).hex()
            out[f"{name}_issuer_chain"] = signer
        return out

    def render(self) -> bytes:
        """The stored form."""
        return json.dumps(self.members()).encode()
