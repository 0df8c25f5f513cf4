"""`make release`: wheel and sdist of the commit, built twice and equal, installed where nothing else is; with bills of
materials of what is locked, and the SHA-256 of every file.

What is released is what is committed: the copies come from `git archive`, with other file times and in another folder,
so that whatever would leak in from there shows as a difference. Times inside are those of the commit
(https://reproducible-builds.org/specs/source-date-epoch/), modes those of UMASK whatever the caller's is.
"""

import gzip
import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import venv
from pathlib import Path

from kata_gpu import __version__

ROOT = Path(__file__).resolve().parent.parent
STEM = f"kata_gpu-{__version__}"
COMMANDS = ("kata-gpu", "kata-gpu-kbs", "kata-gpu-guest")
# What only an installed copy with all its data files can do, from a folder that is not the checkout.
SMOKE = (
    ("kata-gpu", "sim", "create", "host.json", "--preset", "hgx-h100"),
    ("kata-gpu", "gpus", "--sim", "host.json"),
    ("kata-gpu", "doctor", "--help"),
    ("kata-gpu", "dra", "classes"),
    ("kata-gpu-kbs", "simulate", "roots", "roots"),
    ("kata-gpu-kbs", "verify", "gpu", "--help"),
    ("kata-gpu-guest", "model", "decrypt", "--help"),
)


UMASK = 0o022  # wheels record the modes of the files that they were built from
BILLS = ("sbom.json", "sbom-guest.json", "sbom-kbs.json", "sbom-node.json")  # of `make sbom`


class Failed(Exception):
    """The release is not fit to be published; the message says why."""


def _run(argv: list[str], *, cwd: Path = ROOT, epoch: int = 0) -> str:
    """Standard output of a command, or its last words as our failure."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}  # noqa: TID251
    env = kept | ({"SOURCE_DATE_EPOCH": str(epoch)} if epoch else {})
    done = subprocess.run(argv, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Failed(f"{' '.join(argv)}: exit {done.returncode}: {(done.stderr or done.stdout).strip()[-2000:]}")
    return done.stdout


def _normalised(sdist: Path, epoch: int) -> bytes:
    """The same files in name order, owned by nobody in particular, at the time of the commit."""
    plain = io.BytesIO()
    with tarfile.open(sdist) as source, tarfile.open(fileobj=plain, mode="w", format=tarfile.PAX_FORMAT) as target:
        for member in sorted(source.getmembers(), key=lambda found: found.name):
            member.uid = member.gid = 0
            member.uname = member.gname = ""
            member.mtime, member.pax_headers = epoch, {}
            member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
            target.addfile(member, source.extractfile(member) if member.isfile() else None)
    return gzip.compress(plain.getvalue(), mtime=epoch)


def build(folder: Path, *, commit: str, touched: int) -> dict[str, bytes]:
    """Name and content of the wheel and the sdist of `commit`, built in `folder` from files of the time `touched`."""
    tree, out = folder / "tree", folder / "out"
    tree.mkdir(parents=True)
    archive = folder / "tree.tar"
    _run(["git", "-c", f"tar.umask={UMASK:04o}", "archive", "--output", str(archive), commit])
    with tarfile.open(archive) as tar:
        tar.extractall(tree, filter="data")
    for path in tree.rglob("*"):
        os.utime(path, (touched, touched))
    epoch = int(_run(["git", "show", "-s", "--format=%ct", commit]))
    before = os.umask(UMASK)
    try:
        _run([sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out)], cwd=tree, epoch=epoch)
    finally:
        os.umask(before)
    wheel, sdist = out / f"{STEM}-py3-none-any.whl", out / f"{STEM}.tar.gz"
    return {wheel.name: wheel.read_bytes(), sdist.name: _normalised(sdist, epoch)}


def bills(folder: Path) -> dict[str, bytes]:
    """Name and content of the bills of materials in `folder`."""
    missing = [name for name in BILLS if not (folder / name).is_file()]
    if missing:
        raise Failed(f"{folder} has no {', '.join(missing)}: run `make sbom`")
    return {name: (folder / name).read_bytes() for name in BILLS}


def check_installs(folder: Path, artefacts: list[Path]) -> None:
    """Install the locked requirements into an empty environment, then each artefact by itself, and run it."""
    environment, elsewhere = folder / "venv", folder / "elsewhere"
    venv.create(environment, with_pip=True)
    elsewhere.mkdir(parents=True)
    binaries = environment / "bin"
    pip = [str(binaries / "pip"), "--disable-pip-version-check"]
    _run([*pip, "install", "-q", "--require-hashes", "-r", str(ROOT / "requirements/runtime.lock")])
    for artefact in artefacts:
        _run([*pip, "install", "-q", "--no-deps", "--no-build-isolation", str(artefact)], cwd=elsewhere)
        _run([*pip, "check"], cwd=elsewhere)
        for name in COMMANDS:
            said = _run([str(binaries / name), "--version"], cwd=elsewhere).strip()
            if not said.endswith(f"version {__version__}"):
                raise Failed(f"{artefact.name}: `{name} --version` says {said!r}, expected version {__version__}")
        for name, *arguments in SMOKE:
            _run([str(binaries / name), *arguments], cwd=elsewhere)
        _run([*pip, "uninstall", "-q", "-y", "kata-gpu"], cwd=elsewhere)
        for name in COMMANDS:
            if (binaries / name).exists():
                raise Failed(f"{artefact.name}: uninstalled, but {name} is still there")
        shutil.rmtree(elsewhere)
        elsewhere.mkdir()


def main(argv: list[str] | None = None) -> int:
    """Write the artefacts and their SHA-256 into the folder that is named; 1 where anything differs or fails."""
    arguments = sys.argv[1:] if argv is None else argv
    if len(arguments) != 1:
        print("usage: python -m deploy.release FOLDER", file=sys.stderr)
        return 2
    target, commit = Path(arguments[0]).resolve(), "HEAD"
    with tempfile.TemporaryDirectory() as scratch:
        try:
            first = build(Path(scratch, "first"), commit=commit, touched=1_700_000_000)
            second = build(Path(scratch, "second/deeper"), commit=commit, touched=1_600_000_000)
            unequal = sorted(name for name in first if first[name] != second.get(name))
            if unequal or first.keys() != second.keys():
                raise Failed(f"two builds of one commit differ: {', '.join(unequal) or 'in their file names'}")
            released = first | bills(ROOT / "out")
            target.mkdir(parents=True, exist_ok=True)
            for name, content in released.items():
                (target / name).write_bytes(content)
            check_installs(Path(scratch, "install"), [target / name for name in first])
        except Failed as failure:
            print(f"release: {failure}", file=sys.stderr)
            return 1
    sums = "".join(f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in sorted(released.items()))
    (target / "SHA256SUMS").write_text(sums)
    print(sums, end="")
    print(f"two builds equal, both installed and run in an empty environment: {target}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
