"""CC mode through NVIDIA's gpu-admin-tools: an external program that the operator names by path and digest.

It has no lock and no in-use check, and touches every NVIDIA device of the host as soon as it starts. So we hold the
IOMMU group of every one of them while it runs, or refuse. It does not work under kernel lockdown. Its only interface
is text for people, which is read conservatively: one line, for one device, or an error.
"""

import hashlib
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from kata_gpu.core.gpu import CcMode, GpuDevice, Kind
from kata_gpu.core.pci import PciAddress
from kata_gpu.errors import LockedOutOfBand, Misconfigured, Unavailable
from kata_gpu.host import isolate
from kata_gpu.host.vfio_device import VfioSession
from kata_gpu.ports import Host

ENTRY = "nvidia_gpu_tools.py"
RUN_S = 120.0  # 5 s per device that never boots, and interpreter start under emulation
RESET_S = 30.0
MAX_FILES, MAX_TREE_BYTES = 500, 16 << 20  # v2025.10.20 has 56 files and 0.5 MB
_HEX = re.compile(r"[0-9a-f]{64}")
_CC = re.compile(r"\bCC mode is (on|off|devtools|invalid\S*)")
_LOCKED = re.compile(r"\b(enable\S*-allow-inband-control) = 0\b")
_PPCIE = re.compile(r"\bPPCIe mode is (on|off)\b")


def read_tool(path: Path) -> dict[PurePosixPath, bytes]:
    """The tool's files: the one at `path`, or the .py files of a directory that holds `nvidia_gpu_tools.py`.

    Raises Misconfigured.
    """
    try:
        if path.is_file():
            return {PurePosixPath(ENTRY): path.read_bytes()[: MAX_TREE_BYTES + 1]}
        names = sorted(p for p in path.rglob("*.py") if p.is_file() and not p.is_symlink())
        if len(names) > MAX_FILES:
            raise Misconfigured("tool-size", "too many files", where=str(path), expected=f"at most {MAX_FILES}")
        files = {PurePosixPath(p.relative_to(path)): p.read_bytes() for p in names}
    except OSError as exc:
        raise Misconfigured(
            "tool-unreadable", "gpu-admin-tools cannot be read", where=str(path), got=exc.strerror
        ) from exc
    if PurePosixPath(ENTRY) not in files:
        raise Misconfigured("tool-entry", "not gpu-admin-tools", where=str(path), expected=ENTRY)
    if sum(map(len, files.values())) > MAX_TREE_BYTES:
        raise Misconfigured("tool-size", "too large", where=str(path), expected=f"at most {MAX_TREE_BYTES} bytes")
    return files


def tool_digest(files: Mapping[PurePosixPath, bytes]) -> str:
    """SHA-256 of a single file; of several, that of their `sha256sum` lines in path order.

    Equal to `find . -name '*.py' -type f -printf '%P\\n' | LC_ALL=C sort | xargs sha256sum | sha256sum`.
    """
    if len(files) == 1:
        return hashlib.sha256(next(iter(files.values()))).hexdigest()
    lines = (f"{hashlib.sha256(files[name]).hexdigest()}  {name}\n" for name in sorted(files, key=str))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


class AdminToolsBackend:
    """`CcBackend` over the external tool."""

    name = "gpu-admin-tools"

    def __init__(
        self, host: Host, files: Mapping[PurePosixPath, bytes], everything: Callable[[], Sequence[GpuDevice]]
    ) -> None:
        """`files` have been checked against their digest; `everything` lists all NVIDIA devices of the host."""
        self._host = host
        self._files = files
        self._everything = everything

    @classmethod
    def pinned(
        cls, host: Host, path: Path | None, sha256: str | None, everything: Callable[[], Sequence[GpuDevice]]
    ) -> "AdminToolsBackend":
        """Read the tool once and run exactly those bytes. Raises Misconfigured for another digest."""
        if path is None or sha256 is None or not _HEX.fullmatch(sha256):
            raise Misconfigured(
                "tool-pin",
                "gpu-admin-tools needs both its path and its SHA-256",
                expected="--admin-tools, --admin-tools-sha256",
            )
        files = read_tool(path)
        digest = tool_digest(files)
        if digest != sha256:
            raise Misconfigured(
                "tool-digest", "gpu-admin-tools is not what was pinned", where=str(path), expected=sha256, got=digest
            )
        return cls(host, files, everything)

    def unsupported(self, device: GpuDevice) -> str:
        """Devices that cannot be held cannot be touched either."""
        if not device.modes:
            return "the device has no CC mode"
        return "" if device.bound else "the device, or a function of its group, is not on VFIO"

    @contextmanager
    def session(self, devices: Sequence[GpuDevice]) -> Iterator["_ToolSession"]:
        """Hold every NVIDIA device of the host, not only `devices`: the tool touches all. Raises InUse, Unavailable."""
        with VfioSession(self._host, iommufd=False) as session, tempfile.TemporaryDirectory(prefix="kata-gpu-") as copy:
            session.hold(d.function for d in self._everything())
            for name, content in self._files.items():
                target = Path(copy, name)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content)
            yield _ToolSession(self._host, Path(copy, ENTRY), {d.function.address: d for d in devices})


