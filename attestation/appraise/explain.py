"""A result of `verify` as one page for a person, from its JSON alone: what was proven, what was not, what to do.

The page adds no judgement. Its sentences are chosen by the stable names of checks and codes; names that it does not
know are shown as they are, so that a newer result is never shortened.
"""

import re
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from attestation.errors import Malformed
from attestation.findings import Finding, Result
from attestation.formats.json_strict import parse_json, require_object, require_text

MAX_RESULT_BYTES = 4 * 1024 * 1024  # a result over 64 devices
MAX_FINDINGS = 10_000
_WIDTH = 100
_HEX_SHOWN = 16
_LONG_HEX = re.compile(r"[0-9a-fA-F]{65,}")  # a nonce is shown whole
_UNCHECKED = "unchecked: "  # how policy writes down that a field is not judged, and why

# What a passed check means, for somebody who did not write it.
_PROVEN: Mapping[str, str] = {
    "device-chain": "NVIDIA made this device: its certificates lead to the pinned root",
    "identity": "which device this is, from its certificate",
    "report-signature": "the device itself signed this report",
    "fwid": "the firmware that signed is the firmware that the certificate names",
    "nonce": "the report answers your challenge: it is not an old one",
    "report-structure": "the report has the exact form of the specification",
    "rim-revocation": "nobody has withdrawn the signer of the reference values",
    "device-revocation": "nobody has withdrawn this certificate",
    "driver-rim": "the driver measures as NVIDIA published",
    "vbios-rim": "the VBIOS measures as NVIDIA published",
    "bios-rim": "the switch firmware measures as NVIDIA published",
    "index-conflict": "the reference documents do not contradict each other",
    "driver-version": "the driver version is one that policy accepts",
    "device-count": "there are as many devices as expected",
    "distinct-devices": "no device was counted twice",
    "one-nonce": "all devices answer the same challenge",
    "topology": "the devices are wired to each other as one board",
    "snp-signature": "an AMD processor signed this report",
    "snp-chain": "its key leads to AMD's pinned root",
    "snp-debug": "the host cannot debug the VM",
    "snp-migration": "no migration agent can move the VM",
    "snp-product": "the processor is of an accepted generation",
    "snp-chip-id": "the certificate is of this very chip",
    "snp-crl": "AMD has not withdrawn the signing authority",
    "snp-vmpl": "the report was asked for at the accepted privilege level",
    "snp-committed": "the firmware cannot be rolled back below what was reported",
    "snp-reported-tcb": "the reported firmware is not below your floor",
    "snp-committed-tcb": "the committed firmware is not below your floor",
    "snp-launch-tcb": "the firmware at launch was not below your floor",
    "snp-alias-check": "memory aliasing was ruled out at boot",
    "tdx-signature": "an Intel quoting enclave signed this quote",
    "tdx-chain": "its key leads to Intel's pinned root",
    "tdx-tcb-status": "the platform's firmware is at a level that policy accepts",
    "measurement": "what was launched is what you expect",
    "report-data": "the report commits to this session's nonce, key and device evidence",
    "init-data": "the VM was started with the init-data that was presented",
    "binding": "CPU report, TEE key and device evidence belong to one session",
    "event-log": "the event log is the one that was measured",
    "bundle-age": "the collateral bundle is recent enough",
}

