"""Versions, durations and memory sizes as Kubernetes and Go write them; None for anything else."""

import re

_VERSION = re.compile(r"(?<![\d.])v?(\d{1,4})\.(\d{1,4})(?:\.(\d{1,6}))?")
_DURATION = re.compile(r"(?:\d{1,9}(?:\.\d{1,9})?(?:ns|us|µs|ms|h|m|s))+")
_PART = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)(ns|us|µs|ms|h|m|s)")
_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_MEMORY = re.compile(r"(\d{1,20})(Ki|Mi|Gi|Ti|Pi|k|M|G|T|P|m|)")
_BYTES = {
    "": 1.0, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15,
    "Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40, "Pi": 2.0**50,
}  # fmt: skip


def version(text: str | None) -> tuple[int, int, int] | None:
    """The first version number in a text: `v1.34.2`, `containerd github.com/... v2.2.0 ...`."""
    match = _VERSION.search(text or "")
    return (int(match[1]), int(match[2]), int(match[3] or 0)) if match else None


def duration_s(text: str) -> float | None:
    """A Go duration in seconds: `20m`, `1h0m0s`."""
    if not _DURATION.fullmatch(text.strip()):
        return None
    return sum(float(number) * _SECONDS[unit] for number, unit in _PART.findall(text))


def memory_mib(text: str) -> int | None:
    """A Kubernetes memory quantity in MiB: `131072Mi`, `263856004Ki`."""
    match = _MEMORY.fullmatch(text.strip())
    return int(int(match[1]) * _BYTES[match[2]] / 2**20) if match else None
