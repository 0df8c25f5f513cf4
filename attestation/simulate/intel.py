"""Simulated TDX platforms that mint byte-exact quotes, versions 4 and 5, for the simulated Intel authority.

Every value may be replaced before it is signed, so that a negative test changes one thing in otherwise valid evidence.
"""

import hashlib
import json
from base64 import b64encode
from dataclasses import dataclass, replace

from cryptography.hazmat.primitives.asymmetric import ec

from attestation.formats.tdx_quote import ECDSA_P256, INTEL_QE_VENDOR, TD_15, TEE_TDX
from attestation.simulate.intel_pki import (
    CA_SERIAL,
    PCK_SERIAL,
    QE_MRSIGNER,
    TDX_SVN,
    CollateralForm,
    certificate,
    derive_key,
    pem,
    root,
    sgx_extension,
    sign_raw,
    simulated_intel_trust,
)
from attestation.verify.tdx_trust import StaticIntelCollateral

__all__ = ["CollateralForm", "QuoteForm", "simulated_intel_collateral", "simulated_intel_trust"]

MR_TD = hashlib.sha384(b"simulated td firmware").digest()
_QE_ATTRIBUTES = bytes.fromhex("1500000000000000e700000000000000")


def simulated_intel_collateral() -> StaticIntelCollateral:
    """Collateral of the simulated platform, valid for twenty years."""
    return StaticIntelCollateral(documents=(CollateralForm().render(),))


@dataclass(frozen=True, slots=True, kw_only=True)
class QuoteForm:
    """Everything that goes into a quote; `sign` makes it. Replace any member to make a wrong one."""

    version: int = 4
    body_type: int | None = None  # version 5: defaults to TD 1.5
    body_size: int | None = None
    key_type: int = ECDSA_P256
    tee_type: int = TEE_TDX
    vendor: bytes = INTEL_QE_VENDOR
    tee_tcb_svn: bytes = TDX_SVN
    mr_seam: bytes = hashlib.sha384(b"simulated module").digest()
    mrsigner_seam: bytes = bytes(48)
    seam_attributes: bytes = bytes(8)
    td_attributes: int = 1 << 28
    xfam: int = 0x602E7
    mr_td: bytes = MR_TD
    mr_config_id: bytes = bytes(48)
    mr_owner: bytes = bytes(48)
    mr_owner_config: bytes = bytes(48)
    rtmrs: tuple[bytes, bytes, bytes, bytes] = (bytes(48), bytes(48), bytes(48), bytes(48))
    report_data: bytes = bytes(64)
    tee_tcb_svn2: bytes = TDX_SVN
    mr_service_td: bytes = bytes(48)
    qe_mrsigner: bytes = QE_MRSIGNER
    qe_prod_id: int = 2
    qe_svn: int = 6
    qe_attributes: bytes = _QE_ATTRIBUTES
    qe_auth: bytes = bytes(range(32))
    qe_report_data: bytes | None = None
    certification_type: int = 5
    chain: str | None = None
    sgx: bytes | None = None
    ca: str = "platform"

    def with_(self, **changes: object) -> "QuoteForm":
        """The same with some members changed."""
        return replace(self, **changes)  # type: ignore[arg-type]

    @property
    def key(self) -> ec.EllipticCurvePrivateKey:
        """The attestation key."""
        return derive_key("attestation key")

    def signed_bytes(self) -> bytes:
        """Header, body descriptor of version 5, body."""
        header = b"".join(
            [
                self.version.to_bytes(2, "little"),
                self.key_type.to_bytes(2, "little"),
                self.tee_type.to_bytes(4, "little"),
                bytes(4),
                self.vendor,
                bytes(20),
            ]
        )
        kind = TD_15 if self.body_type is None else self.body_type
        body = b"".join(
            [
                self.tee_tcb_svn,
                self.mr_seam,
                self.mrsigner_seam,
                self.seam_attributes,
                self.td_attributes.to_bytes(8, "little"),
                self.xfam.to_bytes(8, "little"),
                self.mr_td,
                self.mr_config_id,
                self.mr_owner,
                self.mr_owner_config,
                *self.rtmrs,
                self.report_data,
            ]
        )
        if self.version != 5:
            return header + body
        if kind == TD_15:
            body += self.tee_tcb_svn2 + self.mr_service_td
        size = len(body) if self.body_size is None else self.body_size
        return header + kind.to_bytes(2, "little") + size.to_bytes(4, "little") + body

    def sign(self) -> bytes:
        """The quote."""
        signed, numbers = self.signed_bytes(), self.key.public_key().public_numbers()
        public = numbers.x.to_bytes(32, "big") + numbers.y.to_bytes(32, "big")
        bound = hashlib.sha256(public + self.qe_auth).digest() + bytes(32)
        qe_report = b"".join(
            [
                bytes(16 + 4 + 28),
                self.qe_attributes,
                bytes(64),
                self.qe_mrsigner,
                bytes(96),
                self.qe_prod_id.to_bytes(2, "little"),
                self.qe_svn.to_bytes(2, "little"),
                bytes(60),
                self.qe_report_data or bound,
            ]
        )
        chain = (self.pck_chain() if self.chain is None else self.chain).encode() + b"\0"
        certification = b"".join(
            [
                qe_report,
                sign_raw(derive_key("pck"), qe_report),
                len(self.qe_auth).to_bytes(2, "little") + self.qe_auth,
                self.certification_type.to_bytes(2, "little") + len(chain).to_bytes(4, "little") + chain,
            ]
        )
        data = sign_raw(self.key, signed) + public + b"\6\0" + len(certification).to_bytes(4, "little") + certification
        return signed + len(data).to_bytes(4, "little") + data

    def pck_chain(self) -> str:
        """Leaf, PCK CA and root, PEM."""
        leaf = certificate("pck", self.ca, serial=PCK_SERIAL, sgx=self.sgx or sgx_extension())
        return pem(leaf, certificate(self.ca, "root", serial=CA_SERIAL), root())

    def evidence_json(self, event_log: bytes | None = None) -> str:
        """The stock attester's JSON."""
        log = None if event_log is None else b64encode(event_log).decode()
        return json.dumps({"cc_eventlog": log, "quote": b64encode(self.sign()).decode()})
