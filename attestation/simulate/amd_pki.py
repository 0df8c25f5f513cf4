"""A synthetic AMD authority: ARK, ASK and ASVK of every product, certificates as forms, and revocation lists.

Its roots are in nobody's pins; `simulated_amd_trust` names them, and only for tests and dangerous flags.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from importlib import resources

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from attestation.formats.snp_tcb import Product
from attestation.simulate import der
from attestation.simulate.pki import spki
from attestation.verify.snp_trust import AmdTrust, StaticAmdCollateral

ORGANIZATION = "Simulated AMD (no chip has these keys)"
CA_START, CA_END = datetime(2023, 5, 15, tzinfo=UTC), datetime(2048, 5, 15, tzinfo=UTC)
PSS_SHA384 = bytes.fromhex(
    "304106092a864886f70d01010a3034a00f300d06096086480165030402020500"
    "a11c301a06092a864886f70d010108300d06096086480165030402020500a203020130"
)
_CA_SERIALS = {"ark": 0x00, "ask": 0x01, "asvk": 0x101}
_PRODUCT_SERIALS = {Product.MILAN: 0x10000, Product.GENOA: 0x20000, Product.TURIN: 0x30000}
_PADDING = padding.PSS(padding.MGF1(hashes.SHA384()), 48)


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateForm:
    """Everything that goes into one certificate; `sign` makes it. Replace any member to make a wrong one."""

    issuer: str
    subject: str
    serial: int
    not_before: datetime
    not_after: datetime
    spki: bytes
    extensions: tuple[tuple[str, bytes, bool], ...]  # identifier, value, critical
    signer: rsa.RSAPrivateKey
    algorithm: bytes = PSS_SHA384
    inner_algorithm: bytes = PSS_SHA384
    salt: int = 48
    digest: type[hashes.SHA384 | hashes.SHA256] = hashes.SHA384

    def sign(self) -> bytes:
        """DER of the certificate."""
        tbs = der.sequence(
            bytes.fromhex("a003020102"),
            der.integer(self.serial),
            self.inner_algorithm,
            der.name(self.issuer, ORGANIZATION),
            der.sequence(der.time(self.not_before), der.time(self.not_after)),
            der.name(self.subject, ORGANIZATION),
            self.spki,
            der.tlv(0xA3, der.sequence(*(der.extension(o, v, critical=c) for o, v, c in self.extensions))),
        )
        digest = self.digest()
        signature = self.signer.sign(tbs, padding.PSS(padding.MGF1(digest), self.salt), digest)
        return der.sequence(tbs, self.algorithm, der.bits(signature))


@lru_cache(maxsize=1)
def ca_keys() -> Mapping[str, rsa.RSAPrivateKey]:
    """The published keys of `ark`, `ask` and `asvk`; RSA-4096 takes seconds to generate, so they are package data."""
    text = (resources.files("attestation.simulate") / "data" / "simulated_amd_keys.pem").read_text()
    end = "-----END PRIVATE KEY-----\n"
    found: dict[str, rsa.RSAPrivateKey] = {}
    for name, block in zip(("ark", "ask", "asvk"), text.split(end), strict=False):
        key = load_pem_private_key((block + end).encode(), None, unsafe_skip_rsa_key_validation=True)
        assert isinstance(key, rsa.RSAPrivateKey)
        found[name] = key
    return found


def ca_form(product: Product, role: str) -> CertificateForm:
    """`ark`, `ask` or `asvk` of a product."""
    subjects = {"ark": f"ARK-{product}", "ask": f"SEV-{product}", "asvk": f"SEV-VLEK-{product}"}
    constraints = der.sequence(der.boolean_true(), b"" if role == "ark" else der.integer(0))
    return CertificateForm(
        issuer=subjects["ark"],
        subject=subjects[role],
        serial=_PRODUCT_SERIALS[product] + _CA_SERIALS[role],
        not_before=CA_START,
        not_after=CA_END,
        spki=spki(ca_keys()[role]),
        extensions=(("2.5.29.15", der.bits(b"\x04", 2), True), ("2.5.29.19", constraints, True)),
        signer=ca_keys()["ark"],
    )


@lru_cache(maxsize=3)
def authorities(product: Product) -> tuple[bytes, bytes, bytes]:
    """ARK, ASK and ASVK, DER."""
    ark, ask, asvk = (ca_form(product, role).sign() for role in ("ark", "ask", "asvk"))
    return ark, ask, asvk


def simulated_amd_trust() -> AmdTrust:
    """Pins of the simulated roots. Only for tests and behind --unsafe-trust-simulated-roots."""
    pin = hashlib.sha256(spki(ca_keys()["ark"])).hexdigest()
    return AmdTrust(ark_keys=dict.fromkeys(Product, pin), simulated=True)


def simulated_amd_collateral() -> StaticAmdCollateral:
    """Every simulated authority, and nothing else: leaves travel with the evidence."""
    return StaticAmdCollateral(chain=[der_ for product in Product for der_ in authorities(product)])


def mint_crl(
    product: Product,
    *,
    revoked: tuple[int, ...] = (),
    this_update: datetime,
    next_update: datetime,
    signer: str = "ark",
    issuer: str | None = None,
) -> bytes:
    """AMD-shaped revocation list of CA serial numbers."""
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(_x509_name(issuer or f"ARK-{product}"))
        .last_update(this_update)
        .next_update(next_update)
    )
    for serial in revoked:
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(this_update).build()
        builder = builder.add_revoked_certificate(entry)
    return builder.sign(ca_keys()[signer], hashes.SHA384(), rsa_padding=_PADDING).public_bytes(Encoding.DER)


def _x509_name(common_name: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, ORGANIZATION),
            x509.NameAttribute(x509.NameOID.COMMON_NAME, common_name),
        ]
    )
