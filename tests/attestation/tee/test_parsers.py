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
from attestation.formats.snp_tcb import Product, parse_tcb, product_of
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


@pytest.mark.parametrize("version", [0, 1, 6, 0x03000000], ids=hex)
def test_report_versions_that_nobody_knows(version: int) -> None:
    """Whatever a policy would say to them."""
    with pytest.raises(Malformed) as caught:
        parse_snp_report(version.to_bytes(4, "little") + REPORT[4:])
    assert caught.value.code == "snp-version"


_CPUS: list[tuple[int, int, Product | None]] = [
    (0x18, 0x01, None),
    *((0x19, model, Product.MILAN) for model in (0x00, 0x0F)),
    *((0x19, model, Product.GENOA) for model in (0x10, 0x1F, 0xA0, 0xAF)),
    *((0x19, model, None) for model in (0x20, 0x9F, 0xB0, 0xFF)),
    *((0x1A, model, Product.TURIN) for model in (0x00, 0x11)),
    (0x1A, 0x12, None),
    (0x1B, 0x00, None),
]


@pytest.mark.parametrize(("family", "model", "product"), _CPUS, ids=[f"tee-022-{f:x}-{m:x}" for f, m, _ in _CPUS])
def test_generations_by_cpuid(family: int, model: int, product: Product | None) -> None:
    assert product_of(family, model) is product


@pytest.mark.parametrize("size", [0, 7, 9])
def test_a_tcb_has_eight_bytes(size: int) -> None:
    with pytest.raises(Malformed) as caught:
        parse_tcb(bytes(size), Product.GENOA, "x")
    assert caught.value.code == "snp-tcb-reserved"


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


def _tlv(tag: int, content: bytes) -> der.Element:
    return der.parse_element(writer.tlv(tag, content), tag)


