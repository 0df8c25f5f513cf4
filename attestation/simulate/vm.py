"""A simulated confidential VM: real guest client, forged evidence for whatever nonce is live, and faults on demand.

Nothing that it makes verifies under a vendor's root. An honest VM collects through the guest's own code, checks
included; a VM with a fault is a hostile guest that skips them, so that the broker has to notice.
"""

import json
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from attestation.formats.initdata import parse_init_data
from attestation.guest.evidence import (
    Challenge,
    DeviceEvidence,
    Evidence,
    EvidenceProvider,
    collect,
    device_nonce,
    render_additional,
    report_data,
)
from attestation.simulate.amd import SimulatedChip
from attestation.simulate.intel import QuoteForm
from attestation.simulate.nvidia import NvidiaForge
from attestation.values import Architecture, GpuMode, JsonObject, Nonce, Tee

STALE_NONCE = b64encode(bytes(range(100, 132))).decode("ascii")  # of a challenge that nobody issued today
_INIT_DATA_BYTES = {Tee.SNP: 32, Tee.TDX: 48, Tee.SAMPLE: 32}  # HOST_DATA, MRCONFIGID
_WRONG_DIGEST = b"\xee" * 48
_FIRST_GSP_INDEX = 9  # a measurement that every Hopper and Blackwell document names


class Fault(StrEnum):
    """One thing that is wrong with a VM."""

    GPU_MEASUREMENT = "gpu-measurement"
    CPU_MEASUREMENT = "cpu-measurement"
    REPLAY_GPU = "replay-gpu"
    DUPLICATE_GPU = "duplicate-gpu"
    STALE_NONCE = "stale-nonce"
    MISSING_GPU = "missing-gpu"
    OTHER_INIT_DATA = "other-init-data"


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedCpu:
    """An SNP chip, a TDX module or the sample TEE of this VM. `init_data` fills the TEE's field for it."""

    tee: Tee = Tee.SNP
    chip: SimulatedChip = field(default_factory=SimulatedChip)
    init_data: bytes = b""
    measurement: bytes | None = None

    def quote(self, report_data: bytes) -> JsonObject:
        """`primary_evidence` as the stock attester sends it."""
        launch = self.init_data.ljust(_INIT_DATA_BYTES[self.tee], b"\0")
        if self.tee is Tee.SAMPLE:
            init_data = {"init_data": b64encode(launch).decode("ascii")} if any(launch) else {}
            return {"svn": "1", "report_data": b64encode(report_data).decode("ascii")} | init_data
        if self.tee is Tee.TDX:
            form = QuoteForm(report_data=report_data, mr_config_id=launch)
            text = (form.with_(mr_td=self.measurement) if self.measurement else form).evidence_json()
        else:
            fields = self.chip.fields().with_(report_data=report_data, host_data=launch)
            text = self.chip.evidence_json(fields.with_(measurement=self.measurement) if self.measurement else fields)
        document: JsonObject = json.loads(text)
        return document


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedDevices:
    """GPUs, and the switches of a Protected PCIe board, of one forged vendor."""

    gpus: int
    switches: int = 0
    arch: Architecture = Architecture.HOPPER
    forge: NvidiaForge = field(default_factory=NvidiaForge)
    measurements: dict[int, bytes] = field(default_factory=dict)  # of the first GPU, in place of good ones

    def collect(self, nonce: Nonce) -> tuple[DeviceEvidence, ...]:
        """Fresh reports of all of them."""
        mode = GpuMode.PPCIE if self.switches else GpuMode.ON
        gpus = (
            self._device(self.arch, index, nonce, mode, self.measurements if index == 0 else {})
            for index in range(self.gpus)
        )
        switches = (self._device(Architecture.LS10, index, nonce, GpuMode.ON, {}) for index in range(self.switches))
        return (*gpus, *switches)

    def _device(
        self, arch: Architecture, index: int, nonce: Nonce, mode: GpuMode, measurements: dict[int, bytes]
    ) -> DeviceEvidence:
        forged = self.forge.device(arch, index, nonce=nonce.raw, mode=mode, measurements=measurements)
        uuid = f"GPU-simulated-{arch}-{index}"
        return DeviceEvidence(arch=arch, uuid=uuid, report=forged.report, chain=forged.chain)


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedVm:
    """One VM, honest unless `faults` says otherwise."""

    gpus: int = 1
    switches: int = 0
    arch: Architecture = Architecture.HOPPER
    tee: Tee = Tee.SNP
    chip_seed: str = "chip-0"
    init_data: str | None = None
    faults: frozenset[Fault] = frozenset()

    def provider(self) -> EvidenceProvider:
        """Sources of this VM."""
        size, init_data = _INIT_DATA_BYTES[self.tee], b""
        if self.init_data is not None:
            init_data = parse_init_data(self.init_data).field_value(size)
        if Fault.OTHER_INIT_DATA in self.faults:
            init_data = bytes(octet ^ 0xFF for octet in init_data.ljust(size, b"\0"))
        cpu = SimulatedCpu(
            tee=self.tee,
            chip=SimulatedChip(seed=self.chip_seed),
            init_data=init_data,
            measurement=_WRONG_DIGEST if Fault.CPU_MEASUREMENT in self.faults else None,
        )
        wrong = {_FIRST_GSP_INDEX: _WRONG_DIGEST} if Fault.GPU_MEASUREMENT in self.faults else {}
        devices = SimulatedDevices(gpus=self.gpus, switches=self.switches, arch=self.arch, measurements=wrong)
        return EvidenceProvider(
            cpu=cpu,
            devices=(devices,),
            init_data=self.init_data,
            expected_devices=self.gpus + self.switches,
        )

    def collect(self, provider: EvidenceProvider, challenge: Challenge) -> Evidence:
        """What `KbsClient` calls. The guest's own collection for an honest VM."""
        if not self.faults:
            return collect(provider, challenge)
        asked = replace(challenge, nonce=STALE_NONCE) if Fault.STALE_NONCE in self.faults else challenge
        nonce = device_nonce(asked)
        devices = [device for source in provider.devices for device in source.collect(nonce)]
        devices = self._change(challenge, devices)
        additional = render_additional(devices)
        return Evidence(
            primary=provider.cpu.quote(report_data(asked, provider, devices, additional)),
            additional=additional,
            devices=tuple(devices),
            init_data=provider.init_data,
        )

    def _change(self, challenge: Challenge, devices: list[DeviceEvidence]) -> list[DeviceEvidence]:
        if Fault.REPLAY_GPU in self.faults:  # another GPU's genuine answer to an older challenge, in place of ours
            devices = [*devices[:-1], self._recorded(challenge)]
        if Fault.DUPLICATE_GPU in self.faults:
            devices = [*devices, devices[0]]
        if Fault.MISSING_GPU in self.faults:
            devices = devices[1:]
        return devices

    def _recorded(self, challenge: Challenge) -> DeviceEvidence:
        older = device_nonce(replace(challenge, nonce=STALE_NONCE))
        others: Sequence[DeviceEvidence] = SimulatedDevices(gpus=self.gpus + 1, arch=self.arch).collect(older)
        return others[-1]
