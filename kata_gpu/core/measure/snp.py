"""SEV-SNP launch digest of a directly booted kernel (SNP ABI specification, SNP_LAUNCH_UPDATE, PAGE_INFO).

The digest is a chain: each page adds type, address and content. Order: firmware, metadata sections, then one page of
registers for each vCPU. So a policy that allows 1 to N vCPUs needs N reference values.
"""

import hashlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from uuid import UUID

from kata_gpu.core.measure.ovmf import PAGE, Ovmf, SevSectionType
from kata_gpu.core.measure.vmsa import BSP_EIP, SNP_ACTIVE, render_vmsa
from kata_gpu.errors import Malformed, Misconfigured

MAX_VCPUS = 512  # KVM_MAX_VCPUS of x86 hosts in the field
_VMSA_GPA = 0xFFFFFFFFF000  # SNP ABI: where KVM says that the register page lies
_PAGE_INFO_BYTES = 0x70
_ZEROS = bytes(48)
_HASH_TABLE = UUID("9438d606-4f22-4cc9-b479-a793d411fd21")
_HASH_CMDLINE = UUID("97d02dd8-bd20-4c94-aa78-e7714d36ab2a")
_HASH_INITRD = UUID("44baf731-3a2f-4bd7-9af1-41e29169781d")
_HASH_KERNEL = UUID("4de79437-abd2-427f-b835-d5b172d2045b")


class _PageType(IntEnum):
    NORMAL = 1
    VMSA = 2
    ZERO = 3
    SECRETS = 5
    CPUID = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Boot:
    """What QEMU boots directly. SHA-256 digests of kernel and initrd; the command line as QEMU gets it."""

    kernel_sha256: bytes
    initrd_sha256: bytes  # of the empty string where there is no initrd
    cmdline: str

    @property
    def hash_table(self) -> bytes:
        """The hash table that QEMU puts into guest memory (target/i386 `sev_add_kernel_loader_hashes`)."""
        digests = (
            (_HASH_CMDLINE, hashlib.sha256(self.cmdline.encode() + b"\0").digest()),
            (_HASH_INITRD, self.initrd_sha256),
            (_HASH_KERNEL, self.kernel_sha256),
        )
        entries = b"".join(g.bytes_le + struct.pack("<H", 16 + 2 + len(d)) + d for g, d in digests)
        table = _HASH_TABLE.bytes_le + struct.pack("<H", 16 + 2 + len(entries)) + entries
        return table + bytes(-len(table) % 16)


def launch_digests(
    ovmf: Ovmf, boot: Boot | None, *, vcpus: int, signature: int, sev_features: int = SNP_ACTIVE
) -> Iterator[tuple[int, bytes]]:
    """(number of vCPUs, 48-byte MEASUREMENT) for 1 to `vcpus`, in order. `boot` is None where nothing is hashed.

    Raises Malformed for a firmware without SEV metadata and Misconfigured for an impossible number of vCPUs.
    """
    if not 1 <= vcpus <= MAX_VCPUS:
        raise Misconfigured("vcpus", "impossible number of vCPUs", expected=f"1 to {MAX_VCPUS}", got=vcpus)
    digest = _ZEROS
    for offset in range(0, len(ovmf.image), PAGE):
        content = hashlib.sha384(ovmf.image[offset : offset + PAGE]).digest()
        digest = _extend(digest, _PageType.NORMAL, ovmf.gpa + offset, content)
    digest = _sections(digest, ovmf, boot)
    for n in range(1, vcpus + 1):
        eip = BSP_EIP if n == 1 else ovmf.sev_es_reset_eip
        vmsa = hashlib.sha384(render_vmsa(eip=eip, signature=signature, sev_features=sev_features)).digest()
        digest = _extend(digest, _PageType.VMSA, _VMSA_GPA, vmsa)
        yield n, digest


def _sections(digest: bytes, ovmf: Ovmf, boot: Boot | None) -> bytes:
    hashed = False
    for section in ovmf.sev_sections:
        if section.type == SevSectionType.SECRETS:
            digest = _extend(digest, _PageType.SECRETS, section.gpa, _ZEROS)
        elif section.type == SevSectionType.CPUID:
            digest = _extend(digest, _PageType.CPUID, section.gpa, _ZEROS)
        elif section.type == SevSectionType.KERNEL_HASHES and boot is not None:
            digest = _extend(digest, _PageType.NORMAL, section.gpa, _hash_page(ovmf, boot, section.gpa, section.size))
            hashed = True
        else:
            for gpa in range(section.gpa, section.gpa + section.size, PAGE):
                digest = _extend(digest, _PageType.ZERO, gpa, _ZEROS)
    if boot is not None and not hashed:
        raise Malformed("ovmf-no-kernel-hashes", "this firmware does not measure a directly booted kernel",
                        where="firmware", expected="the AMDSEV build of OVMF")  # fmt: skip
    return digest


def _hash_page(ovmf: Ovmf, boot: Boot, gpa: int, size: int) -> bytes:
    at = ovmf.sev_hash_table_gpa - gpa
    table = boot.hash_table
    if size != PAGE or at < 0 or at + len(table) > PAGE:
        raise Malformed("ovmf-hash-page", "the kernel hash table does not lie in its page", where="firmware",
                        expected=f"one page at {gpa:#x}", got=f"{ovmf.sev_hash_table_gpa:#x}")  # fmt: skip
    return hashlib.sha384((bytes(at) + table).ljust(PAGE, b"\0")).digest()


def _extend(digest: bytes, kind: _PageType, gpa: int, content: bytes) -> bytes:
    """One PAGE_INFO: digest so far, content, length, type, IMI flag, VMPL permissions and a reserved byte, address."""
    info = digest + content + struct.pack("<HB5xQ", _PAGE_INFO_BYTES, kind, gpa)
    return hashlib.sha384(info).digest()