_EDGES: list[tuple[str, Callable[[], object], object]] = [
    ("short-form-longest", lambda: len(der.parse_element(b"\x04\x7f" + bytes(127), 4).content), 127),
    ("long-form-shortest", lambda: len(der.parse_element(b"\x04\x81\x80" + bytes(128), 4).content), 128),
    ("long-form-for-127", lambda: der.parse_element(b"\x04\x81\x7f" + bytes(127), 4), "length is not minimal"),
    ("two-length-bytes-for-one", lambda: der.parse_element(b"\x04\x82\0\xff" + bytes(255), 4), "length is not minimal"),
    ("length-cut", lambda: der.parse_element(b"\x04\x82\x01", 4), "length is not minimal"),
    ("length-cut-and-large", lambda: der.parse_element(b"\x04\x82\x81", 4), "length is not minimal"),
    ("three-length-bytes", lambda: len(der.parse_element(b"\x04\x83\x01\0\0" + bytes(65536), 4).content), 65536),
    ("four-length-bytes", lambda: der.parse_element(b"\x04\x84\x01\0\0\0", 4), "element ends early"),
    ("five-length-bytes", lambda: der.parse_element(b"\x04\x85\x01\0\0\0\0", 4), "indefinite or oversized length"),
    ("indefinite", lambda: der.parse_element(b"\x30\x80\0\0", 0x30), "indefinite or oversized length"),
    ("high-tag", lambda: der.parse_element(b"\x1f\0", 0x1F), "high tag number"),
    ("tag-alone", lambda: der.parse_element(b"\x04", 4), "element ends early"),
    ("one-byte-short", lambda: der.parse_element(b"\x04\x02a", 4), "element ends early"),
    ("one-byte-more", lambda: der.parse_element(b"\x04\x01ab", 4), "bytes after the end"),
    ("256-members", lambda: len(der.parse_members(b"\5\0" * 256)), 256),
    ("257-members", lambda: der.parse_members(b"\5\0" * 257), "too many elements"),
    ("integer-0", lambda: der.parse_integer(_tlv(der.INTEGER, b"\0")), 0),
    ("integer-127", lambda: der.parse_integer(_tlv(der.INTEGER, b"\x7f")), 127),
    ("integer-128", lambda: der.parse_integer(_tlv(der.INTEGER, b"\0\x80")), 128),
    ("integer-127-padded", lambda: der.parse_integer(_tlv(der.INTEGER, b"\0\x7f")), "integer is negative or not minimal"),
    ("integer-minus", lambda: der.parse_integer(_tlv(der.INTEGER, b"\xff\x7f")), "integer is negative or not minimal"),
    ("integer-longest", lambda: der.parse_integer(_tlv(der.INTEGER, b"\1" + bytes(1023))), 1 << 8184),
    ("integer-too-long", lambda: der.parse_integer(_tlv(der.INTEGER, b"\1" + bytes(1024))), "integer size"),
    ("integer-nothing", lambda: der.parse_integer(_tlv(der.INTEGER, b"")), "integer size"),
    ("oid-0", lambda: der.parse_oid(_tlv(der.OID, b"\x27")), "0.39"),
    ("oid-1", lambda: der.parse_oid(_tlv(der.OID, b"\x4f")), "1.39"),
    ("oid-2", lambda: der.parse_oid(_tlv(der.OID, b"\x50")), "2.0"),
    ("oid-nothing", lambda: der.parse_oid(_tlv(der.OID, b"")), "object identifier ends early"),
    ("oid-open", lambda: der.parse_oid(_tlv(der.OID, b"\x2a\x81")), "object identifier ends early"),
    ("oid-padded", lambda: der.parse_oid(_tlv(der.OID, b"\x2a\x80\1")), "object identifier is not minimal"),
    ("oid-zero-inside", lambda: der.parse_oid(_tlv(der.OID, b"\x2a\x81\x80\0")), "1.2.16384"),
    ("oid-largest", lambda: der.parse_oid(_tlv(der.OID, b"\x2a\x81" + b"\xff" * 8 + b"\x7f")), f"1.2.{(1 << 64) - 1}"),
    ("oid-too-large", lambda: der.parse_oid(_tlv(der.OID, b"\x2a\x82" + b"\x80" * 8 + b"\0")),
     "object identifier arc is too large"),
    ("bits", lambda: der.parse_bits(_tlv(der.BIT_STRING, b"\0ab")), b"ab"),
    ("bits-nothing", lambda: der.parse_bits(_tlv(der.BIT_STRING, b"")), "bit string has unused bits"),
    ("bits-unused", lambda: der.parse_bits(_tlv(der.BIT_STRING, b"\7\x80")), "bit string has unused bits"),
    ("bits-of-another-tag", lambda: der.parse_bits(_tlv(der.OCTET_STRING, b"\0ab")), "unexpected tag"),
    ("time-long", lambda: der.parse_time(_tlv(der.GENERALIZED_TIME, b"20500102030405Z")).isoformat(),
     "2050-01-02T03:04:05+00:00"),
    ("time-short", lambda: der.parse_time(_tlv(der.UTC_TIME, b"260102030405Z")).isoformat(), "2026-01-02T03:04:05+00:00"),
    ("time-lower-case", lambda: der.parse_time(_tlv(der.UTC_TIME, b"260102030405z")), "not a certificate time"),
    ("time-without-zone", lambda: der.parse_time(_tlv(der.UTC_TIME, b"2601020304050")), "not a certificate time"),
    ("time-signed", lambda: der.parse_time(_tlv(der.UTC_TIME, b"26010203040+5Z")), "not a certificate time"),
    ("time-space", lambda: der.parse_time(_tlv(der.UTC_TIME, b"2601020304 5Z")), "not a certificate time"),
    ("time-fraction", lambda: der.parse_time(_tlv(der.GENERALIZED_TIME, b"20500102030405.5Z")), "not a certificate time"),
    ("time-one-digit-more", lambda: der.parse_time(_tlv(der.UTC_TIME, b"2601020304056Z")), "not a certificate time"),
    ("time-long-as-short", lambda: der.parse_time(_tlv(der.UTC_TIME, b"20260102030405Z")), "not a certificate time"),
    ("time-short-as-long", lambda: der.parse_time(_tlv(der.GENERALIZED_TIME, b"260102030405Z")), "not a certificate time"),
    ("time-no-ascii", lambda: der.parse_time(_tlv(der.UTC_TIME, b"26010203040\xb2Z")), "not a certificate time"),
    ("text-utf-8", lambda: der.parse_text(_tlv(der.UTF8_STRING, b"\xc3\xa9")), "\u00e9"),
    ("text-printable", lambda: der.parse_text(_tlv(der.PRINTABLE_STRING, b"a")), "a"),
    ("text-ia5", lambda: der.parse_text(_tlv(der.IA5_STRING, b"a")), "a"),
    ("text-ia5-no-ascii", lambda: der.parse_text(_tlv(der.IA5_STRING, b"\xe9")), "text string is not text"),
    ("text-of-another-tag", lambda: der.parse_text(_tlv(der.OCTET_STRING, b"a")), "not a text string"),
    ("no-name", lambda: der.common_name(writer.sequence()), ""),
    ("one-name", lambda: der.common_name(writer.sequence(_SET)), "a"),
    ("another-name", lambda: der.common_name(writer.sequence(_SET.replace(b"\x55\4\3", b"\x55\4\4"))), ""),
    ("two-names", lambda: der.common_name(writer.sequence(_SET, _SET)), "name has two common names"),
]  # fmt: skip


