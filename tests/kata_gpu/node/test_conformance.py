"""The rows of `conformance.py` on the simulated kernel, for every kernel profile."""

import pytest

from kata_gpu.host.simkernel.kernel import SimKernel
from kata_gpu.host.simkernel.machine import PROFILES, Function
from kata_gpu.host.simkernel.presets import bare
from tests.kata_gpu.node.conformance import ROWS, Bench, Row


def _bench(profile: str) -> Bench:
    machine = bare(profile)
    machine.drivers.append("e1000e")
    machine.installed_modules["e1000e"] = "e1000e"

    def endpoint(address: str, group: int) -> None:
        machine.functions[address] = Function(
            address=address,
            vendor=0x8086,
            device=0x10D3,
            class_code=0x020000,
            parent=f"pci0000:00/0000:00:0{group}.0",
            group=group,
            bars=[1 << 17, 0, 0, 0, 0, 0],
            native="e1000e",
            driver="e1000e",
            offered_resets=["pm", "bus"],
            resets=["pm", "bus"],
        )

    for group in (1, 2):
        address = f"0000:00:0{group}.0"
        machine.functions[address] = Function(
            address=address,
            vendor=0x1B36,
            device=0x000C,
            class_code=0x060400,
            parent="pci0000:00",
            group=10 + group,
            header_type=1,
            native="pcieport",
            driver="pcieport",
        )
    endpoint("0000:01:00.0", 1)
    endpoint("0000:02:00.0", 2)
    endpoint("0000:02:00.1", 2)
    return Bench(
        host=SimKernel(machine),
        lone="0000:01:00.0",
        native="e1000e",
        native_id="8086 10d3",
        pair=("0000:02:00.0", "0000:02:00.1"),
        pair_native="e1000e",
        bridge="0000:00:01.0",
    )


@pytest.mark.parametrize(
    ("profile", "row"),
    [pytest.param(p, row, id=f"{row.id}-{p}") for p in sorted(PROFILES) for row in ROWS if p in row.kernels],
)
def test_row(profile: str, row: Row) -> None:
    """The simulated kernel gives what the real one gave."""
    assert row.run(_bench(profile)) == row.expected


def test_rows_are_named_once() -> None:
    assert len({row.id for row in ROWS}) == len(ROWS)
    assert len(ROWS) >= 50
