"""A small initramfs: busybox, a closure of modules in load order, and an init that mounts the host's root over 9p.

Written in the `newc` form of cpio (kernel: Documentation/driver-api/early-userspace/buffer-format.rst).
"""

import lzma
import re
import stat
from collections.abc import Iterable
from pathlib import Path

_DEPENDS = re.compile(rb"\0depends=([^\0]*)\0")
_SOFT = re.compile(rb"softdep=pre: ([^\0]*)\0")
INIT = """#!/bin/busybox sh
# Loads modules, puts the host's root (9p, read-only) under a tmpfs overlay, runs one command in it, powers off.
B=/bin/busybox
$B mount -t proc proc /proc; $B mount -t sysfs sys /sys; $B mount -t devtmpfs dev /dev
for m in $($B cat /modules.order); do $B insmod /modules/$m.ko || echo "lab: insmod $m failed"; done
$B mkdir -p /lower /upper /new
$B mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=loose,ro root /lower || $B poweroff -f
$B mount -t tmpfs rw /upper; $B mkdir /upper/u /upper/w
$B mount -t overlay -o lowerdir=/lower,upperdir=/upper/u,workdir=/upper/w ov /new || $B poweroff -f
cd /new
$B mount -t proc proc proc; $B mount -t sysfs sys sys; $B mount -t devtmpfs dev dev
$B mkdir -p dev/shm run lab; $B mount -t tmpfs shm dev/shm; $B mount -t tmpfs run run
$B mount -t securityfs sec sys/kernel/security 2>/dev/null
$B mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000 share lab || $B poweroff -f
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM=dumb PYTHONDONTWRITEBYTECODE=1 \\
    $B chroot . /bin/sh /lab/command > lab/output 2>&1
echo $? > lab/status
$B sync; $B poweroff -f
"""


def _name(path: Path) -> str:
    return path.name.split(".ko")[0].replace("-", "_")


def module_closure(modules: Path, wanted: Iterable[str]) -> list[tuple[str, bytes]]:
    """(name, object) of the wanted modules and all they depend on, in load order; built-in ones are left out."""
    files = {_name(p): p for p in modules.rglob("*.ko*")}
    builtin = {_name(Path(line)) for line in (modules / "modules.builtin").read_text().split()}
    done: dict[str, bytes] = {}

    def visit(name: str) -> None:
        name = name.replace("-", "_")
        if name in done or name in builtin:
            return
        if name not in files:
            raise KeyError(f"the kernel has no module {name}")
        raw = files[name].read_bytes()
        blob = lzma.decompress(raw) if files[name].suffix == ".xz" else raw
        before = _DEPENDS.search(blob)
        for other in before.group(1).decode().split(",") if before and before.group(1) else []:
            visit(other)
        for match in _SOFT.finditer(blob):
            for other in match.group(1).decode().split():
                if other.replace("-", "_") in files:  # a soft dependency may also be an alias of something built in
                    visit(other)
        done[name] = blob

    for name in wanted:
        visit(name)
    return list(done.items())


class Cpio:
    """Writes one archive into memory."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._inode = 0
        self._folders: set[str] = set()

    def add(self, path: str, content: bytes, mode: int) -> None:
        """One entry; parent folders appear by themselves."""
        for parent in reversed(Path(path).parents):
            if str(parent) not in {".", *self._folders}:
                self._folders.add(str(parent))
                self._entry(str(parent), b"", stat.S_IFDIR | 0o755)
        self._entry(path, content, mode)

    def _entry(self, path: str, content: bytes, mode: int) -> None:
        self._inode += 1
        name = path.encode() + b"\0"
        fields = (self._inode, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name), 0)
        head = b"070701" + b"".join(f"{f:08x}".encode() for f in fields) + name
        self._parts += [head, bytes(-len(head) % 4), content, bytes(-len(content) % 4)]

    def finish(self) -> bytes:
        """The archive."""
        self._entry("TRAILER!!!", b"", 0)
        return b"".join(self._parts)


def render_initramfs(busybox: Path, modules: list[tuple[str, bytes]]) -> bytes:
    """The archive that QEMU gets as -initrd."""
    archive = Cpio()
    for folder in ("proc", "sys", "dev", "lower", "upper", "new"):
        archive.add(f"{folder}/.keep", b"", stat.S_IFREG | 0o644)
    archive.add("bin/busybox", busybox.read_bytes(), stat.S_IFREG | 0o755)
    for name, blob in modules:
        archive.add(f"modules/{name}.ko", blob, stat.S_IFREG | 0o644)
    archive.add("modules.order", "".join(f"{name}\n" for name, _ in modules).encode(), stat.S_IFREG | 0o644)
    archive.add("init", INIT.encode(), stat.S_IFREG | 0o755)
    return archive.finish()
