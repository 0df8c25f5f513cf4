"""Use case: examine a host, wherever its facts come from."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from kata_gpu.core.doctor import CHECKS, Profile, Report, examine
from kata_gpu.core.doctor.report import profiles_of
from kata_gpu.errors import Misconfigured
from kata_gpu.host import bundle
from kata_gpu.host.facts import gather
from kata_gpu.host.probes import LiveProbes, SavedProbes
from kata_gpu.host.real import RealHost
from kata_gpu.ports import HostFiles, Probes


@dataclass(frozen=True, slots=True)
class Source:
    """A host to examine: its files and what answers for its programs."""

    files: HostFiles
    probes: Probes


@contextmanager
def source(*, root: Path | None = None, sim: Path | None = None) -> Iterator[Source]:
    """This host; or a mounted root, an unpacked or packed bundle; or a simulated host.

    Programs of another root are never run: what a bundle did not record is unknown. Raises Misconfigured for a path
    that is not there, Malformed for an archive that is no bundle.
    """
    if sim is not None:
        from kata_gpu.host.simkernel.kernel import SimKernel

        yield Source(SimKernel(path=sim), SavedProbes())
    elif root is None or root.resolve() == Path("/"):
        yield Source(RealHost(), LiveProbes())
    elif root.is_dir():
        yield Source(RealHost(root.resolve()), SavedProbes.load(root))
    elif root.is_file():
        with tempfile.TemporaryDirectory(prefix="kata-gpu-bundle-") as name:
            bundle.unpack(root, Path(name))
            yield Source(RealHost(Path(name)), SavedProbes.load(Path(name)))
    else:
        raise Misconfigured("no-such-root", "neither a directory nor a bundle", where=str(root),
                            hint="give a mounted host root, or a file that `kata-gpu bundle` wrote")  # fmt: skip


def diagnose(host: Source, profiles: frozenset[Profile] | None = None) -> Report:
    """Every check on this host, for the profiles asked for or those that fit it."""
    facts = gather(host.files, host.probes)
    return examine(CHECKS, facts, profiles or profiles_of(facts))
