"""Reading a host without surprises: text or None, names or nothing, always bounded."""

from dataclasses import dataclass

from kata_gpu.errors import TimedOut
from kata_gpu.ports import FileKind, HostFiles, Probes

MAX_TEXT = 1 << 19  # the kernel configuration (300 KiB) is the largest text that doctor reads
MAX_NAMES = 8192  # PCI functions, modules or processes of a large host
RISKY_READ_S = 1.0  # a healthy driver_override answers in microseconds


@dataclass(frozen=True, slots=True)
class Look:
    """A host seen through its ports."""

    files: HostFiles
    probes: Probes

    def data(self, path: str, *, max_bytes: int = MAX_TEXT) -> bytes | None:
        """Contents cut at `max_bytes`, None where they cannot be read."""
        try:
            return self.files.read(path, max_bytes=max_bytes)
        except (OSError, ValueError):  # ValueError: a path from somebody's configuration with a NUL in it
            return None

    def text(self, path: str, *, max_bytes: int = MAX_TEXT) -> str | None:
        """The same as text; bytes that are not UTF-8 are replaced."""
        data = self.data(path, max_bytes=max_bytes)
        return None if data is None else data.decode("utf-8", "replace")

    def line(self, path: str) -> str | None:
        """A one-line attribute, stripped."""
        text = self.text(path, max_bytes=4096)
        return None if text is None else text.strip()

    def risky_line(self, path: str) -> str | None:
        """A one-line attribute whose read may block for ever; "(blocked)" when it does."""
        try:
            return self.files.read(path, max_bytes=4096, deadline_s=RISKY_READ_S).decode("utf-8", "replace").strip()
        except TimedOut:
            return "(blocked)"
        except OSError:
            return None

    def kind(self, path: str) -> FileKind | None:
        """What is at a path, None where nothing is or where it is no path."""
        try:
            return self.files.kind(path)
        except ValueError:
            return None

    def names(self, path: str) -> tuple[str, ...]:
        """Names in a directory, at most `MAX_NAMES`; none where it cannot be listed."""
        try:
            return tuple(self.files.listdir(path)[:MAX_NAMES])
        except (OSError, ValueError):
            return ()

    def link(self, path: str) -> str | None:
        """Target of a link, None where there is none."""
        try:
            return self.files.readlink(path)
        except (OSError, ValueError):
            return None

    def target(self, path: str) -> str | None:
        """Last part of a link's target."""
        target = self.link(path)
        return None if target is None else target.rstrip("/").rpartition("/")[2]