class _ToolSession:
    """`CcSession` that runs the tool once per question."""

    def __init__(self, host: Host, entry: Path, devices: Mapping[PciAddress, GpuDevice]) -> None:
        self._host = host
        self._entry = entry
        self._devices = devices

    def query(self, address: PciAddress) -> CcMode | None:
        device = self._devices[address]
        if device.ppcie_capable and self._ask(address, "--query-ppcie-mode", _PPCIE) == "on":
            return CcMode.PPCIE
        if device.kind is Kind.NVSWITCH:
            return CcMode.OFF
        answer = self._ask(address, "--query-cc-mode", _CC)
        return None if answer.startswith("invalid") else CcMode(answer)

    def require_permitted(self, address: PciAddress, mode: CcMode) -> None:
        """A setting that the platform owner took away from this host is read as 0 before anything is tried.

        A version of the tool that cannot tell fails at its first write instead, and all is undone.
        """
        device = self._devices[address]
        options = [] if device.kind is Kind.NVSWITCH else ["--query-cc-settings"]
        options += ["--query-ppcie-settings"] if device.kind is Kind.NVSWITCH or mode is CcMode.PPCIE else []
        for option in options:
            try:
                locked = _LOCKED.search(self._run(address, option))
            except Unavailable:
                continue
            if locked is not None:
                raise LockedOutOfBand(
                    "mode-locked-out-of-band",
                    "the platform owner locked the CC mode of this device",
                    where=str(device.function),
                    expected=f"{locked.group(1)} = 1",
                    got="0",
                    hint="change the mode through the BMC (Redfish); repeating this command cannot help",
                )

    def stage(self, address: PciAddress, mode: CcMode) -> bool:
        device = self._devices[address]
        if mode is CcMode.PPCIE:
            self._run(address, "--set-ppcie-mode=on")
        elif device.kind is Kind.NVSWITCH:
            self._run(address, "--set-ppcie-mode=off")
        else:
            if device.ppcie_capable and mode is CcMode.OFF:
                self._run(address, "--set-ppcie-mode=off")
            self._run(address, f"--set-cc-mode={mode}")
        return True

    def activate(self, address: PciAddress) -> None:
        path = f"/sys/bus/pci/devices/{address}/reset"
        try:
            self._host.write(path, b"1", deadline_s=RESET_S)
        except OSError as exc:
            raise Unavailable("reset", "the device cannot be reset", where=path, got=exc.strerror) from exc

    def wait(self, address: PciAddress) -> None:
        """Every query of the tool waits for the boot itself."""

    def _ask(self, address: PciAddress, option: str, pattern: re.Pattern[str]) -> str:
        output = self._run(address, option)
        answers = {m.group(1) for line in output.splitlines() if str(address) in line for m in pattern.finditer(line)}
        if len(answers) != 1:
            raise Unavailable(
                "tool-answer", "gpu-admin-tools gave no clear answer", where=f"{address} {option}", got=output[-200:]
            )
        return answers.pop()

    def _run(self, address: PciAddress, option: str) -> str:
        command = [sys.executable, "-E", "-s", "-B", str(self._entry), "--devices", str(address), option]
        code, output, error = isolate.run(command, deadline_s=RUN_S, where=f"{address} gpu-admin-tools {option}")
        text = (output + error).decode("utf-8", "replace")
        if code:
            last = text.strip().splitlines()[-1:] or ["no output"]
            raise Unavailable("tool-failed", "gpu-admin-tools failed", where=f"{address} {option}", got=last[0][:200])
        return text
