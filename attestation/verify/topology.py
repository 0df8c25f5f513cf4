"""Checks over a set of devices: distinct identities, one mode, and the NVLink graph of a Protected PCIe board.

gpu-attestation.md 1.7. A GPU lists the switch at the end of each of its 18 links; a switch lists its GPUs and, for its
ports, which GPU is there. A GPU's own identifier is not in its report, but it is in the serial number of the
certificate above its leaf: every edge can therefore be checked from both ends, and the one that fails is named.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from attestation.findings import Finding, failed, passed
from attestation.formats.nv_report import GpuFacts, SwitchFacts
from attestation.verify.nv_gpu import DeviceProof

PPCIE_GPUS, PPCIE_SWITCHES = 8, 4  # HGX H100: the only Protected PCIe board


@dataclass(frozen=True, slots=True)
class _Gpu:
    name: str
    pdi: bytes
    facts: GpuFacts


@dataclass(frozen=True, slots=True)
class _Switch:
    name: str
    pdi: bytes
    facts: SwitchFacts


def check_set(proofs: Sequence[DeviceProof]) -> tuple[Finding, ...]:
    """Findings about verified devices as a set. At least one; empty input is a caller's error and fails."""
    if not proofs:
        return (failed("devices", "device-missing", expected="at least one device", got="none"),)
    gpus = [_Gpu(str(p.device.identity), p.certificate.pdi, p.facts) for p in proofs if isinstance(p.facts, GpuFacts)]
    switches = [
        _Switch(str(p.device.identity), p.certificate.pdi, p.facts) for p in proofs if isinstance(p.facts, SwitchFacts)
    ]
    findings = [*_distinct(proofs), *_one_nonce(proofs), *_one_mode(gpus)]
    protected = [gpu for gpu in gpus if gpu.facts.protected_pcie]
    if protected and (switches or len(gpus) > 1):
        findings += _protected_pcie(gpus, switches)
    return tuple(findings)


def _distinct(proofs: Sequence[DeviceProof]) -> list[Finding]:
    """By chip id, by leaf serial number and by PDI: one device has one of each."""
    for label, keys in (
        ("chip id", [p.certificate.identity.chip_id for p in proofs]),
        ("leaf serial", [p.certificate.identity.leaf_serial for p in proofs]),
        ("PDI", [p.certificate.pdi for p in proofs]),
    ):
        if len(set(keys)) != len(keys):
            texts = (key.hex() if isinstance(key, bytes) else str(key) for key in keys)
            repeated = sorted(text for text, count in Counter(texts).items() if count > 1)
            return [
                failed(
                    "distinct-devices",
                    "device-duplicate",
                    expected=f"{len(keys)} different devices",
                    got=f"{label} {', '.join(repeated)} more than once",
                    hint="evidence of one device was submitted as several",
                )
            ]
    return [passed("distinct-devices", f"{len(proofs)} different devices")]


def _one_nonce(proofs: Sequence[DeviceProof]) -> list[Finding]:
    """Where no challenge was given, the reports must at least answer the same one."""
    nonces = {p.device.nonce.raw for p in proofs}
    if len(nonces) > 1:
        got = sorted(nonce.hex() for nonce in nonces)
        return [failed("one-nonce", "nonce-differs", expected="one nonce for all devices", got=got)]
    return [passed("one-nonce", proofs[0].device.nonce.hex())]


def _one_mode(gpus: Sequence[_Gpu]) -> list[Finding]:
    """Feature flags (SPT, MPT, PPCIE) and Protected PCIe status must not be mixed."""
    modes = {(gpu.facts.feature, gpu.facts.protected_pcie) for gpu in gpus}
    if len(modes) > 1:
        odd = Counter((gpu.facts.feature, gpu.facts.protected_pcie) for gpu in gpus).most_common()[-1][0]
        names = [gpu.name for gpu in gpus if (gpu.facts.feature, gpu.facts.protected_pcie) == odd]
        return [
            failed(
                "one-mode",
                "mode-mix",
                expected="one feature flag and Protected PCIe status",
                got=f"{', '.join(names)}: flag {odd[0]}, Protected PCIe {odd[1]}",
            )
        ]
    return []


def _protected_pcie(gpus: Sequence[_Gpu], switches: Sequence[_Switch]) -> list[Finding]:
    """8 GPUs in Protected PCIe, 4 locked switches, and a link table that both ends agree on."""
    findings: list[Finding] = []
    if (len(gpus), len(switches)) != (PPCIE_GPUS, PPCIE_SWITCHES):
        findings.append(
            failed(
                "ppcie-board",
                "ppcie-incomplete",
                expected=f"{PPCIE_GPUS} GPUs and {PPCIE_SWITCHES} switches",
                got=f"{len(gpus)} and {len(switches)}",
                hint="Protected PCIe does not encrypt inside the board: every device of it must attest",
            )
        )
    findings += [
        failed("ppcie-mode", "ppcie-off", expected="Protected PCIe on", got="off", subject=gpu.name)
        for gpu in gpus
        if not gpu.facts.protected_pcie
    ]
    findings += [
        failed("switch-lock", "switch-unlocked", expected="locked", got="not locked", subject=switch.name)
        for switch in switches
        if not switch.facts.locked
    ]
    findings += _edges(gpus, switches)
    if not findings:
        links = sum(len(gpu.facts.linked_switches) for gpu in gpus)
        findings.append(passed("topology", f"{links} links, every edge seen from both ends"))
    return findings


def _edges(gpus: Sequence[_Gpu], switches: Sequence[_Switch]) -> list[Finding]:
    known_switches = {switch.pdi: switch for switch in switches}
    known_gpus = {gpu.pdi: gpu for gpu in gpus}
    findings: list[Finding] = []
    for switch in switches:
        if switch.facts.pdi != switch.pdi:
            findings.append(_edge(switch.name, "its own identifier", switch.pdi.hex(), switch.facts.pdi.hex()))
        listed = set(switch.facts.gpu_pdis)
        if listed != set(known_gpus) or len(listed) != len(switch.facts.gpu_pdis):
            findings.append(
                _edge(switch.name, "GPUs that the switch lists", _hex(known_gpus), _hex(switch.facts.gpu_pdis))
            )
    for gpu in gpus:
        links = Counter(gpu.facts.linked_switches)
        if set(links) != set(known_switches):
            findings.append(_edge(gpu.name, "switches that the GPU lists", _hex(known_switches), _hex(links)))
        for pdi, count in links.items():
            if pdi in known_switches:
                findings += _port_count(gpu, known_switches[pdi], count)
    return findings


def _port_count(gpu: _Gpu, switch: _Switch, links: int) -> list[Finding]:
    """Ports of `switch` that lead to `gpu`: at least one, at most the GPU's links (firmware truncates the table)."""
    if gpu.pdi not in switch.facts.gpu_pdis:
        return []
    position = switch.facts.gpu_pdis.index(gpu.pdi)
    ports = switch.facts.ports.count(position)
    if 1 <= ports <= links:
        return []
    return [_edge(f"{gpu.name} - {switch.name}", "ports that lead to the GPU", f"1..{links}", ports)]


def _edge(subject: str, what: str, expected: object, got: object) -> Finding:
    return failed("topology", "topology-edge", expected=f"{what}: {expected}", got=got, subject=subject)


def _hex(pdis: object) -> str:
    return ",".join(sorted(pdi.hex() for pdi in pdis)) if pdis else "none"  # type: ignore[attr-defined]
