"""The sample TEE and the sample device: anybody can make their evidence. For demos and tests, behind a flag with a
dangerous name.

The TEE's is `{"svn", "report_data": b64, "init_data"?: b64, "launch_digest"?: hex}`, the device's the first two
(keybroker.md 1.6).
"""

import hmac
from base64 import b64decode

from attestation.errors import Denied, Malformed, Untrusted
from attestation.findings import Finding, Result
from attestation.formats.json_strict import require_text
from attestation.values import JsonObject, Tee
from attestation.verify.expected import CpuExpected, verify_init_data, verify_report_data
from attestation.verify.verified import SampleDevice, VerifiedCpu

REPORT_DATA_BYTES = 64
MAX_SVN_CHARS = 64  # upstream's attester says "2"
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


def verify_sample_device(device: JsonObject, expected: bytes) -> SampleDevice:
    """It repeats the digest that every device of the session answers; nothing is signed.

    Raises Malformed, Untrusted.
    """
    svn = require_text(device.get("svn"), "sampledevice.svn")
    if len(svn) > MAX_SVN_CHARS or not (svn.isascii() and svn.isprintable()):
        raise Malformed(
            "sample-svn", "not a version", where="sampledevice.svn", expected=f"<= {MAX_SVN_CHARS} characters"
        )
    if not hmac.compare_digest(_bytes(device, "report_data", "sampledevice"), expected):
        raise Untrusted(
            "sample-device-nonce", "the device answers another nonce or key", where="sampledevice.report_data"
        )
    return SampleDevice(
        svn=svn,
        report_data=expected,
        findings=(
            Finding(
                check="device", result=Result.WARN, code="sample-device",
                expected="a device that signs", got="sampledevice", subject="sampledevice",
            ),
        ),
    )  # fmt: skip


def _init_data(document: JsonObject, expected: CpuExpected) -> tuple[bytes, Finding]:
    """The field that the evidence states. Upstream's attester states none: then, as upstream, what was presented."""
    if document.get("init_data"):
        stated = _bytes(document, "init_data")
        return stated, verify_init_data(stated, expected)
    if expected.init_data is None:
        return b"", verify_init_data(b"", expected)
    digest = expected.init_data.digest
    return digest.raw, Finding(check="init-data", result=Result.WARN, code="sample-init-data", got=str(digest))


def _bytes(document: JsonObject, name: str, what: str = "sample") -> bytes:
    try:
        return b64decode(require_text(document.get(name), f"{what}.{name}"), validate=True)
    except ValueError as exc:
        raise Malformed("sample-base64", "not base64", where=f"{what}.{name}") from exc
