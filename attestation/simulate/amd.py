"""Simulated AMD chips that mint byte-exact SNP reports, leaves and evidence.

Every value may be replaced before it is signed, so that a negative test changes one thing in otherwise valid evidence.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import lru_cache

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from attestation.formats.snp_evidence import CertKind, SnpEvidence, render_snp_evidence
from attestation.formats.snp_report import CPUID_SINCE, MITIGATION_SINCE, SCALAR_BYTES
from attestation.formats.snp_tcb import Product, Tcb, render_tcb
from attestation.simulate import der
from attestation.simulate.amd_pki import CertificateForm, ca_keys, simulated_amd_collateral, simulated_amd_trust
from attestation.simulate.pki import spki
from attestation.verify.snp_trust import LeafKind

__all__ = ["ReportFields", "SimulatedChip", "mint_report", "simulated_amd_collateral", "simulated_amd_trust"]

LEAF_START = datetime(2026, 2, 5, tzinfo=UTC)
LEAF_LIFE: Mapping[LeafKind, timedelta] = {
    LeafKind.VCEK: timedelta(days=7 * 365),
    LeafKind.VLEK: timedelta(days=365),
}
MEASUREMENT = hashlib.sha384(b"simulated guest").digest()
CSP_ID = "CN=simulated.example"
_ARC = "1.3.6.1.4.1.3704.1"
_SPL = {"fmc": "3.9", "bootloader": "3.1", "tee": "3.2", "snp": "3.3", "microcode": "3.8"}
_CPUID = {Product.MILAN: (0x19, 0x01, 1), Product.GENOA: (0x19, 0x11, 1), Product.TURIN: (0x1A, 0x02, 1)}
_TCB = {  # components that are all different, so that no two can be confused
    Product.MILAN: Tcb(bootloader=4, tee=1, snp=24, microcode=219),
    Product.GENOA: Tcb(bootloader=10, tee=2, snp=23, microcode=84),
    Product.TURIN: Tcb(fmc=1, bootloader=2, tee=3, snp=4, microcode=81),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedChip:
    """One chip: everything about it follows from product, kind and seed."""

    product: Product = Product.GENOA
    kind: LeafKind = LeafKind.VCEK
    seed: str = "chip-0"
    tcb: Tcb | None = None

    @property
    def chip_id(self) -> bytes:
        """CHIP_ID as in the report: 64 bytes; zero for VLEK."""
        if self.kind is LeafKind.VLEK:
            return bytes(64)
        return hashlib.sha512(self.seed.encode()).digest()[: self.product.chip_id_bytes].ljust(64, b"\0")

    @property
    def reported_tcb(self) -> Tcb:
        """TCB that keys the leaf."""
        return self.tcb or _TCB[self.product]

    @property
    def key(self) -> ec.EllipticCurvePrivateKey:
        """The chip's signing key."""
        label = f"simulated {self.kind} {self.product} {self.seed} {self.reported_tcb}"
        return ec.derive_private_key(
            int.from_bytes(hashlib.sha384(label.encode()).digest(), "big") >> 8, ec.SECP384R1()
        )

    def leaf_form(self) -> CertificateForm:
        """The VCEK or VLEK before it is signed."""
        vlek = self.kind is LeafKind.VLEK
        extensions = [
            (f"{_ARC}.1", der.integer(int(self.product.has_fmc)), False),
            (f"{_ARC}.2", der.ia5(self.product), False),
            *(
                (f"{_ARC}.{_SPL[name]}", der.integer(number), False)
                for name, number in self.reported_tcb.components().items()
            ),
            *((f"{_ARC}.3.{n}", der.integer(0), False) for n in range(5 if self.product.has_fmc else 4, 8)),
            (f"{_ARC}.5", der.ia5(CSP_ID), False)
            if vlek
            else (f"{_ARC}.4", self.chip_id[: self.product.chip_id_bytes], False),
        ]
        return CertificateForm(
            issuer=f"SEV-VLEK-{self.product}" if vlek else f"SEV-{self.product}",
            subject=f"SEV-{self.kind.upper()}",
            serial=0,
            not_before=LEAF_START,
            not_after=LEAF_START + LEAF_LIFE[self.kind],
            spki=spki(self.key),
            extensions=tuple(extensions),
            signer=ca_keys()["asvk" if vlek else "ask"],
        )

    def fields(self) -> "ReportFields":
        """A good report of this chip, to be changed with `dataclasses.replace` before `mint_report`."""
        tcb = render_tcb(self.reported_tcb)
        return ReportFields(
            version=5 if self.product.has_fmc else 3,
            cpuid=_CPUID[self.product],
            key_info=4 if self.kind is LeafKind.VLEK else 0,
            chip_id=self.chip_id,
            reported_tcb=tcb,
            current_tcb=tcb,
            committed_tcb=tcb,
            launch_tcb=tcb,
        )

    def evidence(self, fields: "ReportFields | None" = None, *, leaf: bytes | None = None) -> SnpEvidence:
        """Report and leaf as the verifier takes them."""
        report = mint_report(fields or self.fields(), self.key)
        return SnpEvidence(report=report, certificates={CertKind[self.kind.name]: leaf or _leaf(self)})

    def evidence_json(self, fields: "ReportFields | None" = None) -> str:
        """The stock attester's JSON of the same."""
        evidence = self.evidence(fields)
        return render_snp_evidence(evidence.report, evidence.certificates)


