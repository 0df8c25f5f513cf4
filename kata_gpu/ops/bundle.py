"""Use case: write a support bundle of a host."""

import json
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from kata_gpu import __version__
from kata_gpu.core.doctor import CHECKS, Profile, Report, examine
from kata_gpu.core.doctor.report import profiles_of
from kata_gpu.errors import Unavailable
from kata_gpu.host import bundle
from kata_gpu.host.facts import gather
from kata_gpu.host.probes import RecordingProbes
from kata_gpu.ops.doctor import Source
from kata_gpu.ops.observe import observe

NOTICE = """\
kata-gpu support bundle, version {version}, {now}.

It holds what `kata-gpu doctor` read, and its report in doctor.json. Replaced before it was written: values of options
that sound like secrets, URL passwords, tokens, private keys, MAC addresses, IP addresses other than loopback. Kept:
host names, PCI addresses, versions, certificates. Other processes, pods and environment variables are not collected.

Read it with: kata-gpu doctor --host-root THIS_FILE
Unpacked, it is the root of a host for kata-gpu gpus --host-root and kata-gpu kata check --host-root.
"""


@dataclass(frozen=True, slots=True)
class Written:
    """What was written."""

    entries: int
    report: Report


def create(host: Source, output: Path, *, now: datetime, profiles: frozenset[Profile] | None = None) -> Written:
    """Record everything that doctor reads, redact it, and write one archive. Doctor on it gives the same report."""
    files, probes = bundle.Recorder(host.files), RecordingProbes(host.probes)
    facts = gather(files, probes)
    with suppress(Unavailable):  # a host without PCI bus: doctor says so
        observe(files)  # recorded too, so that the inventory can be read from the bundle
    report = examine(CHECKS, facts, profiles or profiles_of(facts))
    extra = {
        "README.txt": NOTICE.format(version=__version__, now=now.isoformat(timespec="seconds")),
        "doctor.json": json.dumps(report.to_json(), indent=1) + "\n",
    }
    pids = [p.pid for p in facts.processes]
    return Written(bundle.write(output, files, probes.saved, pids=pids, extra=extra, now=now), report)
