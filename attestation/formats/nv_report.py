"""What the opaque data of a report says: GPU facts and NVSwitch facts (gpu-attestation.md 1.3, 1.4, 1.6).

The same element numbers mean different things on GPUs and switches, so the caller says which device it is, from the
certificate. Unknown elements are kept by type and size: policy sees them, new firmware is not an outage.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from attestation.errors import Malformed
from attestation.formats.spdm import SpdmReport

GPU_BLOCKS, SWITCH_BLOCKS = 64, 31
GPU_LINKS, SWITCH_PORTS, SWITCH_GPUS, PDI_BYTES = 18, 64, 8, 8
NO_GPU = 0xFF
FEATURE_SPT, FEATURE_MPT, FEATURE_PPCIE = 0, 1, 2
_ON, _OFF = 0xAA, 0x55
_MAX_OPAQUE_VERSION = 1

_DRIVER = re.compile(r"[0-9]{1,5}(?:\.[0-9]{1,5}){1,3}")  # 545.00, 550.90.07
_TOKEN = re.compile(r"[A-Za-z0-9]{1,16}")  # project, SKU and chip names: they become part of a document id
_SWITCH_BIOS = re.compile(r"[0-9A-Fa-f]{2}(?:\.[0-9A-Fa-f]{2}){4}")

_DRIVER_VERSION, _VBIOS_VERSION, _NVDEC0, _CHIP_SKU, _PROJECT, _PROJECT_SKU, _FWID = 3, 6, 11, 15, 17, 18, 20
_PROTECTED_PCIE, _SWITCH_PDI, _OPAQUE_VERSION, _CHIP_INFO, _FEATURE_FLAG = 21, 22, 34, 35, 36
_DISABLED_PORTS, _POSITION, _LOCK, _GPU_PDIS = 23, 24, 25, 26

# Exact sizes of the elements with a fixed one; the rest are text or never seen.
_GPU_SIZES = {
    4: 8, _VBIOS_VERSION: 8, _NVDEC0: 1, 12: 4 * GPU_BLOCKS, 13: 4, 14: 4, _FWID: 48, _PROTECTED_PCIE: 1,
    _SWITCH_PDI: GPU_LINKS * PDI_BYTES, 33: 2, _OPAQUE_VERSION: 2, _FEATURE_FLAG: 2,
}  # fmt: skip
_SWITCH_SIZES = {
    _VBIOS_VERSION: 14, _SWITCH_PDI: PDI_BYTES, _DISABLED_PORTS: 2, _POSITION: 2, _LOCK: 2,
    _GPU_PDIS: SWITCH_GPUS * PDI_BYTES + SWITCH_PORTS,
}  # fmt: skip
_GPU_KNOWN = frozenset(range(1, 26)) | frozenset(range(32, 37))
_SWITCH_KNOWN = frozenset({*_SWITCH_SIZES, 12, 27})


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuFacts:
    """A GPU report's own statements. `vbios` is dotted, upper case; `switch_pdis` is empty without Protected PCIe."""

    driver: str
    vbios: str
    project: str
    project_sku: str
    chip_sku: str
    chip_info: str  # empty when the firmware does not say
    nvdec0_enabled: bool
    fwid: bytes | None
    protected_pcie: bool | None  # None: the firmware does not say
    feature: int | None  # FEATURE_*; None where the firmware does not say
    switch_pdis: tuple[bytes, ...]  # one per NVLink; zero = disabled
    unknown: Mapping[int, bytes]

    @property
    def linked_switches(self) -> tuple[bytes, ...]:
        """Peer switch of every enabled link, as the switch itself spells it (a GPU lists the bytes reversed)."""
        return tuple(pdi[::-1] for pdi in self.switch_pdis if any(pdi))


@dataclass(frozen=True, slots=True, kw_only=True)
class SwitchFacts:
    """An LS10 report's own statements. `ports[n]` is an index into `gpu_pdis`, or NO_GPU.

    Both are empty where old firmware (96.10.52) does not list its GPUs.
    """

    bios: str
    pdi: bytes
    locked: bool
    gpu_pdis: tuple[bytes, ...]
    ports: tuple[int, ...]
    unknown: Mapping[int, bytes]


def parse_gpu_facts(report: SpdmReport) -> GpuFacts:
    """Facts of a Hopper or Blackwell report. Raises Malformed."""
    tlvs = _elements(report, GPU_BLOCKS, _GPU_SIZES)
    for required in (_DRIVER_VERSION, _VBIOS_VERSION, _NVDEC0, _CHIP_SKU, _PROJECT, _PROJECT_SKU):
        _required(tlvs, required)
    chip_info = _text(tlvs[_CHIP_INFO], "chip-info", _TOKEN) if _CHIP_INFO in tlvs else ""
    facts = GpuFacts(
        driver=_text(tlvs[_DRIVER_VERSION], "driver-version", _DRIVER),
        vbios=_vbios(tlvs[_VBIOS_VERSION]),
        project=_text(tlvs[_PROJECT], "project", _TOKEN),
        project_sku=_text(tlvs[_PROJECT_SKU], "project-sku", _TOKEN),
        chip_sku=_text(tlvs[_CHIP_SKU], "chip-sku", _TOKEN),
        chip_info=chip_info,
        nvdec0_enabled=_switch(tlvs[_NVDEC0], "nvdec0"),
        fwid=tlvs.get(_FWID),
        protected_pcie=_switch(tlvs[_PROTECTED_PCIE], "protected-pcie") if _PROTECTED_PCIE in tlvs else None,
        feature=_feature(tlvs),
        switch_pdis=_split(tlvs.get(_SWITCH_PDI, b"")),
        unknown={kind: tlvs[kind] for kind in tlvs.keys() - _GPU_KNOWN},
    )
    if facts.feature is not None and (facts.feature == FEATURE_PPCIE) != bool(facts.protected_pcie):
        raise Malformed(
            "feature-contradiction",
            "feature flag and Protected PCIe status disagree",
            where="report.opaque",
            expected="flag 2 exactly when Protected PCIe is on",
            got=f"flag {facts.feature}, Protected PCIe {facts.protected_pcie}",
        )
    return facts


