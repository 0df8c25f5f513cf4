"""Three properties of every parser: any bytes give a value or Malformed; a changed bit is refused; so is every prefix
and every extension. Here on forged evidence of each architecture; on genuine evidence in `test_genuine`.
"""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attestation.errors import Malformed
from attestation.formats.certs import parse_bundle
from attestation.formats.dice import parse_composite_device_id, parse_dice_tcb_info
from attestation.formats.nv_evidence import decode_report, parse_evidence
from attestation.formats.nv_report import parse_gpu_facts, parse_switch_facts
from attestation.formats.rim import parse_rim_content
from attestation.formats.rim_signature import parse_signed_rim
from attestation.formats.spdm import parse_report
from attestation.values import Architecture
from tests.attestation.gpu import fuzz
from tests.attestation.gpu.support import FORGE, HOPPER, LS10, NONCE
from tests.conftest import VECTORS

REPORTS = {arch: FORGE.device(arch, nonce=NONCE).report for arch in Architecture}
RIM = FORGE.rim(HOPPER, driver=True)
PARSERS = [
    parse_report, parse_bundle, decode_report, parse_evidence, parse_signed_rim, parse_rim_content,
    parse_composite_device_id, parse_dice_tcb_info,
]  # fmt: skip


@pytest.mark.parametrize("parse", PARSERS, ids=[p.__name__ for p in PARSERS])
@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.binary(max_size=512))
def test_any_bytes(parse: object, data: bytes) -> None:
    """A value or Malformed, nothing else."""
    assert callable(parse)
    try:
        parse(data)
    except Malformed as exc:
        assert exc.code == exc.code.lower()


@settings(max_examples=150, deadline=None, derandomize=True)
@given(kind=st.integers(0, 40), value=st.binary(max_size=300), arch=st.sampled_from([HOPPER, LS10]))
def test_any_element(kind: int, value: bytes, arch: Architecture) -> None:
    """A report with one element replaced by anything: facts or Malformed."""
    report = parse_report(REPORTS[arch])
    opaque = dict(report.opaque) | {kind: value}
    changed = type(report)(
        nonce=report.nonce, measurements=report.measurements, responder_nonce=report.responder_nonce, opaque=opaque,
        signed=report.signed, signature=report.signature, trailing_zeros=0,
    )  # fmt: skip
    try:
        facts = parse_switch_facts(changed) if arch is LS10 else parse_gpu_facts(changed)
        assert facts.unknown.items() <= opaque.items()
    except Malformed as exc:
        assert exc.where.startswith("report")


@pytest.mark.parametrize("arch", list(Architecture))
def test_every_prefix_and_extension(arch: Architecture) -> None:
    """No shorter and no longer report parses, at tolerance 0."""
    report = REPORTS[arch]
    assert parse_report(report).trailing_zeros == 0
    for length in range(len(report)):
        with pytest.raises(Malformed):
            parse_report(report[:length])
    for extra in (b"\0", b"\1", bytes(96), report):
        with pytest.raises(Malformed):
            parse_report(report + extra)


def test_short_fuzz_run() -> None:
    """A few thousand mutations of every kind of input: no crash, no hang, no acceptance."""
    vectors = VECTORS if (VECTORS / "MANIFEST.json").is_file() else None
    done, found = fuzz.run(8.0, corpus=fuzz.seeds(vectors), rounds=6000)
    assert found == []
    assert done > 100
