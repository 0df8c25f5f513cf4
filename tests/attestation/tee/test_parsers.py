"""Properties that every parser of this part has: any bytes give a value or Malformed, cuts and extensions are refused."""

from collections.abc import Callable

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from attestation.errors import Malformed
from attestation.formats import der
from attestation.formats.event_log import parse_event_log
from attestation.formats.initdata import parse_init_data
from attestation.formats.snp_evidence import parse_cert_table, parse_snp_evidence
from attestation.formats.snp_report import parse_snp_report
from attestation.formats.tdx_collateral import parse_tdx_collateral
from attestation.formats.tdx_quote import parse_tdx_quote
from attestation.simulate import der as writer
from attestation.simulate.amd import SimulatedChip
from attestation.simulate.intel import QuoteForm
from attestation.simulate.intel_pki import CollateralForm
from attestation.verify.bind import parse_additional
from tests.attestation.tee.test_tdx import LOG
from tests.attestation.tee.world import INIT_DATA, Guest

CHIP = SimulatedChip()
REPORT, LEAF = CHIP.evidence().report, CHIP.leaf_form().sign()
TABLE = bytes.fromhex("63da758de6644564adc5f4b93be8accd") + b"\x30\0\0\0\4\0\0\0" + bytes(24) + b"leaf"


def _text(parse: Callable[[str], object]) -> Callable[[bytes], object]:
    return lambda data: parse(data.decode("utf-8", "surrogateescape"))


_PARSERS: dict[str, tuple[Callable[[bytes], object], bytes]] = {
    "der": (der.parse_certificate, LEAF),
    "snp-report": (parse_snp_report, REPORT),
    "snp-evidence": (parse_snp_evidence, CHIP.evidence_json().encode()),
    "cert-table": (parse_cert_table, TABLE),
    "tdx-quote": (parse_tdx_quote, QuoteForm().sign()),
    "tdx-collateral": (parse_tdx_collateral, CollateralForm().render()),
    "event-log": (parse_event_log, LOG),
    "init-data": (_text(parse_init_data), INIT_DATA.encode()),
    "additional": (_text(parse_additional), Guest().evidence().additional.encode()),
}
_EACH = pytest.mark.parametrize(("parse", "good"), [pytest.param(*row, id=name) for name, row in _PARSERS.items()])


def _value_or_malformed(parse: Callable[[bytes], object], data: bytes) -> None:
    try:
        assert parse(data) is not None
    except Malformed as exc:
        assert exc.code


@_EACH
def test_good_input_parses(parse: Callable[[bytes], object], good: bytes) -> None:
    assert parse(good) is not None


@_EACH
@settings(max_examples=60, deadline=None)
@given(data=st.binary(max_size=2048))
@example(b"")
@example(b"\xff" * 1200)
def test_any_bytes(parse: Callable[[bytes], object], good: bytes, data: bytes) -> None:
    _value_or_malformed(parse, data)
    _value_or_malformed(parse, good[: len(data)] + data)


@_EACH
@settings(max_examples=60, deadline=None)
@given(seed=st.data())
def test_damaged_input(parse: Callable[[bytes], object], good: bytes, seed: st.DataObject) -> None:
    """A few bytes changed anywhere: still a value or Malformed, and nothing else."""
    damaged = bytearray(good)
    for _ in range(seed.draw(st.integers(1, 4))):
        damaged[seed.draw(st.integers(0, len(good) - 1))] = seed.draw(st.integers(0, 255))
    _value_or_malformed(parse, bytes(damaged))