@pytest.mark.parametrize(("parse", "expected"), [pytest.param(p, e, id=f"tee-031-{i}") for i, p, e in _EDGES])
def test_edges_of_der(parse: Callable[[], object], expected: object) -> None:
    """The last that is read, and the first that is not; refusals by what they say, because all have one code."""
    try:
        got = parse()
    except Malformed as exc:
        got = exc.what
        assert exc.code == "der"
    assert got == expected


_TBS, _ALGORITHM, _SIGNATURE = (e.raw for e in der.parse_members(der.parse_element(LEAF, der.SEQUENCE).content))
_FIELDS = [e.raw for e in der.parse_members(der.parse_element(_TBS, der.SEQUENCE).content)]


def _certificate(position: int, *replaced: bytes) -> bytes:
    """The leaf with one of its fields replaced, by none or by several."""
    fields = [*_FIELDS[:position], *replaced, *_FIELDS[position + 1 :]]
    return writer.sequence(writer.sequence(*fields), _ALGORITHM, _SIGNATURE)


def _extended(*parts: bytes) -> bytes:
    return _certificate(7, writer.tlv(0xA3, writer.sequence(writer.sequence(*parts))))


_VALUE, _TRUE, _FALSE = writer.octets(b"x"), b"\1\1\xff", b"\1\1\0"
_CERTIFICATES: list[tuple[str, bytes, str | None]] = [
    ("as-it-was", _certificate(0, _FIELDS[0]), None),
    ("two-members", writer.sequence(_TBS, _ALGORITHM), "not a certificate"),
    ("four-members", writer.sequence(_TBS, _ALGORITHM, _SIGNATURE, b"\5\0"), "not a certificate"),
    ("seven-fields", _certificate(7), "not a v3 certificate with extensions"),
    ("nine-fields", _certificate(6, _FIELDS[6], b"\x81\1\0"), "not a v3 certificate with extensions"),
    ("version-2", _certificate(0, bytes.fromhex("a003020101")), "not a v3 certificate"),
    ("inner-algorithm", _certificate(2, writer.sequence(_OID)), "signature algorithms inside and outside differ"),
    ("one-date", _certificate(4, writer.sequence(writer.tlv(der.UTC_TIME, b"260102030405Z"))), "validity"),
    ("three-dates", _certificate(4, writer.sequence(*[writer.tlv(der.UTC_TIME, b"260102030405Z")] * 3)), "validity"),
    ("no-sequence-of-dates", _certificate(4, writer.tlv(der.SET)), "unexpected tag"),
    ("no-sequence-of-names", _certificate(3, writer.tlv(der.SET)), "unexpected tag"),
    ("no-sequence-of-key", _certificate(6, writer.tlv(der.SET)), "unexpected tag"),
    ("extensions-of-another-tag", _certificate(7, writer.tlv(0xA2, writer.sequence())), "unexpected tag"),
    ("extension", _extended(_OID, _VALUE), None),
    ("extension-critical", _extended(_OID, _TRUE, _VALUE), None),
    ("extension-critical-false", _extended(_OID, _FALSE, _VALUE), "extension"),
    ("extension-of-three", _extended(_OID, _VALUE, _VALUE), "extension"),
    ("extension-of-four", _extended(_OID, _TRUE, _VALUE, _VALUE), "extension"),
    ("extension-of-one", _extended(_OID), "extension"),
    ("extension-without-value", _extended(_OID, _TRUE), "unexpected tag"),
    ("extension-value-of-another-tag", _extended(_OID, writer.sequence()), "unexpected tag"),
    ("largest", b"\x30\x82\x3f\xfc" + bytes(16 * 1024 - 4), "too many elements"),
    ("too-large", bytes(16 * 1024 + 1), "certificate is too large"),
]


