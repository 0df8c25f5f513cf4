"""What must not leave a node: secrets, key material, addresses. Idempotent: a redacted text stays as it is.

Policy: values of options that sound secret, URL passwords, bearer tokens, JWTs, PEM private keys, MAC addresses and IP
addresses other than loopback are replaced. Host names, PCI addresses, versions, digests and certificates stay.
"""

import ipaddress
import re

_SENSITIVE = (
    "passwd|password|passphrase|pwd|psk|secret|token|api[_-]?key|private[_-]?key|key-data|luks\\.key|credential|auth"
)
# A value may go over lines, hold its own quote escaped, or never end.
_QUOTED = r'"""(?:[^"]|"(?!""))*(?:""")?' "|'''(?:[^']|'(?!''))*(?:''')?|" r'"(?:[^"\\\n]|\\.)*"?|' r"'(?:[^'\n]|'')*'?"
# Every pattern starts where a word starts and never needs to go back: linear on any input.
_RULES: tuple[tuple[re.Pattern[str], str], ...] = (
    (
        re.compile(
            r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY-----(?:Proc-Type:[^\n]*|DEK-Info:[^\n]*|[^-])*"
            r"(?:-----END [A-Z0-9 ]{0,40}KEY-----)?"
        ),
        "redacted-private-key",
    ),
    (re.compile(r"(?<![A-Za-z0-9_.-])eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{4,}\.[A-Za-z0-9_-]*"), "redacted-token"),
    (re.compile(r"(?i)\b(bearer|basic)[ \t]+[A-Za-z0-9+/=._~-]{8,}"), r"\1 redacted"),
    (re.compile(r"(?<=://)[^\s/@\"']{1,400}@"), "redacted@"),
    (
        # name, then = or : (or the NUL between arguments), then a quoted or bare value on the same line
        re.compile(
            rf"(?i)(?<![A-Za-z0-9_.-])([\"']?[A-Za-z0-9_.-]{{0,128}}(?:{_SENSITIVE})s?[\"']?"
            r"(?:[ \t]*[=:][ \t]*(?:\[[ \t]*)?|\0))"
            rf"(?!redacted\b)(?:{_QUOTED}|[^\s,;#\"'{{\[}}\]\0][^\s,;#}}\]\0]*)"
        ),
        r'\1"redacted"',
    ),
    (
        re.compile(
            rf"(?i)(?<![\w-])(--[a-z0-9-]{{0,64}}(?:{_SENSITIVE})s?[ \t]+)(?!redacted\b)"
            r"[^\s,;\"'{\[}\]-][^\s,;\"'}\]]*"
        ),
        r"\1redacted",
    ),
    (re.compile(r"(?<![0-9A-Za-z-])(?:[0-9A-Fa-f]{2}-){5,6}[0-9A-Fa-f]{2}(?![0-9A-Za-z-])"), "redacted-mac"),
    (re.compile(r"(?<![0-9A-Fa-f:])(?:[0-9A-Fa-f]{2}:){5}[0-9A-Fa-f]{2}(?![0-9A-Fa-f:])"), "redacted-mac"),
)
_MAX_PASSES = 8  # two are usual
_ADDRESS = re.compile(
    r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?![\w.]?\d)|(?<![\w.:])[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f]{0,4}){2,7}(?![\w:])(?!\.\d)"
)


def redact(text: str) -> str:
    """The text without secrets and addresses. What one rule leaves may be the start of another: until none matches."""
    for _ in range(_MAX_PASSES):
        before = text
        for pattern, replacement in _RULES:
            text = pattern.sub(replacement, text)
        text = _ADDRESS.sub(_address, text)
        if text == before:
            break
    return text


def _address(match: re.Match[str]) -> str:
    try:
        address = ipaddress.ip_address(match[0])
    except ValueError:
        return match[0]
    return match[0] if address.is_loopback or address.is_unspecified else "redacted-ip"
