"""Values, findings and the two strict readers: what cannot be constructed cannot be believed by mistake."""

import copy
import pickle
from collections.abc import Callable
from functools import partial

import pytest

from attestation.crypto.b64 import b64, b64url, parse_b64, parse_b64url
from attestation.errors import AttestationError, Denied
from attestation.findings import Finding, Result, TrustedVerdict, Verdict, failed, passed, warned
from attestation.formats.json_strict import parse_json, require_object, require_text
from attestation.formats.reader import Reader
from attestation.values import Digest, Level, Nonce, ResourcePath, Secret

RAW = bytes(range(1, 33))
HEX = RAW.hex()


def code_of(call: Callable[[], object]) -> str:
    with pytest.raises(AttestationError) as caught:
        call()
    return caught.value.code


_REFUSED: list[tuple[str, Callable[[], object], str]] = [
    ("nonce-31", lambda: Nonce(bytes(31)), "nonce-length"),
    ("nonce-33", lambda: Nonce(bytes(33)), "nonce-length"),
    ("nonce-zero", lambda: Nonce(bytes(32)), "nonce-zero"),
    ("nonce-text", lambda: Nonce.from_hex("x" * 64), "nonce-hex"),
    ("nonce-short-text", lambda: Nonce.from_hex("ab"), "nonce-length"),
    ("digest-algorithm", lambda: Digest("md5", bytes(16)), "digest-algorithm"),
    ("digest-short", lambda: Digest("sha256", bytes(31)), "digest-length"),
    ("digest-long", lambda: Digest("sha384", bytes(49)), "digest-length"),
    ("digest-of-another", lambda: Digest("sha512", bytes(48)), "digest-length"),
    ("digest-no-colon", lambda: Digest.parse("ab" * 32), "digest-text"),
    ("digest-no-hex", lambda: Digest.parse("sha256:" + "zz" * 32), "digest-text"),
    ("digest-nothing", lambda: Digest.parse("sha256:"), "digest-text"),
    ("digest-cut", lambda: Digest.parse("sha256:" + "ab" * 31), "digest-length"),
    ("path-two", lambda: ResourcePath.parse("a/b"), "resource-path"),
    ("path-four", lambda: ResourcePath.parse("a/b/c/d"), "resource-path"),
    ("path-empty-part", lambda: ResourcePath.parse("a//c"), "resource-path"),
    ("path-dot", lambda: ResourcePath.parse("a/.b/c"), "resource-path"),
    ("path-up", lambda: ResourcePath.parse("../b/c"), "resource-path"),
    ("path-space", lambda: ResourcePath.parse("a/b/c d"), "resource-path"),
    ("path-line", lambda: ResourcePath.parse("a/b/c\n"), "resource-path"),
    ("path-letter", lambda: ResourcePath.parse("a/b/\u00e9"), "resource-path"),
    ("path-129", lambda: ResourcePath("a", "b", "c" * 129), "resource-path"),
    ("path-with-slash", lambda: ResourcePath("a", "b/c", "d"), "resource-path"),
    ("path-host", lambda: ResourcePath.parse("kbs://host/a/b/c"), "resource-path"),
    ("take-too-much", lambda: Reader(b"ab", "x").take(3, "y"), "truncated"),
    ("take-less-than-nothing", lambda: Reader(b"ab", "x").take(-1, "y"), "truncated"),
    ("number-cut", lambda: Reader(b"abc", "x").u32le("y"), "truncated"),
    ("reserved", lambda: Reader(b"\0\1", "x").zeros(2, "y"), "reserved"),
    ("reserved-cut", lambda: Reader(b"\0", "x").zeros(2, "y"), "truncated"),
    ("not-at-the-end", lambda: Reader(b"a", "x").finish(), "trailing-bytes"),
    *(
        (f"{parse.__name__}-{name}", partial(parse, text, where="x"), code)
        for parse, code in ((parse_b64, "base64"), (parse_b64url, "base64url"))
        for name, text in (
            ("alphabet", "*AAA"),
            ("one-letter", "A"),
            ("stray-bits", "AB==" if parse is parse_b64 else "AB"),
            ("padding", "AA" if parse is parse_b64 else "AA=="),
            ("line-feed", "AAAA\n"),
            ("other-alphabet", "__--" if parse is parse_b64 else "//++"),
            ("letter", "\u00e9AAA"),
            ("bytes", b"AAAA"),
            ("nothing-at-all", None),
        )
    ),
    ("json-size", lambda: parse_json("[1]", max_bytes=2, what="x"), "json-size"),
    ("json-twice", lambda: parse_json('[{"a": {"b": 1, "b": 1}}]', max_bytes=99, what="x"), "json-duplicate-key"),
    ("json-nan", lambda: parse_json("[NaN]", max_bytes=99, what="x"), "json"),
    ("json-infinity", lambda: parse_json("[-Infinity]", max_bytes=99, what="x"), "json"),
    ("json-utf-16", lambda: parse_json("[1]".encode("utf-16"), max_bytes=99, what="x"), "json"),
    ("json-utf-32", lambda: parse_json("[1]".encode("utf-32-le"), max_bytes=99, what="x"), "json"),
    ("json-cut", lambda: parse_json("[1", max_bytes=99, what="x"), "json"),
    ("json-after", lambda: parse_json("[1] 2", max_bytes=99, what="x"), "json"),
    ("json-no-object", lambda: require_object([], "x"), "json-type"),
    ("json-no-text", lambda: require_text(b"a", "x"), "json-type"),
]


