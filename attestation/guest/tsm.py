"""The CPU TEE's report through configfs-tsm (tee.md 1.7): one interface of the kernel for SEV-SNP and TDX."""

import os
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from attestation.errors import Malformed, Unavailable
from attestation.values import JsonObject, Tee

REPORT_ROOT = Path("/sys/kernel/config/tsm/report")
REPORT_DATA_BYTES = 64
PROVIDERS = {"sev_guest": Tee.SNP, "tdx_guest": Tee.TDX}  # Documentation/ABI/testing/configfs-tsm-report
MAX_BLOB_BYTES = 256 << 10  # an SNP report is 1184 bytes, a TDX quote about 8 KiB, a certificate table 16 KiB
ATTEMPTS = 3  # another reader of the same entry is a mistake; of the interface as a whole it is normal
CCEL = Path("/sys/firmware/acpi/tables/data/CCEL")
_BLOCK_BYTES = 64 << 10


class Configfs(Protocol):
    """The report folder of configfs-tsm. Making an entry makes its attributes; tests hold a simulated kernel."""

    def mkdir(self, entry: str) -> None:
        """A new entry; one of that name, left by a killed run, is replaced."""

    def rmdir(self, entry: str) -> None:
        """Remove an entry."""

    def read(self, entry: str, attribute: str) -> bytes:
        """A whole attribute."""

    def write(self, entry: str, attribute: str, data: bytes) -> None:
        """A whole attribute, in one call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigfsTsm:
    """Quotes of this VM. `ccel` is the firmware's event log, which TDX evidence carries where the guest has one."""

    configfs: Configfs
    entry: str = f"kata-gpu-{os.getpid()}"
    ccel: Path = CCEL

    @property
    def tee(self) -> Tee:
        """Which TEE the kernel drives, from the provider of a fresh entry."""
        with self._fresh_entry():
            return self._provider()

    def quote(self, report_data: bytes) -> JsonObject:
        """`primary_evidence`: `raw` report and `cert_table` for SNP, `quote` and `cc_eventlog` for TDX.

        `generation` is read before and after: a report that somebody else asked for in between is asked for again.
        """
        if len(report_data) != REPORT_DATA_BYTES:
            raise Malformed("report-data", "wrong length", expected=f"{REPORT_DATA_BYTES} bytes", got=len(report_data))
        with self._fresh_entry():
            tee = self._provider()
            options = {"inblob": report_data} | ({"privlevel": b"0"} if tee is Tee.SNP else {})
            for _ in range(ATTEMPTS):
                before = self._generation()
                for attribute, value in options.items():
                    self.configfs.write(self.entry, attribute, value)
                report = self.configfs.read(self.entry, "outblob")
                table = self.configfs.read(self.entry, "auxblob") if tee is Tee.SNP else b""
                if self._generation() == before + len(options):  # each write of an option counts
                    return _snp(report, table) if tee is Tee.SNP else _tdx(report, self.ccel)
        raise Unavailable("tsm-generation", "another program uses this entry", where=self.entry)

    @contextmanager
    def _fresh_entry(self) -> Iterator[None]:
        self.configfs.mkdir(self.entry)
        try:
            yield
        finally:
            self.configfs.rmdir(self.entry)

    def _provider(self) -> Tee:
        name = self.configfs.read(self.entry, "provider").decode("ascii", "replace").strip()
        if (tee := PROVIDERS.get(name)) is None:
            raise Unavailable("tsm-provider", "unknown TEE", expected="|".join(PROVIDERS), got=repr(name[:40]))
        return tee

    def _generation(self) -> int:
        text = self.configfs.read(self.entry, "generation").decode("ascii", "replace").strip()
        if not text.isdecimal():
            raise Malformed("tsm-generation", "not a number", where=f"{self.entry}/generation", got=repr(text[:40]))
        return int(text)


def _snp(report: bytes, table: bytes) -> JsonObject:
    raw = {"raw": b64encode(report).decode("ascii")}
    return raw | ({"cert_table": b64encode(table).decode("ascii")} if table else {})


def _tdx(quote: bytes, ccel: Path) -> JsonObject:
    log = read_blob(ccel) if ccel.exists() else None
    return {
        "quote": b64encode(quote).decode("ascii"),
        "cc_eventlog": None if log is None else b64encode(log).decode("ascii"),
    }


@dataclass(frozen=True, slots=True)
class KernelConfigfs:
    """The real one."""

    root: Path = REPORT_ROOT

    def mkdir(self, entry: str) -> None:
        """A new entry; one of that name, left by a killed run, is replaced."""
        try:
            if (self.root / entry).exists():
                (self.root / entry).rmdir()
            (self.root / entry).mkdir()
        except OSError as exc:
            raise Unavailable(
                "tsm", "no TEE report interface (not in a confidential VM, or no right to use it)",
                where=str(self.root), expected="an SNP or TDX guest; without one: `kata-gpu-kbs simulate vm`",
                got=exc.strerror,
            ) from exc  # fmt: skip

    def rmdir(self, entry: str) -> None:
        """Remove an entry; the kernel removes its attributes."""
        (self.root / entry).rmdir()

    def read(self, entry: str, attribute: str) -> bytes:
        """A whole attribute, bounded."""
        return read_blob(self.root / entry / attribute)

    def write(self, entry: str, attribute: str, data: bytes) -> None:
        """A whole attribute: the kernel takes one write or refuses it."""
        path = self.root / entry / attribute
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
            try:
                if os.write(fd, data) != len(data):
                    raise Unavailable("tsm-write", "the kernel took only a part", where=str(path))
            finally:
                os.close(fd)
        except OSError as exc:
            raise Unavailable("tsm-write", exc.strerror or "cannot write", where=str(path)) from exc


def read_blob(path: Path) -> bytes:
    """A kernel file whose size is not known in advance, bounded."""
    blocks, size = [], 0
    try:
        with path.open("rb", buffering=0) as file:
            while block := file.read(_BLOCK_BYTES):
                blocks.append(block)
                size += len(block)
                if size > MAX_BLOB_BYTES:
                    raise Malformed(
                        "tsm-size", "too large", where=str(path), expected=f"at most {MAX_BLOB_BYTES} bytes"
                    )
    except OSError as exc:
        raise Unavailable("tsm-read", exc.strerror or "cannot read", where=str(path)) from exc
    return b"".join(blocks)
