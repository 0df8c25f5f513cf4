"""`make images`: builds the three images with whatever builder answers here; one line where nothing can be built.

`--base` names the base image of both stages: any Debian with Python 3.11 or newer, and CA certificates. Name it with
its digest (`name@sha256:...`); a name alone means whatever the registry gives today, and is said so.
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from kata_gpu import __version__

FOLDER = Path(__file__).resolve().parent / "images"
BUILDERS = ("podman", "buildah", "docker")
BASE = "docker.io/library/python:3.11-slim-bookworm"
ANSWER_S = 20  # a daemon that takes longer to say who it is will not build
PULL_S = 600  # some 50 MB


def _answers(argv: list[str], timeout_s: float) -> bool:
    try:
        return subprocess.run(argv, capture_output=True, timeout=timeout_s, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def builder() -> str | None:
    """The first program that is installed and whose engine answers."""
    return next((p for p in BUILDERS if shutil.which(p) is not None and _answers([p, "info"], ANSWER_S)), None)


def has_base(program: str, base: str) -> bool:
    """Whether the base image is here, or comes when it is asked for."""
    here = ["inspect", "--type", "image"] if program == "buildah" else ["image", "inspect"]
    return _answers([program, *here, base], ANSWER_S) or _answers([program, "pull", base], PULL_S)


def commands(program: str, base: str) -> list[list[str]]:
    """One build each; the context is the repository, less what `.dockerignore` leaves out."""
    return [
        [program, "build", "--build-arg", f"BASE_IMAGE={base}", "--file", str(path),
         "--tag", f"ghcr.io/kata-gpu/{path.stem}:{__version__}", str(FOLDER.parents[1])]
        for path in sorted(FOLDER.glob("*.Containerfile"))
    ]  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """0 where all images are built, or where nothing here can build; else the builder's exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default=BASE, help="base image, with its digest")
    base = parser.parse_args(argv).base
    program = builder()
    if program is None:
        print(f"images: no builder answers here (looked for {', '.join(BUILDERS)}); nothing was built")
        return 0
    if not has_base(program, base):
        print(f"images: {program} has no base image {base} and cannot pull it (BASE_IMAGE=...); nothing was built")
        return 0
    if "@sha256:" not in base:
        print(f"images: base image {base} is not pinned by a digest (BASE_IMAGE=name@sha256:...)", file=sys.stderr)
    return next((code for line in commands(program, base) if (code := subprocess.run(line, check=False).returncode)), 0)


if __name__ == "__main__":
    sys.exit(main())
