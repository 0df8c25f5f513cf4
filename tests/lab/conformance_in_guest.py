"""Runs in the guest, as root: every row of the conformance table on this kernel, one JSON line each.

`python -m tests.lab.conformance_in_guest KERNEL BOOT MODULES` where KERNEL names the row set (debian-6.1, ...), BOOT is
how the machine was booted, and MODULES the folder of the kernel's modules, or "-". Only the rows that may block for
ever go through children; one of them through those of `host/isolate`, whose start takes half a second here.
"""

import ctypes
import json
import lzma
import os
import sys
import time
import traceback
from pathlib import Path

from kata_gpu.host.real import RealHost
from kata_gpu.ports import Host
from tests.kata_gpu.node.conformance import ROWS, Bench
from tests.kata_gpu.node.direct_host import DirectHost
from tests.kata_gpu.node.forking_host import ForkingHost

# Addresses of tests/lab/machine.py's TOPOLOGY.
PLAIN, LONE, PAIR = "0000:01:00.0", "0000:02:00.0", ("0000:03:00.0", "0000:03:00.1")
CONVENTIONAL, BEHIND = "0000:04:00.0", ("0000:05:01.0", "0000:05:02.0")
PORT, SWITCHED = "0000:07:00.0", "0000:08:00.0"
NATIVE, NATIVE_ID = "e1000e", "8086 10d3"
SETTLE_S = 10.0
MAY_BLOCK, ISOLATED = "2.7-", "2.7-ends-with-close"
_INIT_MODULE, _DELETE_MODULE = 175, 176  # system calls of x86-64


class Modules:
    """Loads and unloads modules by system call: errors are errno, and no index of modules is needed."""

    def __init__(self, folder: str) -> None:
        self._files = {p.name.split(".ko")[0].replace("-", "_"): p for p in Path(folder).rglob("*.ko*")}

    def load(self, name: str) -> None:
        """Load one whose dependencies are loaded."""
        path = self._files[name]
        blob = path.read_bytes()
        blob = lzma.decompress(blob) if path.suffix == ".xz" else blob
        _call(_INIT_MODULE, ctypes.c_char_p(blob), ctypes.c_ulong(len(blob)), b"")

    def unload(self, name: str) -> None:
        """As `rmmod` does: without waiting."""
        _call(_DELETE_MODULE, name.encode(), ctypes.c_uint(os.O_NONBLOCK), None)


def _call(number: int, *arguments: object) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(ctypes.c_long(number), *arguments) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def restore(bench: Bench) -> None:
    """Every function there, with its native driver where it has one, no override, no dynamic id, every reset method."""
    functions = {PLAIN: "none", **dict.fromkeys((LONE, *PAIR), NATIVE), **dict.fromkeys((*BEHIND, SWITCHED), "none")}
    bench.write("/sys/bus/pci/drivers/vfio-pci/remove_id", NATIVE_ID)
    if not all(bench.there(f"/sys/bus/pci/devices/{address}") for address in functions):
        bench.write("/sys/bus/pci/rescan", "1")
    for address, native in functions.items():
        until = time.monotonic() + SETTLE_S
        while bench.driver(address) != native and time.monotonic() < until:
            if (driver := bench.driver(address)) != "none":
                bench.unbind(driver, address)
            bench.override(address, "\n")
            bench.probe(address)
        bench.override(address, "\n")
        bench.write(f"/sys/bus/pci/devices/{address}/reset_method", "default")


def on(host: Host, modules: Modules, bridge: str) -> Bench:
    """The bench of this machine through a host."""
    return Bench(
        host=host, lone=LONE, native=NATIVE, native_id=NATIVE_ID, pair=PAIR, plain=PLAIN, conventional=CONVENTIONAL,
        behind=BEHIND, port=PORT, switched=SWITCHED, load=modules.load, unload=modules.unload,
        bridge=bridge,
    )  # fmt: skip


def main() -> int:
    """All rows of the kernel and boot; a row that cannot be judged gives its error as the result."""
    kernel, boot, folder = sys.argv[1:]
    direct, modules = DirectHost(), Modules(folder)
    bridge = direct.readlink(f"/sys/bus/pci/devices/{LONE}").split("/")[-2]
    for row in ROWS:
        if kernel not in row.kernels or row.boot != boot:
            continue
        if boot != "vfio-ids":
            restore(on(direct, modules, bridge))
        host: Host = direct
        if row.id.startswith(MAY_BLOCK):
            host = RealHost() if row.id == ISOLATED else ForkingHost()
        began = time.monotonic()
        try:
            got = row.run(on(host, modules, bridge))
        except Exception:  # noqa: BLE001 - the outermost shell of a test program: the result is the traceback
            got = "error: " + traceback.format_exc(limit=-2)
        print(json.dumps({"id": row.id, "got": got, "seconds": round(time.monotonic() - began, 1)}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