def parse_switch_facts(report: SpdmReport) -> SwitchFacts:
    """Facts of an LS10 report. Raises Malformed."""
    tlvs = _elements(report, SWITCH_BLOCKS, _SWITCH_SIZES)
    for required in (_VBIOS_VERSION, _SWITCH_PDI, _LOCK):
        _required(tlvs, required)
    lock = int.from_bytes(tlvs[_LOCK], "little")
    if lock not in (0, 1):
        raise Malformed("lock-status", "unknown lock status", where="report.opaque", expected="0 or 1", got=lock)
    table = tlvs.get(_GPU_PDIS, b"")
    ports = tuple(table[SWITCH_GPUS * PDI_BYTES :])
    if any(port >= SWITCH_GPUS and port != NO_GPU for port in ports):
        raise Malformed("switch-port", "port names no GPU", where="report.opaque", expected="0..7 or 255", got=ports)
    return SwitchFacts(
        bios=_text(tlvs[_VBIOS_VERSION], "bios-version", _SWITCH_BIOS).upper(),
        pdi=tlvs[_SWITCH_PDI],
        locked=lock == 1,
        gpu_pdis=_split(table[: SWITCH_GPUS * PDI_BYTES]),
        ports=ports,
        unknown={kind: tlvs[kind] for kind in tlvs.keys() - _SWITCH_KNOWN},
    )


def _elements(report: SpdmReport, blocks: int, sizes: Mapping[int, int]) -> Mapping[int, bytes]:
    if len(report.measurements) != blocks:
        raise Malformed(
            "block-count", "not this device's report", where="report", expected=blocks, got=len(report.measurements)
        )
    tlvs = report.opaque
    for kind, size in sizes.items():
        if kind in tlvs and len(tlvs[kind]) != size:
            raise Malformed(
                "tlv-size",
                "element has the wrong size",
                where=f"report.opaque[{kind}]",
                expected=size,
                got=len(tlvs[kind]),
            )
    return tlvs


def _required(tlvs: Mapping[int, bytes], kind: int) -> None:
    if kind not in tlvs:
        raise Malformed("tlv-missing", "required element is absent", where="report.opaque", expected=f"type {kind}")
    if not tlvs[kind]:
        raise Malformed("tlv-size", "required element is empty", where=f"report.opaque[{kind}]", got=0)


def _text(value: bytes, field: str, pattern: re.Pattern[str]) -> str:
    """Text of a fixed alphabet, padded with NULs at its end only: it goes into document ids."""
    text = value.rstrip(b"\0").decode("latin-1")
    if not pattern.fullmatch(text):
        raise Malformed(field, "unexpected text", where="report.opaque", expected=pattern.pattern, got=repr(text[:40]))
    return text


def _switch(value: bytes, field: str) -> bool:
    if value[0] not in (_ON, _OFF):
        raise Malformed(field, "neither on nor off", where="report.opaque", expected="0xaa or 0x55", got=value.hex())
    return value[0] == _ON


def _vbios(value: bytes) -> str:
    """1.4: eight bytes little-endian; the low four of the reversed number, then its fourth byte."""
    big = value[::-1]
    return ".".join(f"{byte:02X}" for byte in (*big[4:], big[3]))


def _feature(tlvs: Mapping[int, bytes]) -> int | None:
    if _OPAQUE_VERSION not in tlvs:
        return None
    version = int.from_bytes(tlvs[_OPAQUE_VERSION], "little")
    if version > _MAX_OPAQUE_VERSION:
        raise Malformed("opaque-version", "unknown version", where="report.opaque", expected="0 or 1", got=version)
    if version == 0:
        return None
    if _FEATURE_FLAG not in tlvs:
        raise Malformed("feature-missing", "opaque data version 1 without feature flag", where="report.opaque")
    flag = int.from_bytes(tlvs[_FEATURE_FLAG], "little")
    if flag not in (FEATURE_SPT, FEATURE_MPT, FEATURE_PPCIE):
        raise Malformed("feature-flag", "unknown feature", where="report.opaque", expected="0, 1 or 2", got=flag)
    return flag


def _split(table: bytes) -> tuple[bytes, ...]:
    return tuple(table[i : i + PDI_BYTES] for i in range(0, len(table), PDI_BYTES))