# What to do about a code; longest prefix wins.
_ACTIONS: Mapping[str, str] = {
    "nonce-not-given": "verify again with --nonce and the challenge that you sent to the device",
    "nonce-mismatch": "ask for new evidence with your own nonce; this report answers another challenge",
    "rim-missing": "fetch the reference document (`kata-gpu-kbs collateral fetch --rim ID`) or give it with --rim",
    "rim-signer-expired": "fetch the re-issued document; or set --signer-expiry, knowing that it weakens the result",
    "measurements-differ": "see the indices below: firmware or driver differ from what NVIDIA published",
    "measurement-unchecked": "give --measurement: without it, any software may have been launched",
    "measurement-mismatch": "something else was launched than what you measured: rebuild, or find out who changed it",
    "measurement-": "see its hint: firmware or driver differ from what NVIDIA published",
    "revocation-unknown": "fetch or import revocation answers into a collateral store and verify with --collateral",
    "revocation-stale": "fetch or import newer revocation answers",
    "revocation-revoked": "stop using this device, or what this signer signed, and ask the vendor",
    "revocation-hold": "the vendor has suspended this certificate: ask the vendor before trusting it",
    "report-signature": "the evidence was changed, or chain and report are of two devices: collect it again",
    "chain-": "collect the certificate chain again; if it stays so, the device is not genuine",
    "device-duplicate": "evidence of one device was submitted as several: find out who assembles it",
    "device-missing": "find the device that did not attest; a collector may drop devices silently",
    "device-count": "find the device that did not attest, or correct --expect",
    "trailing-zeros": "tolerated; update the collector, which reports a wrong size",
    "simulated-roots": "remove --unsafe-trust-simulated-roots: this result says nothing about hardware",
    "arch-mismatch": "the envelope lies about the architecture: distrust whoever made it",
    "fwid-": "update driver and firmware, and collect the evidence again",
    "policy-": "update what is too old, or change the policy knowingly",
    "ppcie-": "put every GPU of the board into Protected PCIe and attest all 8 GPUs and 4 switches",
    "switch-unlocked": "lock the switches before attesting",
    "topology-edge": "the board is not wired as it says: compare the named devices with the hardware",
    "snp-no-floor": "give --min-tcb: without a floor, old firmware is accepted",
    "snp-crl-unchecked": "fetch AMD's revocation list (`kata-gpu-kbs collateral fetch --amd PRODUCT`)",
    "snp-": "update the host's firmware and settings to what the rule wants, or change the policy knowingly",
    "tdx-collateral-": "fetch or import newer TDX collateral (`kata-gpu-kbs collateral fetch --tdx FMSPC`)",
    "tdx-": "update the host's firmware and settings to what the rule wants, or change the policy knowingly",
    "bundle-": "import a newer collateral bundle",
    "report-data-": "verify inside a session: outside of one, freshness is not judged",
    "init-data-": "present the init-data document that the VM was started with",
}

