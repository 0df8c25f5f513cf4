"""What the policy engine does otherwise than Rego, as far as the text of a policy shows it (docs/policies.md)."""

import re

from attestation.errors import Malformed

# Raw texts and comments first: what looks like an escape or a call in them is none.
_TOKEN = re.compile(r'`[^`]*`|#[^\n]*|"(?:[^"\\\n]|\\.)*"')
_ESCAPE = re.compile(r"\\(?:u[0-9A-Fa-f]{0,4}|(?P<kept>.))")
_UNESCAPED = ("/",)  # a legal escape that the engine keeps as it is written; `\u` always is
# They order numbers by their digits: max([9, 10]) is 9, and semver.compare is -1 whatever it is given.
_ORDER = re.compile(r"(?<![\w.])(?:semver\s*\.\s*compare|max|min|sort)\s*\(")


def require_faithful(policy: str) -> None:
    """Malformed for a policy with a text or a call that would not mean here what it means in Rego."""
    for token in _TOKEN.finditer(policy):
        if not token[0].startswith('"'):
            continue
        for escape in _ESCAPE.finditer(token[0]):
            if escape["kept"] is None or escape["kept"] in _UNESCAPED:
                raise _unfaithful(policy, token.start(), "the character itself", escape[0])
    code = _TOKEN.sub(lambda token: re.sub(r"[^\n]", " ", token[0]), policy)
    if (call := _ORDER.search(code)) is not None:
        raise _unfaithful(policy, call.start(), "numbers compared one by one with <", call[0].rstrip("( "))


def _unfaithful(policy: str, position: int, expected: str, got: str) -> Malformed:
    line = policy.count("\n", 0, position) + 1
    return Malformed(
        "rego-engine",
        "the policy engine would take this for something else",
        where=f"policy line {line}",
        expected=expected,
        got=got,
    )
