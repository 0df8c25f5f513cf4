"""SEV-SNP attestation report: 1184 bytes, versions 2 to 5 (tee.md 1.1, AMD 56860 table 23).

Reserved bytes are not judged here: firmware may only be believed after its signature, so `reserved_nonzero` is a
question that the verifier asks afterwards.
"""

import struct
from dataclasses import dataclass
from typing import NamedTuple

from attestation.errors import Malformed

REPORT_BYTES = 0x4A0
SIGNED_BYTES = 0x2A0
SCALAR_BYTES = 72  # R and S, little endian
VERSIONS = (2, 3, 4, 5)  # 1 never shipped; later versions may give reserved bytes a meaning
CPUID_SINCE = 3
MITIGATION_SINCE = 5
_POLICY_DEFINED = (1 << 26) - 1
_KEY_INFO_DEFINED = 0x1F
# What is signed, table 23 from top to bottom: `x` is reserved, the last range up to SIGNED_BYTES. 3s before 21 reserved
# bytes is the CPUID, the two that end in a reserved byte are firmware versions.
LAYOUT = struct.Struct("<IIQ16s16sII8sQI4x64s48s32s48s48s32s32s8s3s21x64s8s3sx3sx8sQQ152x")
_S_OFFSET = SIGNED_BYTES + SCALAR_BYTES
_REPORT_DATA, _MEASUREMENT, _REPORT_ID, _REPORT_ID_MA = 0x50, 0x90, 0x140, 0x160
_SIGNATURE_PADDING = bytes(REPORT_BYTES - SIGNED_BYTES - 2 * SCALAR_BYTES)


class Firmware(NamedTuple):
    """Version of the SEV firmware; in the report the three bytes come in reverse order."""

    major: int
    minor: int
    build: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.build}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SnpReport:
    """A report as fields; `signed` is the slice that the signature covers. TCB fields stay raw: see `snp_tcb`."""

    signed: bytes
    version: int
    guest_svn: int
    policy: int
    family_id: bytes
    image_id: bytes
    vmpl: int
    signature_algo: int
    current_tcb: bytes
    platform_info: int
    key_info: int
    report_data: bytes
    measurement: bytes
    host_data: bytes
    id_key_digest: bytes
    author_key_digest: bytes
    report_id: bytes
    report_id_ma: bytes
    reported_tcb: bytes
    cpuid: tuple[int, int, int] | None  # family, model, stepping; version 3 and later
    chip_id: bytes
    committed_tcb: bytes
    current: Firmware
    committed: Firmware
    launch_tcb: bytes
    launch_mit_vector: int | None  # version 5 and later
    current_mit_vector: int | None
    signature_r: int
    signature_s: int

    @property
    def launch(self) -> tuple[bytes, bytes, bytes]:
        """All that is signed except REPORT_DATA and REPORT_ID: the same whenever this guest attests on this chip."""
        return self.signed[:_REPORT_DATA], self.signed[_MEASUREMENT:_REPORT_ID], self.signed[_REPORT_ID_MA:]

    @property
    def signing_key(self) -> int:
        """SIGNING_KEY of KEY_INFO: 0 VCEK, 1 VLEK, 7 none, others reserved."""
        return self.key_info >> 2 & 0b111

    @property
    def author_key_enabled(self) -> bool:
        """AUTHOR_KEY_EN of KEY_INFO."""
        return bool(self.key_info & 1)

    def policy_bit(self, bit: int) -> bool:
        """One bit of the guest policy."""
        return bool(self.policy >> bit & 1)

    def platform_bit(self, bit: int) -> bool:
        """One bit of PLATFORM_INFO."""
        return bool(self.platform_info >> bit & 1)

    def reserved_nonzero(self) -> tuple[str, ...]:
        """Reserved ranges of this version that are not zero. PLATFORM_INFO is left out: bit 6 is set in the field."""
        ranges = [(0x4C, 0x50), (0x1EB, 0x1EC), (0x1EF, 0x1F0), (0x208, SIGNED_BYTES)]
        ranges.append((0x188 if self.version < CPUID_SINCE else 0x18B, 0x1A0))
        if self.version < MITIGATION_SINCE:
            ranges.append((0x1F8, 0x208))
        names = [f"{start:#05x}" for start, end in sorted(ranges) if any(self.signed[start:end])]
        if self.policy & ~_POLICY_DEFINED:
            names.append("policy")
        if self.key_info & ~_KEY_INFO_DEFINED:
            names.append("key_info")
        return tuple(names)


def parse_snp_report(raw: bytes) -> SnpReport:
    """Exactly 1184 bytes of a known version. Raises Malformed."""
    if len(raw) != REPORT_BYTES:
        raise Malformed("snp-length", "wrong report length", where="snp", expected=REPORT_BYTES, got=len(raw))
    (
        version, guest_svn, policy, family_id, image_id, vmpl, signature_algo, current_tcb, platform_info, key_info,
        report_data, measurement, host_data, id_key_digest, author_key_digest, report_id, report_id_ma, reported_tcb,
        cpuid, chip_id, committed_tcb, current, committed, launch_tcb, launch_mit_vector, current_mit_vector,
    ) = LAYOUT.unpack_from(raw)  # fmt: skip
    if version not in VERSIONS:
        raise Malformed("snp-version", "unknown report version", where="snp.version", expected=VERSIONS, got=version)
    if not raw.endswith(_SIGNATURE_PADDING):
        raise Malformed("reserved", "reserved bytes are not zero", where="snp.signature.padding", expected="zeros")
    mitigations = version >= MITIGATION_SINCE
    return SnpReport(
        signed=raw[:SIGNED_BYTES],
        version=version,
        guest_svn=guest_svn,
        policy=policy,
        family_id=family_id,
        image_id=image_id,
        vmpl=vmpl,
        signature_algo=signature_algo,
        current_tcb=current_tcb,
        platform_info=platform_info,
        key_info=key_info,
        report_data=report_data,
        measurement=measurement,
        host_data=host_data,
        id_key_digest=id_key_digest,
        author_key_digest=author_key_digest,
        report_id=report_id,
        report_id_ma=report_id_ma,
        reported_tcb=reported_tcb,
        cpuid=(cpuid[0], cpuid[1], cpuid[2]) if version >= CPUID_SINCE else None,
        chip_id=chip_id,
        committed_tcb=committed_tcb,
        current=Firmware(*current[::-1]),
        committed=Firmware(*committed[::-1]),
        launch_tcb=launch_tcb,
        launch_mit_vector=launch_mit_vector if mitigations else None,
        current_mit_vector=current_mit_vector if mitigations else None,
        signature_r=int.from_bytes(raw[SIGNED_BYTES:_S_OFFSET], "little"),
        signature_s=int.from_bytes(raw[_S_OFFSET : _S_OFFSET + SCALAR_BYTES], "little"),
    )