_ALWAYS = (
    "that CPU and GPU are in one machine: a GPU's report names no CPU, and evidence can be relayed",
    "anything after the report was made: attest again for every session",
    "that the hardware withstands somebody with physical access to it",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultPage:
    """The part of a result that a page shows."""

    level: str
    required: str
    findings: tuple[Finding, ...]


def parse_result(raw: bytes) -> ResultPage:
    """The JSON of `verify gpu|snp|tdx|evidence`. Raises Malformed."""
    value = require_object(parse_json(raw, max_bytes=MAX_RESULT_BYTES, what="result"), "result")
    findings = value.get("findings")
    if not isinstance(findings, list) or not 0 < len(findings) <= MAX_FINDINGS:
        raise Malformed("result-shape", "not a result of `verify`", where="result.findings", expected="a list")
    return ResultPage(
        level=_printable(require_text(value.get("level", ""), "result.level")),
        required=_printable(require_text(value.get("required", ""), "result.required")),
        findings=tuple(_finding(one, f"result.findings[{i}]") for i, one in enumerate(findings)),
    )


def _finding(value: object, where: str) -> Finding:
    members = require_object(value, where)
    texts = {name: _printable(require_text(members.get(name, ""), f"{where}.{name}")) for name in _MEMBERS}
    try:
        result = Result(require_text(members.get("result"), f"{where}.result"))
    except ValueError as exc:
        raise Malformed("result-shape", "unknown result", where=where, got=repr(members.get("result"))[:40]) from exc
    return Finding(result=result, **texts)


def _printable(text: str) -> str:
    """Evidence chooses some of these words: no control characters reach a terminal."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


_MEMBERS = ("check", "code", "expected", "got", "hint", "subject")


def render_explanation(page: ResultPage) -> str:
    """The page."""
    lines = [_headline(page), ""]
    lines += _section("What was proven", _proven(page.findings)) or ["What was proven", "  nothing", ""]
    refuted = [f for f in page.findings if f.result is Result.FAIL]
    lines += _section("What was refuted", _listed(refuted))
    open_ = [f for f in page.findings if f.result in {Result.WARN, Result.SKIPPED}]
    lines += _section("What was not proven", [*_listed(open_), *_ALWAYS])
    lines += _section("What to do", _actions([*refuted, *open_])) or ["What to do", "  nothing: keep collateral fresh"]
    return "\n".join(lines).rstrip()


def _headline(page: ResultPage) -> str:
    counts = Counter(f.result for f in page.findings)
    parts = [f"{counts[r]} {word}" for r, word in _COUNTED if counts[r]]
    level = f"Level {page.level}" if page.level else "Result"
    wanted = f" (required: {page.required})" if page.required else ""
    return f"{level}{wanted}: {', '.join(parts)}."


_COUNTED = (
    (Result.PASS, "checks passed"),
    (Result.FAIL, "failed"),
    (Result.WARN, "with a warning"),
    (Result.SKIPPED, "not judged"),
)


def _proven(findings: Iterable[Finding]) -> list[str]:
    """One line a check that has a sentence; the others, mostly single bits of a CPU's policy, share the last line."""
    by_check: dict[str, list[Finding]] = {}
    for finding in findings:
        if finding.result is Result.PASS:
            by_check.setdefault(finding.check, []).append(finding)
    lines, others = [], []
    for check, found in by_check.items():
        text, fact = _PROVEN.get(check), _short(found[0].got)
        if text is None:
            others.append(f"{check} {fact}".rstrip())
        else:
            lines.append(f"{text} ({fact})" if len(found) == 1 and fact else _times(text, len(found)))
    return [*lines, f"these rules hold: {', '.join(others)}"] if others else lines


def _short(text: str) -> str:
    """Long digests are recognised by their beginning; the JSON has them whole."""
    return _LONG_HEX.sub(lambda match: f"{match[0][:_HEX_SHOWN]}...", text)


def _times(text: str, count: int) -> str:
    return text if count == 1 else f"{text} ({count} times)"


def _listed(findings: Sequence[Finding]) -> list[str]:
    """Check, code, and what was wanted and found; equal findings about several subjects are one line."""
    groups: dict[tuple[str, str, str, str], list[str]] = {}
    for f in findings:
        groups.setdefault((f.check, f.code, f.expected, f.got), []).append(f.subject)
    lines = []
    for (check, code, expected, got), subjects in groups.items():
        name = f"{check} [{code}]" if code else check
        wanted = f"not judged, {expected.removeprefix(_UNCHECKED)}" if expected.startswith(_UNCHECKED) else ""
        wanted = wanted or (f"wanted {expected}" if expected else "")
        facts = _short(", ".join(part for part in (wanted, f"found {got}" if got else "") if part))
        about = ", ".join(dict.fromkeys(s for s in subjects if s))
        lines.append(": ".join(part for part in (name, facts) if part) + (f" - {about}" if about else ""))
    return lines


def _actions(findings: Sequence[Finding]) -> list[str]:
    """What the codes ask for, failures first, each once; hints that say more come with them."""
    lines: list[str] = []
    for finding in findings:
        prefix = max((p for p in _ACTIONS if finding.code and finding.code.startswith(p)), key=len, default=None)
        if prefix is not None:
            lines.append(_ACTIONS[prefix])
        elif finding.result is Result.FAIL and not finding.hint:
            lines.append(f"{finding.check} [{finding.code}]: make it as wanted, or change the policy knowingly")
        if finding.hint and finding.result is Result.FAIL:
            lines.append(f"{finding.check}: {finding.hint}")
    return list(dict.fromkeys(lines))


def _section(title: str, lines: Sequence[str]) -> list[str]:
    if not lines:
        return []
    wrapped = (
        textwrap.fill(line, _WIDTH, initial_indent="  - ", subsequent_indent="    ", break_on_hyphens=False)
        for line in lines
    )
    return [title, *wrapped, ""]


def to_json(page: ResultPage) -> dict[str, Any]:
    """The same page for machines."""
    failed = [f for f in page.findings if f.result is Result.FAIL]
    open_ = [f for f in page.findings if f.result in {Result.WARN, Result.SKIPPED}]
    return {
        "level": page.level,
        "proven": _proven(page.findings),
        "refuted": _listed(failed),
        "not-proven": [*_listed(open_), *_ALWAYS],
        "actions": _actions([*failed, *open_]),
    }
