"""Runs in the guest, as root: every row of the conformance table on this kernel, one JSON line each.

`python -m tests.lab.conformance_in_guest KERNEL` where KERNEL names the row set (debian-6.1, ...). Only the rows that
may block for ever go through disposable children: starting one takes half a second in an emulated machine.
"""

import json
import sys
import time
import traceback

from kata_gpu.host.real import RealHost
from kata_gpu.ports import Host
from tests.kata_gpu.node.conformance import ROWS, Bench
from tests.kata_gpu.node.direct_host import DirectHost

# Addresses of tests/lab/machine.py's TOPOLOGY.
LONE, PAIR = "0000:02:00.0", ("0000:03:00.0", "0000:03:00.1")
NATIVE, NATIVE_ID = "e1000e", "8086 10d3"
SETTLE_S = 10.0
MAY_BLOCK = "2.7-"


def restore(bench: Bench) -> None:
    """Every function back to its native driver, no override, no dynamic id, every reset method."""
    bench.write("/sys/bus/pci/drivers/vfio-pci/remove_id", NATIVE_ID)
    for address in (LONE, *PAIR):
        until = time.monotonic() + SETTLE_S
        while bench.driver(address) != NATIVE and time.monotonic() < until:
            if (driver := bench.driver(address)) != "none":
                bench.unbind(driver, address)
            bench.override(address, "\n")
            bench.probe(address)
        bench.override(address, "\n")
        bench.write(f"/sys/bus/pci/devices/{address}/reset_method", "default")


def on(host: Host) -> Bench:
    """The bench of this machine through a host."""
    port = host.readlink(f"/sys/bus/pci/devices/{LONE}").split("/")[-2]
    return Bench(
        host=host, lone=LONE, native=NATIVE, native_id=NATIVE_ID, pair=PAIR, pair_native=NATIVE, bridge=port
    )  # fmt: skip


def main() -> int:
    """All rows of the kernel; a row that cannot be judged gives its error as the result."""
    kernel = sys.argv[1]
    direct, isolated = DirectHost(), RealHost()
    for row in ROWS:
        if kernel not in row.kernels:
            continue
        restore(on(direct))
        try:
            got = row.run(on(isolated if row.id.startswith(MAY_BLOCK) else direct))
        except Exception:  # noqa: BLE001 - the outermost shell of a test program: the result is the traceback
            got = "error: " + traceback.format_exc(limit=-2)
        print(json.dumps({"id": row.id, "got": got}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
