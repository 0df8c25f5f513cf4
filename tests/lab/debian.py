"""Debian packages downloaded and unpacked into the cache, never installed: a kernel with its modules, busybox.

Works unprivileged: apt gets a state folder of its own.
"""

import os
import platform
import re
import subprocess
from itertools import pairwise
from pathlib import Path

CACHE = Path(__file__).resolve().parents[2] / ".cache" / "lab"
KERNEL_META = "linux-image-amd64"


class Unavailable(Exception):
    """Something that the lab needs cannot be had here; the message is the one line that says so."""


def run(*argv: str | Path, cwd: Path | None = None, timeout_s: int = 300) -> str:
    """Standard output, or Unavailable with the last line of the error."""
    try:
        done = subprocess.run(
            [str(a) for a in argv], cwd=cwd, capture_output=True, text=True, timeout=timeout_s, check=True,
            env=os.environ | {"LC_ALL": "C"},
        )  # fmt: skip
    except FileNotFoundError as exc:
        raise Unavailable(f"{argv[0]} is not installed") from exc
    except subprocess.TimeoutExpired as exc:
        raise Unavailable(f"{argv[0]} did not finish in {timeout_s} s") from exc
    except subprocess.CalledProcessError as exc:
        lines = (exc.stderr or exc.stdout or "").strip().splitlines()
        raise Unavailable(f"{argv[0]} failed: {lines[-1] if lines else exc.returncode}") from exc
    return done.stdout


def _archive() -> str:
    """Where this machine gets Debian from: the first archive of its own apt configuration."""
    for path in (Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("debian*"))):
        if path.is_file() and (found := re.search(r"(?m)^(?:URIs:|deb(?: \[[^]]*\])?)\s+(\S+)", path.read_text())):
            return found.group(1)
    raise Unavailable("this machine names no Debian archive")


class Apt:
    """Packages of some suites, with a state folder of its own; nothing is installed and no root is needed."""

    def __init__(self, name: str, suites: tuple[str, ...]) -> None:
        """Packages of `suites`, whatever this machine itself runs."""
        if platform.machine() != "x86_64":
            raise Unavailable("the lab needs an x86-64 machine")
        self.folder = CACHE / name
        state = self.folder / "apt"
        sources = state / "sources.list"
        try:
            (state / "lists" / "partial").mkdir(parents=True, exist_ok=True)
            sources.write_text("".join(f"deb {_archive()} {suite} main\n" for suite in suites))
        except OSError as exc:
            raise Unavailable(f"{state} cannot be written: {exc.strerror}") from exc
        self._options = ["-oDebug::NoLocking=1", f"-oDir::State={state}", f"-oDir::State::Lists={state / 'lists'}",
                         f"-oDir::Cache={state}", "-oDir::State::status=/dev/null", "-oAPT::Sandbox::User=",
                         f"-oDir::Etc::SourceList={sources}", "-oDir::Etc::SourceParts=/dev/null"]  # fmt: skip
        if not any((state / "lists").glob("*Packages*")):
            run("apt-get", *self._options, "update", "-qq")

    def depends(self, package: str) -> list[str]:
        """Names that a package depends on directly."""
        words = run("apt-cache", *self._options, "depends", package).split()
        return [name for key, name in pairwise(words) if key == "Depends:"]

    def unpack(self, package: str) -> Path:
        """Folder with the files of one package."""
        root = self.folder / package
        if not (root / ".complete").exists():
            debs = self.folder / "debs"
            debs.mkdir(exist_ok=True)
            run("apt-get", *self._options, "download", "-qq", package, cwd=debs)
            self._extract(debs, f"{package}_*.deb", root)
        return root

    def unpack_closure(self, package: str, suite: str) -> Path:
        """Folder with the files of a package of `suite` and of all that it depends on."""
        root = self.folder / f"{package}-closure"
        if not (root / ".complete").exists():
            archives = self.folder / "apt" / "archives"
            (archives / "partial").mkdir(parents=True, exist_ok=True)
            run("apt-get", *self._options, "install", "-qq", "-y", "--download-only", "--no-install-recommends",
                "-t", suite, package, timeout_s=600)  # fmt: skip
            self._extract(archives, "*.deb", root)
        return root

    @staticmethod
    def _extract(debs: Path, pattern: str, root: Path) -> None:
        root.mkdir(parents=True, exist_ok=True)
        for deb in debs.glob(pattern):
            run("dpkg-deb", "-x", deb, root)
            deb.unlink()
        (root / ".complete").touch()


def kernel(suite: str) -> tuple[Path, Path]:
    """(vmlinuz, folder of modules) of the stock kernel of a Debian release."""
    apt = Apt(suite, (suite,))
    package = next((name for name in apt.depends(KERNEL_META) if name.startswith("linux-image-")), None)
    if package is None:
        raise Unavailable(f"{KERNEL_META} names no kernel")
    root = apt.unpack(package)
    modules = [*root.glob("lib/modules/*"), *root.glob("usr/lib/modules/*")]  # merged since trixie
    return next(root.glob("boot/vmlinuz-*")), modules[0]


def busybox() -> Path:
    """A static busybox."""
    root = Apt("bookworm", ("bookworm",)).unpack("busybox-static")
    return next(p for p in (root / "bin/busybox", root / "usr/bin/busybox") if p.exists())


def qemu_with_vfio_user() -> list[str]:
    """Command of a QEMU that has `vfio-user-pci` (10.1 and newer), run from its unpacked packages."""
    root = Apt("trixie-backports", ("trixie", "trixie-backports")).unpack_closure("qemu-system-x86", "trixie-backports")
    loader = next(root.glob("usr/lib64/ld-linux-x86-64.so.2"), None) or next(root.glob("**/ld-linux-x86-64.so.2"))
    libraries = f"{root}/usr/lib/x86_64-linux-gnu"
    return [str(loader), "--library-path", libraries, f"{root}/usr/bin/qemu-system-x86_64",
            "-L", f"{root}/usr/share/qemu", "-L", f"{root}/usr/share/seabios"]  # fmt: skip
