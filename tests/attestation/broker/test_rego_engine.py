"""What the policy engine does otherwise than Rego: refused where the text of a policy shows it, else pinned here, so that
a release of the engine which mends it, or breaks more, is noticed (docs/policies.md).
"""

from collections.abc import Iterator
from typing import Any

import pytest

from attestation.appraise.rego_text import require_faithful
from attestation.errors import Malformed, Unavailable
from attestation.sources.rego_worker import RegoWorker

HEAD = "package policy\nimport rego.v1\n"


@pytest.fixture(scope="module")
def rego() -> Iterator[RegoWorker]:
    worker = RegoWorker()
    yield worker
    worker.close()


def value(rego: RegoWorker, expression: str, text: Any) -> Any:
    """Its value for `input.x`; None where it has none."""
    policy = f'{HEAD}trust_claims := {{"v": v}} if {{ v := {expression} }}\n'
    try:
        return rego.appraise(policy, {"x": text}, {})["v"]
    except Malformed:
        return None


# Expression, input.x, what the engine says, what Rego says. Texts are looked into as JSON spells them.
_OTHERWISE: list[tuple[str, Any, Any, Any]] = [
    ("count(input.x)", "a\nb", 4, 3),
    ("count(input.x)", 'a"b', 4, 3),
    ('contains(input.x, "n")', "a\nb", True, False),
    ('endswith(input.x, "n")', "a\n", True, False),
    ('indexof(input.x, "b")', "a\nb", 3, 2),
    ("substring(input.x, 0, 2)", "a\nb", None, "a\n"),
    ('split(input.x, "n")', "a\nb", None, ["a\nb"]),
    ('replace(input.x, "n", "N")', "a\nb", None, "a\nb"),
    ('trim(input.x, "n")', "a\n", None, "a\n"),
    ('trim_suffix(input.x, "n")', "a\n", None, "a\n"),
    (r'trim_left(input.x, "\\")', "\nb", None, "\nb"),
    ("strings.reverse(input.x)", "a\nb", None, "b\na"),
    ("upper(input.x)", "a\nb", None, "A\nB"),
    ("upper(input.x)", "é", "é", "É"),
    (r"regex.match(`^a\sb$`, input.x)", "a\nb", False, True),
    (r"regex.match(`^a\\nb$`, input.x)", "a\nb", True, False),
    (r"regex.match(`^[a-z\\]+$`, input.x)", "a\nb", True, False),
    ("regex.match(`^a.b$`, input.x)", 'a"b', False, True),
    ("base64.encode(input.x)", "a\nb", "YVxuYg==", "YQpi"),
    (r'base64.decode(input.x) == "a\nb"', "YQpi", False, True),
    ("hex.encode(input.x)", "a\nb", "615c6e62", "610a62"),
    (r'hex.decode(input.x) == "a\nb"', "610a62", False, True),
    ("to_number(input.x)", "12a", 12, None),
    ("to_number(input.x)", "0x10", 16, None),
    ("[input.x] < [10]", 9, False, True),
    ('{"a": input.x} < {"a": 10}', 9, False, True),
    ('net.cidr_contains("10.0.0.0/8", input.x)', "10.1.2.3", None, True),
    ("time.parse_rfc3339_ns(input.x)", "1970-01-01T00:00:01Z", None, 10**9),
]


@pytest.mark.parametrize(("expression", "text", "here", "there"), _OTHERWISE)
def test_otherwise_than_rego(rego: RegoWorker, expression: str, text: Any, here: Any, there: Any) -> None:
    require_faithful(HEAD + expression)
    assert value(rego, expression, text) == here != there


@pytest.mark.parametrize("text", ["a\nb", "a\\b", 'a"b', "\x01", "\t"])
def test_what_docs_recommend_tells_such_texts_from_others(rego: RegoWorker, text: str) -> None:
    """`not regex.match` of a backslash is true in Rego for all but texts with one, and here for all plain texts."""
    assert value(rego, r"regex.match(`\\`, input.x)", text) is True
    assert value(rego, r"regex.match(`\\`, input.x)", "plain é / 😀 \x7f") is False


@pytest.mark.parametrize("rule", ['some k; data[k] == "resource"', "walk(data, [path, found]); found == 1"])
def test_going_through_data_denies_everybody(rule: str) -> None:
    """The engine ends its process, or finds nothing: nobody is let in."""
    worker = RegoWorker()
    try:
        assert worker.allow(f"{HEAD}allow if {{ {rule} }}\n", {}, {"plugin": "resource"}) is False
    except Unavailable as exc:
        assert exc.code == "rego-deadline"
    finally:
        worker.close()


_REFUSED: list[tuple[str, str]] = [
    (r'allow if input.x == "\u0041"', r"\u0041"),
    (r'allow if input.x == "\\\u0041"', r"\u0041"),
    (r'allow if input["\u0041"]', r"\u0041"),
    (r'allow if input.x == "a\/b"', r"\/"),
    ("allow if max([9, input.x]) > 9", "max"),
    ("allow if min(input.x) > 9", "min"),
    ("allow if sort (input.x)[0] == 9", "sort"),
    ('allow if semver.compare(input.x, "1.9.0") >= 0', "semver.compare"),
]


@pytest.mark.parametrize(("rule", "got"), _REFUSED)
def test_refused_when_it_is_stored(rego: RegoWorker, rule: str, got: str) -> None:
    with pytest.raises(Malformed) as caught:
        rego.check(f"{HEAD}\n{rule}\n")
    assert (caught.value.code, caught.value.where, caught.value.got) == ("rego-engine", "policy line 4", got)


@pytest.mark.parametrize(
    "rule",
    [
        r"allow if input.x == `\u0041`",
        r'allow if input.x == "\\u0041 \n \t \" \\"',
        'allow if input.x # as "\\u0041", or max(1)',
        'allow if input.x == "max(1) `"; # `',
        "allow if input.max; maximum(1)\nmaximum(x) if x",
        "allow if semver.is_valid(input.x)",
    ],
)
def test_what_only_looks_like_it_is_stored(rego: RegoWorker, rule: str) -> None:
    rego.check(f"{HEAD}\n{rule}\n")


@pytest.mark.parametrize(
    ("expression", "there"),
    [("max([9, 10])", 10), ("min([9, 10])", 9), ("sort([9, 10])", [9, 10]), ('semver.compare("1.10.0", "1.9.0")', 1)],
)
def test_why_they_are_refused(rego: RegoWorker, expression: str, there: Any) -> None:
    assert value(rego, expression, None) not in (there, None)