@pytest.mark.parametrize(("call", "code"), [pytest.param(call, code, id=i) for i, call, code in _REFUSED])
def test_what_is_refused(call: Callable[[], object], code: str) -> None:
    assert code_of(call) == code


def test_what_is_read() -> None:
    """The same values, one step inside."""
    assert (Nonce(RAW).hex(), Nonce.from_hex(f"0x{HEX}"), Nonce.from_hex(HEX.upper())) == (HEX, Nonce(RAW), Nonce(RAW))
    assert Nonce(RAW).matches(RAW)
    assert not Nonce(RAW).matches(RAW[:-1] + b"\0")
    for alg, size in (("sha256", 32), ("sha384", 48), ("sha512", 64)):
        digest = Digest(alg, b"\xab" * size)
        assert Digest.parse(str(digest)) == digest == Digest.parse(f"{alg}:{'AB' * size}")
    for raw in (b"", b"a", b"ab", b"abc", bytes(range(256))):
        assert parse_b64(b64(raw), where="x") == raw == parse_b64url(b64url(raw), where="x")
    path = ResourcePath("a.b", "_-", "c" * 128)
    assert (ResourcePath.parse(str(path)), ResourcePath.parse(f"kbs:///{path}")) == (path, path)
    reader = Reader(b"\1\2\0\4\0\0\0\5\0\0\0\0\0\0\0\0\0end", "x")
    assert [reader.u8("a"), reader.u16le("b"), reader.u32le("c"), reader.u64le("d")] == [1, 2, 4, 5]
    reader.zeros(2, "e")
    assert (reader.position, reader.remaining, reader.take(0, "f"), reader.take(3, "g")) == (17, 3, b"", b"end")
    reader.finish()
    assert parse_json(b'{"a": [1.5, null]}', max_bytes=18, what="x") == {"a": [1.5, None]}


@pytest.mark.parametrize("raw", [bytearray(RAW), memoryview(RAW), HEX], ids=["bytearray", "view", "text"])
def test_a_nonce_is_bytes(raw: object) -> None:
    with pytest.raises(TypeError):
        Nonce(raw)  # type: ignore[arg-type]


def test_a_secret_is_shown_nowhere() -> None:
    secret = Secret(b"hunter22")
    for text in (repr(secret), str(secret), f"{secret}", f"{secret!r}", "%s" % secret):  # noqa: UP031
        assert text == "Secret(***)"
    for call in (pickle.dumps, copy.copy, copy.deepcopy, hash):
        with pytest.raises(TypeError):
            call(secret)
    assert secret == Secret(b"hunter22")
    assert secret not in (Secret(b"hunter23"), Secret(b"hunter2"), b"hunter22", "hunter22")
    assert (secret.expose(), len(secret)) == (b"hunter22", 8)


def test_a_secret_does_not_change_with_what_it_was_made_of() -> None:
    raw = bytearray(b"hunter22")
    secret = Secret(raw)  # type: ignore[arg-type]
    raw[:] = bytes(8)
    assert secret.expose() == b"hunter22"


@pytest.mark.parametrize("level", list(Level))
@pytest.mark.parametrize("floor", list(Level))
def test_levels_are_ordered(level: Level, floor: Level) -> None:
    order = [Level.NONE, Level.AUTHENTIC, Level.TRUSTED]
    assert level.at_least(floor) == (order.index(level) >= order.index(floor))


GOOD, ODD = passed("a"), warned("b", "odd", expected=1, got=2)
SKIPPED = Finding(check="c", result=Result.SKIPPED)
BAD, WORSE = failed("d", "bad", expected=1, got=2), failed("e", "worse", expected=1, got=2)


@pytest.mark.parametrize(
    ("findings", "code"),
    [
        pytest.param([GOOD], None, id="passed"),
        pytest.param([GOOD, ODD, SKIPPED], None, id="warned-and-skipped"),
        pytest.param([ODD], None, id="only-warned"),
        pytest.param([BAD], "bad", id="failed"),
        pytest.param([GOOD, BAD], "bad", id="last-failed"),
        pytest.param([BAD, GOOD], "bad", id="first-failed"),
        pytest.param([GOOD, WORSE, BAD], "worse", id="first-of-two"),
        pytest.param([failed("f", "", expected=1, got=2)], "denied", id="without-a-code"),
    ],
)
def test_a_verdict_holds_when_nothing_failed(findings: list[Finding], code: str | None) -> None:
    verdict = Verdict.of(findings)
    assert verdict.trusted == (code is None)
    if code is None:
        assert verdict.require_trusted() == TrustedVerdict(verdict)
        assert verdict.failures == ()
        return
    with pytest.raises(Denied) as caught:
        verdict.require_trusted()
    assert caught.value.code == code
    with pytest.raises(ValueError, match="proves nothing"):
        TrustedVerdict(verdict)


def test_verdicts_are_neither_empty_nor_true() -> None:
    with pytest.raises(ValueError, match="at least one"):
        Verdict.of(())
    for verdict in (Verdict.of([GOOD]), Verdict.of([BAD])):
        with pytest.raises(TypeError, match=r"ask \.trusted"):
            bool(verdict)


def test_findings_say_what_there_is_to_say() -> None:
    assert GOOD.to_json() == {"check": "a", "result": "pass", "expected": "", "got": ""}
    told = failed("d", "bad", expected=1, got=2, hint="h", subject="s").to_json()
    assert told == {
        "check": "d", "result": "fail", "expected": "1", "got": "2", "code": "bad", "hint": "h", "subject": "s",
    }  # fmt: skip
