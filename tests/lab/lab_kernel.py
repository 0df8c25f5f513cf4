"""A small kernel with IOMMUFD and the lockdown LSM, built once from Debian's kernel source.

No Debian kernel has IOMMUFD. The image is kept in the user's cache folder, outside the repository, by the digest of
its configuration: `make clean` does not cost six minutes.
"""

import hashlib
import os
import shutil
import tempfile
from pathlib import Path

from tests.lab.debian import Apt, Unavailable, run

SUITE, SOURCE = "trixie", "linux-source-6.12"
PROFILE = "lab-6.12"  # its name in the conformance table
CONFIG = Path(__file__).with_name("kernel.config")
TOOLS = ("gcc", "make", "flex", "bison", "bc", "xz", "tar")
HEADERS = (Path("/usr/include/libelf.h"), Path("/usr/include/gelf.h"))  # objtool
BUILD_S = 3600  # 6 minutes on two idle cores
PROMISED = ("IOMMUFD", "VFIO_DEVICE_CDEV", "VFIO_GROUP", "VFIO_NOIOMMU", "SECURITY_LOCKDOWN_LSM", "INTEL_IOMMU", "DEVMEM",
            "9P_FS", "KVM_AMD")  # fmt: skip


def image(*, build: bool = True) -> Path:
    """The bzImage, built now where there is none yet. Raises Unavailable, saying what is missing."""
    digest = hashlib.sha256(SOURCE.encode() + CONFIG.read_bytes()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kata-gpu-lab"
    kept = cache / f"bzImage-{digest}"
    if kept.exists():
        return kept
    if not build:
        raise Unavailable("the kernel with IOMMUFD has not been built yet")
    if missing := [tool for tool in TOOLS if shutil.which(tool) is None]:
        raise Unavailable(f"building the kernel with IOMMUFD needs {', '.join(missing)}")
    if not any(header.exists() for header in HEADERS):
        raise Unavailable("building the kernel with IOMMUFD needs libelf-dev")
    archive = next(Apt("trixie-source", (SUITE,)).unpack(SOURCE).glob("usr/src/linux-source-*.tar.xz"))
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="kernel-", dir=archive.parent) as folder:
        built = _build(archive, Path(folder))
        partial = kept.with_suffix(f".{os.getpid()}")
        shutil.copyfile(built, partial)
        partial.rename(kept)
    return kept


def _build(archive: Path, folder: Path) -> Path:
    run("tar", "-xf", archive, "-C", folder, "--strip-components=1")
    run("make", "-s", "tinyconfig", cwd=folder)
    with (folder / ".config").open("a") as config:
        config.write(CONFIG.read_text())
    run("make", "-s", "olddefconfig", cwd=folder)
    lines = (folder / ".config").read_text().splitlines()
    if lost := [name for name in PROMISED if f"CONFIG_{name}=y" not in lines]:
        raise Unavailable(f"the kernel source dropped {', '.join(lost)} from its configuration")
    run("nice", "make", "-s", f"-j{os.cpu_count() or 1}", "bzImage", cwd=folder, timeout_s=BUILD_S)
    return folder / "arch/x86/boot/bzImage"
