"""Debian packages downloaded and unpacked into the cache, never installed: a kernel with its modules, busybox.

Works unprivileged: apt gets a state folder of its own.
"""

import os
import platform
import subprocess
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


def _apt_options() -> list[str]:
    state = CACHE / "apt"
    (state / "lists" / "partial").mkdir(parents=True, exist_ok=True)
    return [
        "-oDebug::NoLocking=1",
        f"-oDir::State={state}",
        f"-oDir::State::Lists={state / 'lists'}",
        f"-oDir::Cache={state}",
        "-oDir::State::status=/var/lib/dpkg/status",
        "-oAPT::Sandbox::User=",
    ]


def unpack(package: str) -> Path:
    """Folder with the package's files, downloaded once."""
    if platform.machine() != "x86_64":
        raise Unavailable("the lab needs an x86-64 machine")
    folder = CACHE / "root" / package
    if (folder / ".complete").exists():
        return folder
    options = _apt_options()
    if not any((CACHE / "apt" / "lists").glob("*Packages*")):
        run("apt-get", *options, "update", "-qq")
    debs = CACHE / "debs"
    debs.mkdir(parents=True, exist_ok=True)
    run("apt-get", *options, "download", "-qq", package, cwd=debs)
    deb = max(debs.glob(f"{package}_*.deb"), key=lambda p: p.stat().st_mtime)
    folder.mkdir(parents=True, exist_ok=True)
    run("dpkg-deb", "-x", deb, folder)
    deb.unlink()
    (folder / ".complete").touch()
    return folder


def kernel() -> tuple[Path, Path]:
    """(vmlinuz, folder of modules) of the stock kernel of this Debian release."""
    options = _apt_options()
    if not any((CACHE / "apt" / "lists").glob("*Packages*")):
        run("apt-get", *options, "update", "-qq")
    depends = run("apt-cache", *options, "depends", KERNEL_META)
    package = next((w for w in depends.split() if w.startswith("linux-image-") and w != KERNEL_META), None)
    if package is None:
        raise Unavailable(f"{KERNEL_META} names no kernel")
    root = unpack(package)
    return next(root.glob("boot/vmlinuz-*")), next(root.glob("lib/modules/*"))


def busybox() -> Path:
    """A static busybox."""
    return unpack("busybox-static") / "bin" / "busybox"
