"""The support bundle: what doctor looked at, as a tree that it reads back, redacted and bounded.

The archive holds plain files and relative links only. Device nodes are lines of `.nodes` (`RealHost` reads those) and
answers of programs are in `.probes.json`.
"""

import errno
import gzip
import io
import json
import posixpath
import re
import shutil
import tarfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path, PurePosixPath

from kata_gpu.core.doctor.drivers import BINDER_PODS
from kata_gpu.core.doctor.paths import POD_LOGS, UDEV_RULES
from kata_gpu.core.doctor.redact import redact
from kata_gpu.errors import Malformed, Misconfigured
from kata_gpu.host import facts_kernel, probes
from kata_gpu.host.durable import replace_file
from kata_gpu.host.probes import SavedProbes
from kata_gpu.ports import READ_LIMIT, FileKind, HostFiles

MAX_BYTES = 64 << 20  # an HGX host gives 2 MiB; more means that a file is not what we think it is
MAX_ENTRIES = 65536
_OVERHEAD = 2 << 10  # of one entry in the archive: two headers, a long name, padding
MAX_LINKS = 40  # the kernel's own limit
_RAW = re.compile(r"/sys/devices/.*/config|/sys/bus/pci/devices/.*/config|/sys/firmware/efi/.*|/proc/config\.gz")
_ONLY_LINES = {"/proc/interrupts": re.compile(" IR-|AMD-IR"), "/proc/iomem": facts_kernel.IOMEM}
_VMM_ARGUMENT = re.compile(r"(?:^|/)qemu-system-|^-name$|^sandbox-")


@dataclass(slots=True)
class Recorder:
    """The file port, passing everything on and remembering what was seen."""

    inner: HostFiles
    contents: dict[str, bytes] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    listings: dict[str, list[str]] = field(default_factory=dict)
    kinds: dict[str, FileKind] = field(default_factory=dict)

    def read(self, path: str, *, max_bytes: int = READ_LIMIT, deadline_s: float | None = None) -> bytes:
        """Read and remember the longest answer."""
        data = self.inner.read(path, max_bytes=max_bytes, deadline_s=deadline_s)
        if len(data) >= len(self.contents.get(path, b"")):
            self.contents[path] = data
        return data

    def readlink(self, path: str) -> str:
        """Read and remember."""
        target = self.links[path] = self.inner.readlink(path)
        return target

    def listdir(self, path: str) -> list[str]:
        """List and remember."""
        names = self.listings[path] = self.inner.listdir(path)
        return names

    def kind(self, path: str) -> FileKind | None:
        """Look and remember."""
        kind = self.inner.kind(path)
        if kind is not None:
            self.kinds[path] = kind
        return kind


def write(
    output: Path, seen: Recorder, answers: SavedProbes, *, pids: Iterable[int], extra: Mapping[str, str], now: datetime
) -> int:
    """Write the archive, mode 0600, and return the number of entries.

    Raises Misconfigured when the host's answers exceed the bounds, Unavailable when the file cannot be written.
    """
    entries = _entries(seen, pids={str(p) for p in pids})
    entries["/" + probes.FILE] = json.dumps(_redacted(answers).to_json(), indent=1, sort_keys=True).encode()
    entries |= {f"/{name}": text.encode() for name, text in extra.items()}
    size = sum(len(c) for c in entries.values() if isinstance(c, bytes))
    if size > MAX_BYTES or len(entries) > MAX_ENTRIES:
        raise Misconfigured("bundle-size", "this host gives more than a support bundle may hold",
                            expected=f"{MAX_BYTES} bytes, {MAX_ENTRIES} files", got=(size, len(entries)))  # fmt: skip
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", format=tarfile.PAX_FORMAT) as archive:
        for path in sorted(entries):
            archive.addfile(*_member(path, entries[path], now))
    replace_file(output, buffer.getvalue(), mode=0o600)
    return len(entries)


def unpack(archive: Path, directory: Path) -> None:
    """Unpack a bundle into an empty directory. Raises Malformed for anything that is no bundle of ours."""
    try:
        with _Bounded(archive) as inflated, tarfile.open(fileobj=inflated, mode="r|") as file:
            total = 0
            for count, member in enumerate(file):
                total += member.size
                if count > MAX_ENTRIES or total > MAX_BYTES or not (member.isfile() or member.issym()):
                    raise Malformed("bundle-content", "not a support bundle", where=str(archive),
                                    expected=f"files and links, {MAX_BYTES} bytes", got=member.name[:100])  # fmt: skip
                _place(file, member, directory, archive)
    except (tarfile.TarError, EOFError, OSError, ValueError, zlib.error) as exc:
        raise Malformed("bundle-archive", "cannot unpack", where=str(archive), got=str(exc)[:200]) from exc


class _Bounded(gzip.GzipFile):
    """What is inflated in all is bounded: tarfile reads a member's extended header whole, whatever size it claims."""

    def __init__(self, archive: Path) -> None:
        super().__init__(archive)
        self._left = MAX_BYTES + MAX_ENTRIES * _OVERHEAD

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(self._left + 1 if size is None or size < 0 else min(size, self._left + 1))
        self._left -= len(data)
        if self._left < 0:
            raise OSError(errno.EFBIG, "more than a support bundle may hold")
        return data


