"""The operator's page as elements: one function per section. Pure; every value goes in as text."""

from collections.abc import Iterable, Sequence
from datetime import datetime

from attestation.appraise.ear import Status
from attestation.appraise.policy import KeyConditions
from attestation.appraise.rules import Unchecked
from attestation.ops.overview import Hour, KeyRow, KindOfCollateral, Overview
from attestation.service.html import Element, Node, el
from attestation.sources.audit import Entry
from attestation.values import JsonValue

_ID_CHARS = 16  # of a chip or token id: enough to find it again, short enough to read
_TEXT_CHARS = 200
_VALUE_CHARS = 40
_CHART_HEIGHT, _BAR, _GAP = 96, 22, 8
_STATUS = {Status.AFFIRMING: "good", Status.WARNING: "warn", Status.CONTRAINDICATED: "bad", Status.NONE: "warn"}


def login_page(message: str = "") -> Element:
    """Asks for an admin token."""
    form = el(
        "form",
        el("label", "Admin token", for_="token"),
        el("input", id="token", name="token", type="password", autocomplete="off", required="", autofocus=""),
        el("button", "Show", type="submit"),
        method="post",
        action="/ui/login",
    )
    hint = el(
        "p", "Issue one with ", el("code", "kata-gpu-kbs user token NAME"), ". The page only reads.", class_="hint"
    )
    note = [el("p", message, class_="bad", role="alert")] if message else []
    return _document("Key broker", el("main", el("section", el("h1", "Key broker"), note, form, hint, class_="login")))


def overview_page(seen: Overview) -> Element:
    """Everything on one page."""
    links = [("#keys", "Keys"), ("#collateral", "Collateral")]
    if seen.whole:
        links = [("#attestations", "Attestations"), ("#denials", "Denials"), *links]
    header = el(
        "header",
        el("h1", "Key broker"),
        el("nav", [el("a", text, href=where) for where, text in links]),
        el(
            "form",
            el("span", f"{seen.who.name}, {seen.who.role}"),
            el("button", "Leave", type="submit"),
            method="post",
            action="/ui/logout",
        ),
    )
    warning = (
        [el("p", "Forgeable evidence is accepted here. Only keys labelled test can leave.", class_="banner")]
        if seen.simulated
        else []
    )
    sections = [_keys(seen.keys), _collateral(seen.collateral, seen.now)]
    if seen.whole:
        sections = [_activity(seen), _attestations(seen), _denials(seen.denials), *sections]
    foot = el("footer", "As of ", _time(seen.now), ". Times are UTC. Reload to see more.")
    return _document("Key broker: overview", [header, el("main", warning, sections), foot])


def _document(title: str, body: Node) -> Element:
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("title", title),
        el("link", rel="stylesheet", href="/ui/style.css"),
    )
    return el("html", head, el("body", body), lang="en")


def _activity(seen: Overview) -> Element:
    totals = {
        name: sum(getattr(hour, name) for hour in seen.hours) for name in ("attested", "refused", "released", "denied")
    }
    words = {
        "attested": "platforms attested",
        "refused": "evidence refused",
        "released": "keys released",
        "denied": "releases denied",
    }
    cards = [el("div", el("strong", totals[name]), el("span", words[name]), class_=f"card {name}") for name in words]
    return el("section", el("h2", "Last 24 hours"), el("div", cards, class_="cards"), _chart(seen.hours))


