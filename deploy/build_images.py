"""`make images`: builds the three images with whatever builder answers here; one line where none does."""

import shutil
import subprocess
import sys
from pathlib import Path

from kata_gpu import __version__

FOLDER = Path(__file__).resolve().parent / "images"
BUILDERS = (("podman", "build"), ("buildah", "build"), ("docker", "build"))
ANSWER_S = 20  # a daemon that takes longer to say who it is will not build


def builder() -> tuple[str, str] | None:
    """The first program that is installed and whose engine answers."""
    for program, verb in BUILDERS:
        if shutil.which(program) is None:
            continue
        try:
            done = subprocess.run([program, "info"], capture_output=True, timeout=ANSWER_S, check=False)
        except (OSError, subprocess.TimeoutExpired):
            continue
        if done.returncode == 0:
            return program, verb
    return None


def commands(program: str, verb: str) -> list[list[str]]:
    """One build each; the context is the repository."""
    names = {path.stem: path for path in sorted(FOLDER.glob("*.Containerfile"))}
    return [
        [program, verb, "--file", str(path), "--tag", f"ghcr.io/kata-gpu/{name}:{__version__}", str(FOLDER.parents[1])]
        for name, path in names.items()
    ]


def main() -> int:
    """0 where all images are built, or where nothing here can build."""
    found = builder()
    if found is None:
        print(f"images: no builder answers here (looked for {', '.join(p for p, _ in BUILDERS)}); nothing was built")  # noqa: T201
        return 0
    return next((code for argv in commands(*found) if (code := subprocess.run(argv, check=False).returncode)), 0)


if __name__ == "__main__":
    sys.exit(main())
