"""Where plaintext may go: tmpfs or ramfs, and not while swap is on. The kernel's own tables decide, not path names."""

import os
from dataclasses import dataclass
from pathlib import Path

from attestation.errors import Misconfigured, Unavailable

MEMORY_TYPES = frozenset({"tmpfs", "ramfs"})
_MAX_TABLE_BYTES = 4 << 20  # /proc/self/mountinfo of a node with thousands of mounts is below 1 MiB


@dataclass(frozen=True, slots=True, kw_only=True)
class Exceptions:
    """What an operator allowed by a dangerous name."""

    disk: bool = False
    swap: bool = False


@dataclass(frozen=True, slots=True)
class Proc:
    """The two kernel tables this needs, below one folder."""

    root: Path = Path("/proc")

    def filesystem_of(self, device: int) -> str:
        """Type of the filesystem with this `st_dev`; empty when the kernel lists none (then nothing is assumed)."""
        wanted = f"{os.major(device)}:{os.minor(device)}"
        for line in self._lines("self/mountinfo"):
            fields, _, after = line.partition(" - ")  # proc_pid_mountinfo(5): optional fields end with a hyphen
            columns = fields.split(" ")
            if len(columns) > 2 and columns[2] == wanted:
                return after.split(" ")[0]
        return ""

    def swap_devices(self) -> list[str]:
        """Active swap areas. The first line of the table is its heading."""
        return [line.split()[0] for line in self._lines("swaps")[1:] if line.split()]

    def _lines(self, name: str) -> list[str]:
        path = self.root / name
        try:
            with path.open("rb") as table:
                return table.read(_MAX_TABLE_BYTES).decode("utf-8", "replace").splitlines()
        except OSError as exc:
            raise Unavailable("proc-table", "cannot read a kernel table", where=str(path)) from exc


def require_memory(folder: Path, exceptions: Exceptions, *, proc: Proc) -> list[str]:
    """Refuse a folder whose content can reach a disk. Returns a warning for each exception that was really needed."""
    warnings = []
    kind = proc.filesystem_of(folder.stat().st_dev)
    if kind not in MEMORY_TYPES:
        if not exceptions.disk:
            raise Misconfigured(
                "not-memory",
                "plaintext goes to memory only (--unsafe-plaintext-on-disk overrides)",
                where=str(folder),
                expected="tmpfs or ramfs, e.g. an emptyDir with medium Memory",
                got=kind or "unknown filesystem",
            )
        warnings.append(f"plaintext is written to {kind or 'an unknown filesystem'} at {folder}")
    if kind != "ramfs" and (swap := proc.swap_devices()):  # ramfs pages are never swapped
        if not exceptions.swap:
            raise Misconfigured(
                "swap-on",
                "swap is on: memory can reach a disk (--unsafe-plaintext-with-swap overrides)",
                where=str(folder),
                expected="no swap",
                got=", ".join(swap[:4]),
            )
        warnings.append(f"swap is on ({', '.join(swap[:4])}): plaintext can reach a disk")
    return warnings