def _chart(hours: Sequence[Hour]) -> Element:
    """Stacked bars: attested below, refused and denied on top."""
    most = max([1, *(hour.attested + hour.refused + hour.denied for hour in hours)])
    bars: list[Node] = []
    for index, hour in enumerate(hours):
        x, y = index * (_BAR + _GAP) + 40, _CHART_HEIGHT + 14.0
        for count, name in ((hour.attested, "attested"), (hour.denied, "denied"), (hour.refused, "refused")):
            height = count * _CHART_HEIGHT / most
            y -= height
            if count:
                bars.append(el("rect", x=x, y=f"{y:.1f}", width=_BAR, height=f"{height:.1f}", class_=name))
        if index % 4 == 0:
            label = hour.start.strftime("%H:%M")
            bars.append(el("text", label, x=x + _BAR // 2, y=_CHART_HEIGHT + 32, text_anchor="middle"))
    width = len(hours) * (_BAR + _GAP) + 40
    base = _CHART_HEIGHT + 14
    axes: list[Node] = [
        el("line", x1=36, x2=width, y1=base, y2=base),
        el("line", x1=36, x2=width, y1=14, y2=14, class_="grid"),
        el("text", most, x=30, y=18, text_anchor="end"),
        el("text", 0, x=30, y=base + 4, text_anchor="end"),
    ]
    legend = el(
        "p",
        [el("span", text, class_=f"key {name}") for name, text in
         (("attested", "attested"), ("denied", "release denied"), ("refused", "evidence refused"))],
        class_="legend",
    )  # fmt: skip
    total = sum(hour.attested for hour in hours)
    svg = el("svg", axes, bars, viewBox=f"0 0 {width} {_CHART_HEIGHT + 40}", role="img",
             aria_label=f"{total} attestations in {len(hours)} hours, by hour")  # fmt: skip
    return el("div", svg, legend, class_="chart")


def _attestations(seen: Overview) -> Element:
    rows: list[list[Node]] = []
    for result in seen.attestations:
        facts = result.facts
        devices: dict[str, int] = {}
        for device in facts.devices:
            name = f"{device.arch} {device.kind}, {device.mode}, driver {device.driver_version or 'unknown'}"
            devices[name] = devices.get(name, 0) + 1
        rows.append(
            [
                _time(result.issued),
                el("span", str(result.status), class_=f"tag {_STATUS[result.status]}"),
                [f"{facts.cpu.tee} {facts.cpu.product} ", _id(facts.cpu.chip_id)],
                _id(facts.cpu.measurement),
                [el("div", f"{count} × {name}") for name, count in devices.items()] or "none",
                str(facts.binding.get("profile", "")),
                _id(result.jti),
            ]
        )
    return _section(
        "attestations",
        "Attestations",
        ("Time", "Status", "CPU", "Measurement", "GPUs", "Binding", "Token"),
        rows,
        "No platform has attested yet.",
    )


def _denials(denials: Iterable[Entry]) -> Element:
    rows: list[list[Node]] = []
    for entry in denials:
        refused = entry.event == "attest-refused"
        reasons = [_refusal(entry.body)] if refused else [_finding(f) for f in _list(entry.body.get("findings"))]
        rows.append(
            [
                _time(entry.at),
                el("span", "evidence" if refused else "release", class_="tag bad" if refused else "tag warn"),
                _id(entry.subject) if refused else el("code", _short(entry.subject)),
                reasons,
                el("code", _short(entry.body.get("ticket") or "")),
            ]
        )
    return _section(
        "denials", "Denials", ("Time", "What", "For", "Reason", "Ticket"), rows, "Nothing was denied lately."
    )


def _refusal(body: object) -> Element:
    of = body if isinstance(body, dict) else {}
    where = f" at {_short(of['where'])}" if of.get("where") else ""
    return el(
        "div", el("code", _short(of.get("code"))), f" {_short(of.get('reason'))}{where}", _expected(of), class_="reason"
    )


def _finding(finding: JsonValue) -> Element:
    of = finding if isinstance(finding, dict) else {}
    subject = f" {_short(of['subject'])}" if of.get("subject") else ""
    return el("div", el("code", _short(of.get("code"))), subject, _expected(of), class_="reason")


def _expected(of: dict[str, JsonValue]) -> Node:
    if not of.get("expected") and not of.get("got"):
        return ""
    return el("small", f"expected {_brief(of.get('expected'))}, got {_brief(of.get('got'))}")


def _keys(keys: Iterable[KeyRow]) -> Element:
    rows: list[list[Node]] = []
    for row in keys:
        record, most = row.record, row.conditions.limits.max_releases if row.conditions else None
        used = f"{record.releases} of {most}" if most is not None else str(record.releases)
        rows.append(
            [
                [el("code", str(record.path)), [el("span", label, class_="tag") for label in record.labels]],
                str(record.kind),
                f"v{record.current_version}",
                [el("div", line) for line in _conditions(row.conditions)],
                used,
            ]
        )
    return _section("keys", "Keys", ("Key", "Kind", "Version", "Released to", "Releases"), rows, "There is no key yet.")


def _conditions(conditions: KeyConditions | None) -> list[str]:
    if conditions is None:
        return ["whom the resource policy allows; nobody without one"]
    lines = [f"CPU: {', '.join(conditions.cpu.tees)}"]
    if conditions.gpus is not None:
        gpus = conditions.gpus
        lines.append(
            f"GPUs: {'at least ' if gpus.at_least else ''}{gpus.count} × {', '.join(gpus.arch)}"
            f", mode {', '.join(gpus.mode)}"
        )
    if conditions.switches is not None:
        lines.append(f"switches: {conditions.switches.count}")
    accepted = conditions.init_data
    lines.append("init-data: any" if isinstance(accepted, Unchecked) else f"init-data: {len(accepted)} known")
    if conditions.limits.not_after is not None:
        lines.append(f"until {conditions.limits.not_after:%Y-%m-%d %H:%M}")
    return lines + [f"waived: {reason}" for reason in conditions.waivers]


def _collateral(kinds: Sequence[KindOfCollateral] | None, now: datetime) -> Element:
    rows: list[list[Node]] = []
    for kind in kinds or ():
        state = "bad" if kind.expired else "warn" if kind.ending else "good"
        text = f"{kind.expired} expired" if kind.expired else "ends soon" if kind.ending else "good"
        ending = [
            el("div", _id(entry.id), " ", _time(entry.ends), f" ({_days(entry.ends, now)})")
            for entry in kind.ending
            if entry.ends is not None
        ]
        rows.append([kind.kind, el("span", text, class_=f"tag {state}"), kind.count, _time(kind.oldest), ending or "-"])
    none = "No collateral store is configured." if kinds is None else "The collateral store is empty."
    return _section(
        "collateral", "Collateral", ("Kind", "State", "Documents", "Oldest since", "Ends within 14 days"), rows, none
    )


def _section(anchor: str, title: str, columns: Sequence[str], rows: Sequence[Sequence[Node]], empty: str) -> Element:
    if not rows:
        return el("section", el("h2", title), el("p", empty, class_="hint"), id=anchor)
    head = el("thead", el("tr", [el("th", column, scope="col") for column in columns]))
    body = el("tbody", [el("tr", [el("td", cell) for cell in row]) for row in rows])
    return el("section", el("h2", title), el("div", el("table", head, body), class_="scroll"), id=anchor)


def _list(value: JsonValue) -> list[JsonValue]:
    return list(value) if isinstance(value, list) else []


def _short(value: object) -> str:
    text = "" if value is None else str(value)
    return text if len(text) <= _TEXT_CHARS else f"{text[:_TEXT_CHARS]}…"


def _brief(value: object) -> str:
    """A value to compare by eye; of digests and the like the beginning is enough, the audit log has the rest."""
    text = _short(value) or "-"
    return text if " " in text or len(text) <= _VALUE_CHARS else f"{text[:_VALUE_CHARS]}…"


def _id(text: str) -> Element:
    return el("code", text if len(text) <= _ID_CHARS else f"{text[:_ID_CHARS]}…")


def _time(at: datetime) -> Element:
    return el("time", at.strftime("%Y-%m-%d %H:%M"), datetime=at.isoformat())


def _days(ends: datetime, now: datetime) -> str:
    days = (ends - now).days
    return f"{-days} days ago" if days < 0 else f"in {days} days"
