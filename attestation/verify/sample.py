"""The sample TEE: anybody can make its evidence. For demos and tests, behind a flag with a dangerous name.

Its evidence is `{"svn", "report_data": b64, "init_data"?: b64, "launch_digest"?: hex}` (keybroker.md 1.6).
"""

from base64 import b64decode

from attestation.errors import Denied, Malformed
from attestation.findings import Finding, Result
from attestation.formats.json_strict import require_text
from attestation.values import JsonObject, Tee
from attestation.verify.expected import CpuExpected, verify_init_data, verify_report_data
from attestation.verify.verified import VerifiedCpu

REPORT_DATA_BYTES = 64
# What upstream says of a platform that is none (keybroker.md 8.4), so that policies written for it can be tried.
_DIGEST, _PLATFORM = "abcde", {"major": 1, "minor": 4}


def verify_sample(document: JsonObject, *, unsafe_allow_sample: bool, expected: CpuExpected) -> VerifiedCpu:
    """Compare what the evidence says with what is expected; nothing is signed. Raises Malformed, Untrusted, Denied."""
    if not unsafe_allow_sample:
        raise Denied("sample-tee", "the sample TEE proves nothing", where="tee", expected="a real TEE", got="sample")
    report_data = _bytes(document, "report_data")
    if len(report_data) > REPORT_DATA_BYTES:
        raise Malformed("sample-report-data", "too long", where="sample.report_data", expected="<= 64 bytes")
    init_data, about_init_data = _init_data(document, expected)
    digest = require_text(document.get("launch_digest", _DIGEST), "sample.launch_digest")
    padded = report_data.ljust(REPORT_DATA_BYTES, b"\0")
    return VerifiedCpu(
        tee=Tee.SAMPLE,
        product="sample",
        chip_id="",
        report_data=padded,
        init_data=init_data,
        measurement=digest,
        claims={
            "svn": require_text(document.get("svn", ""), "sample.svn"),
            "report_data": report_data.hex(),
            "init_data": init_data.hex(),
            "launch_digest": digest,
            "platform_version": _PLATFORM,
            "debug": False,
        },
        findings=(
            Finding(check="tee", result=Result.WARN, code="sample-tee", expected="a real TEE", got="sample"),
            verify_report_data(padded, expected),
            about_init_data,
        ),
    )


def _init_data(document: JsonObject, expected: CpuExpected) -> tuple[bytes, Finding]:
    """The field that the evidence states. Upstream's attester states none: then, as upstream, what was presented."""
    if document.get("init_data"):
        stated = _bytes(document, "init_data")
        return stated, verify_init_data(stated, expected)
    if expected.init_data is None:
        return b"", verify_init_data(b"", expected)
    digest = expected.init_data.digest
    return digest.raw, Finding(check="init-data", result=Result.WARN, code="sample-init-data", got=str(digest))


def _bytes(document: JsonObject, name: str) -> bytes:
    try:
        return b64decode(require_text(document.get(name), f"sample.{name}"), validate=True)
    except ValueError as exc:
        raise Malformed("sample-base64", "not base64", where=f"sample.{name}") from exc