@lru_cache(maxsize=64)
def _leaf(chip: SimulatedChip) -> bytes:
    return chip.leaf_form().sign()


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportFields:
    """What goes into a report; `patches` overwrite signed bytes at offsets, for what no field can express."""

    version: int
    chip_id: bytes
    reported_tcb: bytes
    current_tcb: bytes
    committed_tcb: bytes
    launch_tcb: bytes
    guest_svn: int = 0
    policy: int = 0x30000
    family_id: bytes = bytes(16)
    image_id: bytes = bytes(16)
    vmpl: int = 0
    signature_algo: int = 1
    platform_info: int = 0x25
    key_info: int = 0
    report_data: bytes = bytes(64)
    measurement: bytes = MEASUREMENT
    host_data: bytes = bytes(32)
    id_key_digest: bytes = bytes(48)
    author_key_digest: bytes = bytes(48)
    report_id: bytes = hashlib.sha256(b"simulated report id").digest()
    report_id_ma: bytes = b"\xff" * 32
    cpuid: tuple[int, int, int] = (0, 0, 0)
    current: tuple[int, int, int] = (1, 55, 40)
    committed: tuple[int, int, int] = (1, 55, 40)
    launch_mit_vector: int = 0x3F
    current_mit_vector: int = 0x3F
    patches: Mapping[int, bytes] = field(default_factory=dict)

    def with_(self, **changes: object) -> "ReportFields":
        """The same with some fields changed."""
        return replace(self, **changes)  # type: ignore[arg-type]

    def signed_bytes(self) -> bytes:
        """The first 0x2A0 bytes of the report (tee.md 1.1)."""
        mitigations = self.version >= MITIGATION_SINCE
        signed = bytearray(
            b"".join(
                [
                    self.version.to_bytes(4, "little"),
                    self.guest_svn.to_bytes(4, "little"),
                    self.policy.to_bytes(8, "little"),
                    self.family_id,
                    self.image_id,
                    self.vmpl.to_bytes(4, "little"),
                    self.signature_algo.to_bytes(4, "little"),
                    self.current_tcb,
                    self.platform_info.to_bytes(8, "little"),
                    self.key_info.to_bytes(4, "little") + bytes(4),
                    self.report_data,
                    self.measurement,
                    self.host_data,
                    self.id_key_digest,
                    self.author_key_digest,
                    self.report_id,
                    self.report_id_ma,
                    self.reported_tcb,
                    (bytes(self.cpuid) if self.version >= CPUID_SINCE else b"").ljust(24, b"\0"),
                    self.chip_id,
                    self.committed_tcb,
                    bytes(reversed(self.current)) + b"\0",
                    bytes(reversed(self.committed)) + b"\0",
                    self.launch_tcb,
                    (self.launch_mit_vector if mitigations else 0).to_bytes(8, "little"),
                    (self.current_mit_vector if mitigations else 0).to_bytes(8, "little"),
                    bytes(152),
                ]
            )
        )
        for offset, patch in self.patches.items():
            signed[offset : offset + len(patch)] = patch
        return bytes(signed)


def mint_report(fields: ReportFields, key: ec.EllipticCurvePrivateKey) -> bytes:
    """The 1184 bytes of a report, signed."""
    signed = fields.signed_bytes()
    r, s = decode_dss_signature(key.sign(signed, ec.ECDSA(hashes.SHA384())))
    scalars = r.to_bytes(SCALAR_BYTES, "little") + s.to_bytes(SCALAR_BYTES, "little")
    return signed + scalars + bytes(512 - len(scalars))
