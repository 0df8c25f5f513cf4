"""Reports and the table of checks as text. Colour is the caller's: `paint(status, text)`."""

from collections.abc import Callable, Iterable

from kata_gpu.core.doctor.check import Check, Finding, Section, Status
from kata_gpu.core.doctor.report import Report

Paint = Callable[[Status, str], str]
_MARK = {
    Status.OK: "ok", Status.WARN: "WARN", Status.FAIL: "FAIL", Status.NOTE: "note", Status.UNKNOWN: "unknown",
    Status.NOT_APPLICABLE: "n/a",
}  # fmt: skip


def plain(_status: Status, text: str) -> str:
    """No colour."""
    return text


def render_report(report: Report, sections: Iterable[Section], *, paint: Paint = plain, verbose: bool = False) -> str:
    """Failures with their fix, warnings, then one line a section; everything with `verbose`."""
    lines = [f"profiles: {', '.join(sorted(report.profiles))}", ""]
    broken = [f for f in report.findings if f.broken]
    roots = [f for f in broken if not f.causes]
    order = {Status.FAIL: 0, Status.WARN: 1}
    for finding in sorted(roots, key=lambda f: order[f.status]):
        lines += _problem(finding, paint)
        lines += [
            paint(f.status, f"  {_MARK[f.status]} {f.check.id} follows from it: ") + f.found
            for f in broken
            if finding.check.id in f.causes
        ]
        lines.append("")
    for finding in broken:
        if finding.causes and not any(c in {r.check.id for r in roots} for c in finding.causes):
            lines += [*_problem(finding, paint), ""]
    for section in sections:
        lines += _section(report, section, paint, verbose=verbose)
    if any(f.check.reboot for f in broken):
        lines += ["", "some of these fixes need a reboot: make them all, then reboot once"]
    counts = ", ".join(f"{report.count(s)} {_MARK[s].lower()}" for s in Status if report.count(s))
    worst = next((s for s in (Status.FAIL, Status.WARN) if report.count(s)), Status.OK)
    ready = {Status.FAIL: "not ready", Status.WARN: "ready, with warnings", Status.OK: "ready"}[worst]
    return "\n".join([*lines, "", paint(worst, ready) + f": {counts}"]) + "\n"


def _problem(finding: Finding, paint: Paint) -> list[str]:
    check = finding.check
    return [
        paint(finding.status, f"{_MARK[finding.status]} {check.id} {check.title}"),
        f"  found     {finding.found}",
        f"  expected  {check.expected}",
        f"  symptom   {check.symptom}",
        f"  fix       {check.fix}{' (needs a reboot)' if check.reboot else ''}",
    ]


def _section(report: Report, section: Section, paint: Paint, *, verbose: bool) -> list[str]:
    ids = {row.id for row in section.rows}
    mine = [f for f in report.findings if f.check.id in ids]
    shown = mine if verbose else [f for f in mine if f.status in {Status.NOTE, Status.UNKNOWN}]
    good = sum(f.status is Status.OK for f in mine)
    applicable = sum(f.status is not Status.NOT_APPLICABLE for f in mine)
    summary = f"{good} of {applicable} ok" if applicable else "not applicable"
    rows = [paint(f.status, f"  {_MARK[f.status]:<8}{f.check.id}  {f.check.title}: ") + f.found for f in shown]
    return [f"{section.title}: {summary}", *rows]


def render_document(sections: Iterable[Section]) -> str:
    """The reference page of every check: docs/doctor.md is this text."""
    lines = [
        "# Checks of `kata-gpu doctor`",
        "",
        "Generated from the table in `kata_gpu/core/doctor`; a test compares them. The severity of a check that does",
        "not hold: *fatal* fails the profile, *warning* may hurt later (negative with `--strict`), *info* never",
        "counts. A fatal check that cannot tell is *unknown*, which is negative with `--strict` only.",
        "",
        "`kata-gpu doctor --list` prints the ids; `kata-gpu doctor --host-root FILE` reads a support bundle, whose",
        "redaction is described in its README.txt.",
    ]
    for section in sections:
        lines += ["", f"## {section.title}"]
        for row in section.rows:
            lines += [
                "",
                f"### {row.id}: {row.title}",
                "",
                _facts(row),
                "",
                f"- Expected: {row.expected}",
                f"- Symptom: {row.symptom}",
                f"- Fix: {row.fix}",
            ]
    return "\n".join(lines) + "\n"


def _facts(row: Check) -> str:
    after = f"; may follow from {', '.join(row.after)}" if row.after else ""
    reboot = "; the fix needs a reboot" if row.reboot else ""
    return f"{row.severity.capitalize()}; profiles {', '.join(sorted(row.profiles))}{after}{reboot}."
