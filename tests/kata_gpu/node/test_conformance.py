"""The rows of `conformance.py` on the simulated kernel, for every kernel profile; and that no fact is without one."""

from pathlib import Path

import pytest

from kata_gpu.host.simkernel import drivers
from kata_gpu.host.simkernel.kernel import SimKernel
from kata_gpu.host.simkernel.machine import PROFILES, Function, Machine
from kata_gpu.host.simkernel.presets import bare
from tests.kata_gpu.node.conformance import BOOT_ID, ROWS, Bench, Row
from tests.kata_gpu.node.semantics import FACTS, Fact

ROOT = Path(__file__).resolve().parents[3]
COMMAND_LINES = {"passthrough": "iommu=pt", "vfio-ids": f"vfio-pci.ids={BOOT_ID}"}


def _machine(profile: str, boot: str) -> Machine:
    machine = bare(profile)
    machine.drivers.append("e1000e")
    machine.installed_modules["e1000e"] = "e1000e"
    machine.modules.append("e1000e")
    machine.lockdown = "integrity" if boot == "lockdown" else "none"
    machine.iommu = boot != "no-iommu"
    machine.interrupt_remapping = boot != "no-remapping"
    machine.files["/proc/cmdline"] = f"root=/dev/sda1 {COMMAND_LINES.get(boot, '')}\n"

    def port(address: str, group: int, parent: str = "pci0000:00", native: str | None = "pcieport") -> str:
        machine.functions[address] = Function(
            address=address,
            vendor=0x1B36,
            device=0x000C,
            class_code=0x060400,
            parent=parent,
            group=group if machine.iommu else None,
            header_type=1,
            native=native,
            driver=native,
        )
        return f"{parent}/{address}"

    def endpoint(address: str, group: int, parent: str, **facts: object) -> None:
        machine.functions[address] = Function(
            address=address,
            parent=parent,
            group=group if machine.iommu else None,
            bars=[1 << 17, 0, 0, 0, 0, 0],
            **facts,  # type: ignore[arg-type]
        )

    def nic(address: str, group: int, parent: str) -> None:
        methods = ["pm", "bus"]
        endpoint(address, group, parent, vendor=0x8086, device=0x10D3, class_code=0x020000, native="e1000e",
                 driver="e1000e", offered_resets=methods, resets=list(methods))  # fmt: skip

    def edu(address: str, group: int, parent: str) -> None:
        endpoint(address, group, parent, vendor=0x1234, device=0x11E8, class_code=0x00FF00, offered_resets=["bus"],
                 resets=["bus"])  # fmt: skip

    edu("0000:01:00.0", 1, port("0000:00:01.0", 11))
    nic("0000:02:00.0", 2, port("0000:00:02.0", 12))
    slot = port("0000:00:03.0", 13)
    nic("0000:03:00.0", 3, slot)
    nic("0000:03:00.1", 3, slot)
    bridge = port("0000:04:00.0", 4, port("0000:00:04.0", 14), native=None)
    edu("0000:05:01.0", 4, bridge)
    edu("0000:05:02.0", 4, bridge)
    upstream = port("0000:06:00.0", 16, port("0000:00:05.0", 15))
    edu("0000:08:00.0", 7, port("0000:07:00.0", 7, upstream))
    return machine


def _bench(profile: str, boot: str) -> Bench:
    kernel = SimKernel(_machine(profile, boot))
    if boot == "vfio-ids":
        kernel = kernel.reboot()
    return Bench(
        host=kernel,
        lone="0000:02:00.0",
        native="e1000e",
        native_id="8086 10d3",
        pair=("0000:03:00.0", "0000:03:00.1"),
        bridge="0000:00:02.0",
        plain="0000:01:00.0",
        conventional="0000:04:00.0",
        behind=("0000:05:01.0", "0000:05:02.0"),
        port="0000:07:00.0",
        switched="0000:08:00.0",
        load=lambda module: kernel.modprobe(module, deadline_s=1),
        unload=lambda module: _unload(kernel, module),
    )


def _unload(kernel: SimKernel, module: str) -> None:
    with kernel.edit() as machine:
        drivers.unload_module(machine, module)


@pytest.mark.parametrize(
    ("profile", "row"),
    [pytest.param(p, row, id=f"{row.id}-{p}") for p in sorted(PROFILES) for row in ROWS if p in row.kernels],
)
def test_row(profile: str, row: Row) -> None:
    """The simulated kernel gives what the real one gave."""
    assert row.run(_bench(profile, row.boot)) == row.expected


def test_rows_are_named_once() -> None:
    assert len({row.id for row in ROWS}) == len(ROWS)


@pytest.mark.parametrize("fact", [pytest.param(fact, id=f"{fact.section}-{fact.claim[:40]}") for fact in FACTS])
def test_every_fact_is_proved_or_says_why_not(fact: Fact) -> None:
    """Rows exist, and so do the tests that stand in for one."""
    assert bool(fact.proof) is not bool(fact.untestable)
    rows = {row.id for row in ROWS}
    for proof in fact.proof:
        path, _, name = proof.partition("::")
        if name:
            assert f"\ndef {name}(" in (ROOT / path).read_text(), proof
        else:
            assert proof in rows, proof


def test_every_row_proves_a_fact() -> None:
    proved = {proof for fact in FACTS for proof in fact.proof}
    assert {row.id for row in ROWS} <= proved