@pytest.mark.parametrize(("data", "what"), [pytest.param(d, w, id=f"tee-031-{i}") for i, d, w in _CERTIFICATES])
def test_certificates_are_taken_apart_or_refused(data: bytes, what: str | None) -> None:
    if what is None:
        assert der.parse_certificate(data).der == data
        return
    with pytest.raises(Malformed) as caught:
        der.parse_certificate(data)
    assert (caught.value.code, caught.value.what) == ("der", what)


def test_critical_is_what_a_certificate_says() -> None:
    for parts, critical in (((_OID, _VALUE), False), ((_OID, _TRUE, _VALUE), True)):
        (extension,) = der.parse_certificate(_extended(*parts)).extensions.values()
        assert (extension.critical, extension.value) == (critical, b"x")


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
    ("table-inside", INIT_DATA + "[data.b]\n", "init-data-table"),
    ("version-number", INIT_DATA.replace('"0.1.0"', "1"), "init-data-version"),
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
        pytest.param('policy_data := {"gpus": 8}', {"gpus": 8}, id="alone"),
        pytest.param("package p", None, id="absent"),
        pytest.param("package policy 1", None, id="absent-and-something-that-is-json"),
        pytest.param("policy_data := {not json", None, id="not-json"),
    ],
)
def test_init_data_claims(rego: str, claims: object) -> None:
    assert parse_init_data(_DOCUMENT % rego).claims() == {"agent_policy_claims": claims}


@pytest.mark.parametrize(("size", "fits"), [(256 * 1024, True), (256 * 1024 + 1, False)])
def test_init_data_has_a_size(size: int, fits: bool) -> None:
    """In bytes: a letter of two counts twice."""
    text = (INIT_DATA + "# \u00e9").ljust(size - 1)
    assert len(text.encode()) == size
    if fits:
        assert parse_init_data(text).text == text
        return
    with pytest.raises(Malformed) as caught:
        parse_init_data(text)
    assert caught.value.code == "init-data-size"


@pytest.mark.parametrize(
    ("body", "code"),
    [
        pytest.param(f"a = {(1 << 63) - 1}", None, id="largest-integer"),
        pytest.param(f"a = {1 << 63}", "init-data-claims", id="integer-too-large"),
        pytest.param(f"a = {-(1 << 63) + 1}", None, id="smallest-integer"),
        pytest.param("a = " + "[" * 64 + "]" * 64, None, id="deepest"),
        pytest.param("a = " + "[" * 65 + "]" * 65, "init-data-claims", id="too-deep"),
        pytest.param("a" + ".a" * 100 + " = 1", "init-data-claims", id="as-many-dots"),
        pytest.param("a" + ".a" * 101 + " = 1", "init-data-toml", id="too-many-dots"),
        pytest.param('a = "' + "." * 200 + '"', None, id="dots-in-text"),
    ],
)
def test_init_data_is_claimed_as_json_can_hold_it(body: str, code: str | None) -> None:
    document = parse_init_data(_DOCUMENT.replace("policy.rego", "a.toml") % body + '"b" = "x.y"\n')
    if code is None:
        claims = document.claims()
        assert (set(claims), claims["b"]) == ({"a.toml", "b"}, "x.y")
        return
    with pytest.raises(Malformed) as caught:
        document.claims()
    assert caught.value.code == code


def test_broken_toml_inside_init_data_is_malformed() -> None:
    document = parse_init_data('version = "0.1.0"\nalgorithm = "sha256"\n[data]\n"aa.toml" = "="\n')
    with pytest.raises(Malformed):
        document.claims()
