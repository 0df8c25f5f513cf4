"""Run-time measurements against reference values: every mismatch, with what would explain it (gpu-attestation.md 3.4).

Nothing stops at the first difference. A mismatch names the index, the document, all alternatives and the run-time
value, and says what is known about indices 9 and 35, which make up most of the questions that users ask.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from attestation.findings import Finding, failed, passed
from attestation.verify.rim import RimNeed, Slot, VerifiedRim

MEASUREMENT = "measurement"  # name of the check; the index follows in brackets
NVDEC0_INDEX = 35  # only meaningful while NVDEC0 is enabled (3.4 rule 6)
MODE_INDEX = 9  # of VBIOS documents: reflects driver generation and CC, PPCIE or devtools mode (3.5)

_HINTS = {
    (Slot.VBIOS, MODE_INDEX): (
        "index 9 changes with the driver generation and with CC, Protected PCIe or devtools mode, not with the VBIOS. "
        "Documents signed in 2023 predate drivers of 550 and later: fetch the re-issued document of the same id. If it "
        "is current, the GPU is in another mode (devtools, PPCIE) than the document is for"
    ),
    (Slot.DRIVER, NVDEC0_INDEX): "index 35 depends on NVDEC0 and on Protected PCIe; it is compared while NVDEC0 is on",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Mismatch:
    """One reference value that the device does not have. `got` is None where the report has no such measurement."""

    index: int
    name: str
    alternatives: tuple[bytes, ...]
    got: bytes | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Outcome for one document. `compared` counts the active indices that were looked at."""

    need: RimNeed
    rim: VerifiedRim
    compared: int
    mismatches: tuple[Mismatch, ...]

    @property
    def matches(self) -> bool:
        """Whether something was compared and all of it was equal."""
        return self.compared > 0 and not self.mismatches


def compare_measurements(
    measurements: Sequence[bytes], rim: VerifiedRim, need: RimNeed, *, nvdec0_enabled: bool
) -> Comparison:
    """Every active index of `rim` against run-time block index + 1 (3.4 rules 3 to 6).

    Nearly every device has the first alternative everywhere: one comparison of all indices, and only what differs from
    that is looked at index by index.
    """
    golden_values = rim.content.golden
    if (nvdec0_enabled or NVDEC0_INDEX not in golden_values) and _is_usual(measurements, rim):
        return Comparison(need=need, rim=rim, compared=len(golden_values), mismatches=())
    mismatches: list[Mismatch] = []
    compared = 0
    for index, golden in golden_values.items():
        if index == NVDEC0_INDEX and not nvdec0_enabled:
            continue
        compared += 1
        got = measurements[index] if index < len(measurements) else None
        if got not in golden.alternatives:
            mismatches.append(Mismatch(index=index, name=golden.name, alternatives=golden.alternatives, got=got))
    return Comparison(need=need, rim=rim, compared=compared, mismatches=tuple(mismatches))


def _is_usual(measurements: Sequence[bytes], rim: VerifiedRim) -> bool:
    try:
        return rim.pick(measurements) == rim.usual
    except IndexError:  # an active index that the report does not have
        return False


def shared_indices(comparisons: Sequence[Comparison]) -> set[int]:
    """Indices that every document claims; none where there are not two."""
    if len(comparisons) < 2:
        return set()
    first, *others = (c.rim.content.golden.keys() for c in comparisons)
    return set(first).intersection(*others)


def judge_conflicts(comparisons: Sequence[Comparison], subject: str) -> list[Finding]:
    """3.4 rule 2: an index belongs to one document."""
    if len(comparisons) < 2:
        return []
    shared = shared_indices(comparisons)
    if shared:
        return [
            failed(
                "index-conflict",
                "rim-index-conflict",
                expected="no index in two documents",
                got=sorted(shared),
                subject=subject,
            )
        ]
    return [passed("index-conflict", "none", subject=subject)]


def find_nearest(
    measurements: Sequence[bytes], known: Iterable[VerifiedRim], need: RimNeed, *, nvdec0_enabled: bool
) -> Comparison | None:
    """Of other documents of this product: the one that fits best, if it fits better than half."""
    candidates = (
        compare_measurements(measurements, rim, need, nvdec0_enabled=nvdec0_enabled)
        for rim in known
        if rim.content.product == need.product
    )
    best = min(candidates, key=lambda c: (len(c.mismatches), -c.compared), default=None)
    return best if best is not None and 2 * len(best.mismatches) < best.compared else None


def explain_mismatches(comparison: Comparison, nearest: Comparison | None, *, subject: str) -> tuple[Finding, ...]:
    """One failed finding per mismatch; the nearest known document is named when it is another one and fits better."""
    need, rim = comparison.need, comparison.rim
    near = ""
    if nearest is not None and len(nearest.mismatches) < len(comparison.mismatches):
        fit = f"{nearest.compared - len(nearest.mismatches)} of {nearest.compared}"
        near = (
            f"nearest known document: version {nearest.rim.content.version}, sha256 {nearest.rim.sha256[:16]} ({fit})"
        )
    findings: list[Finding] = []
    for mismatch in comparison.mismatches:
        hint = "; ".join(filter(None, (_HINTS.get((need.slot, mismatch.index), ""), near)))
        missing = mismatch.got is None
        findings.append(
            failed(
                f"{MEASUREMENT}[{mismatch.index}]",
                "measurement-missing" if missing else "measurement-mismatch",
                expected="|".join(dict.fromkeys(value.hex() for value in mismatch.alternatives)),
                got="absent" if mismatch.got is None else mismatch.got.hex(),
                hint=hint,
                subject=f"{subject} {need.rim_id} sha256:{rim.sha256[:16]} {mismatch.name}",
            )
        )
    return tuple(findings)