@pytest.mark.parametrize(
    "name", ["der", "snp-report", "snp-evidence", "cert-table", "tdx-quote", "tdx-collateral", "additional"]
)
def test_every_prefix_is_refused(name: str) -> None:
    parse, good = _PARSERS[name]
    for size in range(1 if name == "additional" else 0, len(good), max(1, len(good) // 150)):
        with pytest.raises(Malformed):
            parse(good[:size])


@pytest.mark.parametrize("name", ["der", "snp-report", "snp-evidence", "tdx-collateral", "additional"])
@pytest.mark.parametrize("extra", [b"\0", b"x", b"\xff" * 40])
def test_every_extension_is_refused(name: str, extra: bytes) -> None:
    parse, good = _PARSERS[name]
    with pytest.raises(Malformed):
        parse(good + extra)


@pytest.mark.parametrize("extra", [b"\0", b"\1"])
def test_what_follows_a_quote_is_kept_apart(extra: bytes) -> None:
    """The quote ends by its own lengths; the verifier judges what comes after it."""
    good = QuoteForm().sign()
    quote = parse_tdx_quote(good + extra)
    assert (quote.raw, quote.trailing) == (good, extra)


_OID = writer.oid("1.3.6.1.4.1.3704.1.3.8")
_SET = writer.tlv(der.SET, writer.sequence(writer.oid("2.5.4.3"), writer.tlv(der.UTF8_STRING, b"a")))
_ELEMENTS: list[tuple[str, Callable[[], object]]] = [
    ("negative", lambda: der.parse_integer(der.parse_element(b"\x02\x01\x80", der.INTEGER))),
    ("padded", lambda: der.parse_integer(der.parse_element(b"\x02\x02\x00\x01", der.INTEGER))),
    ("empty-integer", lambda: der.parse_integer(der.parse_element(b"\x02\x00", der.INTEGER))),
    ("oid-padded", lambda: der.parse_oid(der.parse_element(b"\x06\x03\x2a\x80\x01", der.OID))),
    ("oid-open", lambda: der.parse_oid(der.parse_element(b"\x06\x02\x2a\x80", der.OID))),
    ("oid-huge", lambda: der.parse_oid(der.parse_element(b"\x06\x0c\x2a" + b"\xff" * 10 + b"\x01", der.OID))),
    ("bits-unused", lambda: der.parse_bits(der.parse_element(b"\x03\x02\x01\x02", der.BIT_STRING))),
    ("time-without-seconds", lambda: der.parse_time(der.parse_element(b"\x17\x0b2601010000Z", der.UTC_TIME))),
    ("time-with-offset", lambda: der.parse_time(der.parse_element(b"\x17\x11260101000000+0100", der.UTC_TIME))),
    ("month-13", lambda: der.parse_time(der.parse_element(b"\x17\x0d261301000000Z", der.UTC_TIME))),
    ("not-a-time", lambda: der.parse_time(der.parse_element(_OID, der.OID))),
    ("not-a-text", lambda: der.parse_text(der.parse_element(_OID, der.OID))),
    ("bad-utf8", lambda: der.parse_text(der.parse_element(b"\x0c\x01\xff", der.UTF8_STRING))),
    ("two-names", lambda: der.common_name(writer.sequence(*[_SET] * 2))),
    ("many", lambda: der.parse_members(b"\x05\x00" * 300)),
    ("wrong-tag", lambda: der.parse_element(_OID, der.SEQUENCE)),
]


@pytest.mark.parametrize("parse", [pytest.param(p, id=f"tee-031-{i}") for i, p in _ELEMENTS])
def test_der_elements(parse: Callable[[], object]) -> None:
    with pytest.raises(Malformed) as caught:
        parse()
    assert caught.value.code == "der"


@given(st.integers(0, 1 << 200))
def test_integers_survive(value: int) -> None:
    assert der.parse_integer(der.parse_element(writer.integer(value), der.INTEGER)) == value


@pytest.mark.parametrize("dotted", ["2.5.4.3", "1.3.6.1.4.1.3704.1.3.8", "1.2.840.113741.1.13.1", "2.999.1"])
def test_object_identifiers_survive(dotted: str) -> None:
    assert der.parse_oid(der.parse_element(writer.oid(dotted), der.OID)) == dotted


def test_years_have_the_century_of_rfc_5280() -> None:
    years = {"500101": 1950, "490101": 2049, "991231": 1999}
    for text, year in years.items():
        raw = writer.tlv(der.UTC_TIME, text.encode() + b"000000Z")
        assert der.parse_time(der.parse_element(raw, der.UTC_TIME)).year == year


_DOCUMENT = "version = \"0.1.0\"\nalgorithm = \"sha384\"\n[data]\n\"policy.rego\" = '''%s'''\n"
_INIT: list[tuple[str, str, str]] = [
    ("tee-033-weak", INIT_DATA.replace("sha256", "sha1"), "init-data-algorithm"),
    ("tee-033-unknown", INIT_DATA.replace("sha256", "sm3"), "init-data-algorithm"),
    ("tee-033-none", INIT_DATA.replace('algorithm = "sha256"\n', ""), "init-data-algorithm"),
    ("version", INIT_DATA.replace("0.1.0", "0.2.0"), "init-data-version"),
    ("not-toml", "=", "init-data-toml"),
    ("no-data", 'version = "0.1.0"\nalgorithm = "sha256"\n', "init-data-table"),
    ("number", 'version = "0.1.0"\nalgorithm = "sha256"\n[data]\na = 1\n', "init-data-table"),
    ("large", INIT_DATA + "#" * 300_000, "init-data-size"),
    ("surrogate", "\ud800", "init-data-text"),
]


@pytest.mark.parametrize(("text", "code"), [pytest.param(t, c, id=i) for i, t, c in _INIT])
def test_init_data_refusals(text: str, code: str) -> None:
    with pytest.raises(Malformed) as caught:
        parse_init_data(text)
    assert caught.value.code == code


@pytest.mark.parametrize(("algorithm", "size"), [("sha256", 32), ("sha384", 48), ("sha512", 64)])
def test_init_data_is_cut_or_padded_to_the_field(algorithm: str, size: int) -> None:
    document = parse_init_data(INIT_DATA.replace("sha256", algorithm))
    assert document.field_value(32) == document.digest.raw[:32]
    assert document.field_value(64) == document.digest.raw.ljust(64, b"\0")
    assert len(document.digest.raw) == size


@pytest.mark.parametrize(
    ("rego", "claims"),
    [
        pytest.param('package p\npolicy_data := {"gpus": 8}', {"gpus": 8}, id="json"),
        pytest.param("package p", None, id="absent"),
        pytest.param("policy_data := {not json", None, id="not-json"),
    ],
)
def test_init_data_claims(rego: str, claims: object) -> None:
    assert parse_init_data(_DOCUMENT % rego).claims() == {"agent_policy_claims": claims}


def test_broken_toml_inside_init_data_is_malformed() -> None:
    document = parse_init_data('version = "0.1.0"\nalgorithm = "sha256"\n[data]\n"aa.toml" = "="\n')
    with pytest.raises(Malformed):
        document.claims()
