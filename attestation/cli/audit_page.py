"""Entries of the audit log for people. `--output json` has every byte; here long digests are cut."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

_MAX_VALUE = 160  # characters of a value on its line: chip ids, which `revoke add` takes, have 128
_MAX_QUOTED = 48  # of what a finding expected and got


def lines_of(entry: Mapping[str, Any]) -> Iterator[str]:
    """One entry: sequence, time, event and subject, then a line for everything that was recorded with it."""
    yield f"{entry['seq']} {_time(entry['at'])} {entry['event']} {_plain(entry['subject'], _MAX_VALUE)}"
    body = dict(entry["body"])
    findings = body.pop("findings", [])
    for name, value in body.items():
        if isinstance(value, list):
            for item in value:
                yield f"    {name:<18} {_value(item)}"
        else:
            yield f"    {name:<18} {_value(value)}"
    for finding in findings:
        yield f"    finding            {_finding(finding)}"


def _finding(finding: Any) -> str:
    if not isinstance(finding, Mapping):
        return _value(finding)
    words = [str(finding[name]) for name in ("subject", "submod", "check") if finding.get(name)]
    parts = [f"[{finding.get('code', '')}] {' '.join(words)}"]
    parts += [f"{name} {_plain(finding[name], _MAX_QUOTED)}" for name in ("expected", "got") if finding.get(name)]
    return ", ".join(parts)


def _value(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_value(item)}" for name, item in value.items())
    return _plain(value, _MAX_VALUE) if isinstance(value, str) else json.dumps(value)


def _time(text: str) -> str:
    return text.partition(".")[0].removesuffix("+00:00") + "Z"


def _plain(text: str, most: int) -> str:
    """Senders chose some of it: control characters stay escaped."""
    shown = json.dumps(text, ensure_ascii=True)[1:-1]
    return shown if len(shown) <= most else f"{shown[:most]}..."
