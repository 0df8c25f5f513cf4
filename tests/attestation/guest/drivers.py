"""Builds the fake driver libraries once, and runs guest code in a process that loads them."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from attestation.simulate.nvidia import NvidiaForge
from attestation.values import Architecture

HERE = Path(__file__).parent
NO_COMPILER = "driver: no C compiler"
NONCE = bytes(range(1, 33))


def build(folder: Path) -> Path:
    """Folder with libnvidia-ml.so.1 and libnvidia-nscq.so.2."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip(NO_COMPILER)
    for source, library in (("fake_nvml.c", "libnvidia-ml.so.1"), ("fake_nscq.c", "libnvidia-nscq.so.2")):
        command = [
            compiler,
            "-shared",
            "-fPIC",
            "-O1",
            "-Wall",
            "-Werror",
            "-o",
            str(folder / library),
            str(HERE / source),
        ]
        subprocess.run(command, check=True)
    return folder


def fill(folder: Path, *, gpus: int = 2) -> Path:
    """Forged reports and chains for the fake drivers; they put the nonce in themselves."""
    forge = NvidiaForge()
    for arch, kind, count in ((Architecture.HOPPER, "gpu", gpus), (Architecture.LS10, "switch", 2)):
        for index in range(count):
            forged = forge.device(arch, index, nonce=NONCE)
            (folder / f"{kind}{index}.report").write_bytes(forged.report)
            (folder / f"{kind}{index}.chain").write_bytes(forged.chain)
    return folder


def in_process(code: str, libraries: Path, folder: Path, **environment: object) -> Any:
    """Run code that prints one JSON document; the library names are found through the loader's path."""
    settings = {name: str(value) for name, value in environment.items()}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ
        | {"LD_LIBRARY_PATH": str(libraries), "FAKE_NVML_DIR": str(folder), "FAKE_NSCQ_DIR": str(folder)}
        | {"PYTHONPATH": os.pathsep.join(sys.path)}
        | settings,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
