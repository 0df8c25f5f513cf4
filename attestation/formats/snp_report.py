"""SEV-SNP attestation report: 1184 bytes, versions 2 to 5 (tee.md 1.1, AMD 56860 table 23).

Reserved bytes are not judged here: firmware may only be believed after its signature, so `reserved_nonzero` is a
question that the verifier asks afterwards.
"""

from dataclasses import dataclass

from attestation.errors import Malformed
from attestation.formats.reader import Reader

REPORT_BYTES = 0x4A0
SIGNED_BYTES = 0x2A0
SCALAR_BYTES = 72  # R and S, little endian
VERSIONS = (2, 3, 4, 5)  # 1 never shipped; later versions may give reserved bytes a meaning
CPUID_SINCE = 3
MITIGATION_SINCE = 5
_POLICY_DEFINED = (1 << 26) - 1
_KEY_INFO_DEFINED = 0x1F


@dataclass(frozen=True, slots=True, order=True)
class Firmware:
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
    r = Reader(raw, "snp")
    version = r.u32le("version")
    if version not in VERSIONS:
        raise Malformed("snp-version", "unknown report version", where="snp.version", expected=VERSIONS, got=version)
    report = SnpReport(
        signed=raw[:SIGNED_BYTES],
        version=version,
        guest_svn=r.u32le("guest_svn"),
        policy=r.u64le("policy"),
        family_id=r.take(16, "family_id"),
        image_id=r.take(16, "image_id"),
        vmpl=r.u32le("vmpl"),
        signature_algo=r.u32le("signature_algo"),
        current_tcb=r.take(8, "current_tcb"),
        platform_info=r.u64le("platform_info"),
        key_info=r.u32le("key_info"),
        report_data=_skip(r, 4).take(64, "report_data"),
        measurement=r.take(48, "measurement"),
        host_data=r.take(32, "host_data"),
        id_key_digest=r.take(48, "id_key_digest"),
        author_key_digest=r.take(48, "author_key_digest"),
        report_id=r.take(32, "report_id"),
        report_id_ma=r.take(32, "report_id_ma"),
        reported_tcb=r.take(8, "reported_tcb"),
        cpuid=_cpuid(r, version),
        chip_id=r.take(64, "chip_id"),
        committed_tcb=r.take(8, "committed_tcb"),
        current=_firmware(r, "current"),
        committed=_firmware(r, "committed"),
        launch_tcb=r.take(8, "launch_tcb"),
        launch_mit_vector=_mitigations(r, version, "launch_mit_vector"),
        current_mit_vector=_mitigations(r, version, "current_mit_vector"),
        signature_r=_scalar(_skip(r, SIGNED_BYTES - r.position), "signature.r"),
        signature_s=_scalar(r, "signature.s"),
    )
    r.zeros(r.remaining, "signature.padding")
    return report


def _skip(r: Reader, size: int) -> Reader:
    r.take(size, "reserved")
    return r


def _cpuid(r: Reader, version: int) -> tuple[int, int, int] | None:
    raw = r.take(24, "cpuid")
    return (raw[0], raw[1], raw[2]) if version >= CPUID_SINCE else None


def _firmware(r: Reader, field: str) -> Firmware:
    raw = r.take(4, field)
    return Firmware(raw[2], raw[1], raw[0])


def _mitigations(r: Reader, version: int, field: str) -> int | None:
    vector = r.u64le(field)
    return vector if version >= MITIGATION_SINCE else None


def _scalar(r: Reader, field: str) -> int:
    return int.from_bytes(r.take(SCALAR_BYTES, field), "little")