def _place(file: tarfile.TarFile, member: tarfile.TarInfo, directory: Path, archive: Path) -> None:
    """One file or link below `directory`, and nothing outside it (tarfile's own filters came with Python 3.11.4)."""
    parts = PurePosixPath(member.name).parts
    target = posixpath.normpath(posixpath.join(posixpath.dirname(member.name), member.linkname))
    leads_out = member.issym() and (member.linkname.startswith("/") or target.startswith(".."))
    path = directory.joinpath(*parts)
    below_link = any(directory.joinpath(*parts[:depth]).is_symlink() for depth in range(1, len(parts)))
    if not parts or parts[0] == "/" or ".." in parts or leads_out or below_link:
        raise Malformed("bundle-content", "a name that leads out of the bundle", where=str(archive),
                        expected="relative names", got=member.name[:100])  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    if member.issym():
        path.symlink_to(member.linkname)
        return
    content = file.extractfile(member)
    if content is not None:
        with path.open("xb") as output:
            shutil.copyfileobj(content, output)


def _member(path: str, content: "bytes | Link", now: datetime) -> tuple[tarfile.TarInfo, io.BytesIO | None]:
    info = tarfile.TarInfo(path.lstrip("/"))
    info.mtime, info.mode = int(now.timestamp()), 0o600
    if isinstance(content, Link):
        info.type, info.linkname = tarfile.SYMTYPE, str(content)
        return info, None
    info.size = len(content)
    return info, io.BytesIO(content)


class Link(str):
    """A link's target."""

    __slots__ = ()


def _entries(seen: Recorder, *, pids: set[str]) -> dict[str, "bytes | Link"]:
    """Files and links by their real path: what is below a link is stored where the link leads.

    A name that was listed but never read becomes an empty file, so that listings come out the same.
    """
    where = _Places(seen.links)
    nodes = {p: k for p, k in seen.kinds.items() if k in {FileKind.CHAR_DEVICE, FileKind.SOCKET}}
    names = [f"{folder}/{name}" for folder, listed in seen.listings.items() for name in listed]
    folders = [f"{p}/.keep" for p, k in seen.kinds.items() if k is FileKind.DIRECTORY]
    plain = [p for p, k in seen.kinds.items() if k in {FileKind.FILE, FileKind.OTHER}]
    entries: dict[str, bytes | Link] = {}
    for path in (*names, *folders, *plain, *nodes):
        if _wanted(path, pids, seen.links):
            entries[where.real(path)] = b""
    for path, target in where.links.items():
        if _wanted(path, pids, seen.links):
            entries[path] = Link(_relative(path, target))
    for path, data in seen.contents.items():
        if _wanted(path, pids, seen.links):
            entries[where.real(path)] = _content(path, data)
    entries["/.nodes"] = "".join(f"{kind} {path}\n" for path, kind in sorted(nodes.items())).encode()
    inner = {path[:i] for path in entries for i, letter in enumerate(path) if letter == "/"}
    return {path: content for path, content in entries.items() if path not in inner}


class _Places:
    """Resolves recorded links in paths."""

    def __init__(self, links: Mapping[str, str]) -> None:
        self.links: dict[str, str] = {}
        for path, target in sorted(links.items(), key=lambda row: row[0].count("/")):
            self.links[self.real(path)] = target

    def real(self, path: str) -> str:
        todo = [p for p in reversed(path.split("/")) if p]
        trail: list[str] = []
        followed = 0
        while todo:
            name = todo.pop()
            if name in {".", ".."}:
                del trail[-1 if name == ".." else len(trail) :]
                continue
            target = self.links.get("/" + "/".join([*trail, name])) if todo else None
            if target is None or followed >= MAX_LINKS:
                trail.append(name)
                continue
            followed += 1
            if target.startswith("/"):
                trail = []
            todo.extend(p for p in reversed(target.split("/")) if p)
        return "/" + "/".join(trail)


def _relative(path: str, target: str) -> str:
    """Archives of ours hold no absolute links."""
    return "../" * (path.count("/") - 1) + target.lstrip("/") if target.startswith("/") else target


def _wanted(path: str, pids: set[str], links: Mapping[str, str]) -> bool:
    """Other processes, other device nodes and other people's pods stay out."""
    parts = path.split("/")
    if path.startswith("/proc/") and parts[2].isdecimal():
        held = parts[3:4] == ["fd"] and len(parts) == 5
        return parts[2] in pids and (not held or "/dev/nvidia" in links.get(path, ""))
    if path.startswith("/proc/") and len(parts) == 3:
        return parts[2] in {"cmdline", "cpuinfo", "meminfo", "modules", "interrupts", "iomem", "config.gz"}
    if path.startswith("/dev/") and len(parts) == 3:
        return parts[2].startswith("nvidia") or parts[2] in {"kvm", "sev", "iommu", "sgx_enclave", "sgx_provision"}
    if path.startswith(f"{POD_LOGS}/"):
        return any(f"_{name}" in path for name in BINDER_PODS)
    return True


def _content(path: str, data: bytes) -> bytes:
    if _RAW.fullmatch(path):
        return data
    text = data.decode("utf-8", "replace")
    if (lines := _ONLY_LINES.get(path)) is not None:
        text = "".join(f"{line}\n" for line in text.splitlines() if lines.search(line))
    elif path.startswith(UDEV_RULES) and "10de" not in text.lower():
        return b""
    elif path.endswith("/cmdline") and "qemu-system-" in text:
        text = "".join(f"{a}\0" for a in text.split("\0") if _VMM_ARGUMENT.search(a))
    return redact(text).encode()


def _redacted(answers: SavedProbes) -> SavedProbes:
    kept = dict(answers.commands)
    log = kept.get("dmesg")
    if log:
        kept["dmesg"] = "".join(f"{line}\n" for line in facts_kernel.relevant(log))
    return SavedProbes(
        commands={redact(k): redact(v) if v is not None else None for k, v in kept.items()},
        nodes=dict(answers.nodes),
        peers={redact(k): redact(v) if v is not None else None for k, v in answers.peers.items()},
    )
