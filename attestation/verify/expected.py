"""What a CPU report is expected to commit to: 64 bytes of report data, and the init-data document, if any."""

import hmac
from dataclasses import dataclass

from attestation.errors import Untrusted
from attestation.findings import Finding, Result, failed, passed
from attestation.formats.initdata import InitData


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuExpected:
    """`report_data` None means that freshness is not judged; the result says so and no key may be released on it."""

    report_data: bytes | None
    init_data: InitData | None = None
    init_data_required: bool = False

    @classmethod
    def unchecked(cls) -> "CpuExpected":
        """For looking at evidence outside a session."""
        return cls(report_data=None)


def verify_report_data(got: bytes, expected: CpuExpected) -> Finding:
    """The report answers exactly the expected bytes (constant time). Raises Untrusted."""
    if expected.report_data is None:
        return Finding(check="report-data", result=Result.SKIPPED, code="report-data-unchecked", got=got.hex())
    if not hmac.compare_digest(got, expected.report_data):
        raise Untrusted(
            "report-data-mismatch",
            "the CPU report does not commit to this nonce, key and device evidence",
            where="report_data",
            expected=expected.report_data.hex(),
            got=got.hex(),
        )
    return passed("report-data", got.hex(), expected=expected.report_data.hex())


def verify_init_data(field: bytes, expected: CpuExpected) -> Finding:
    """HOST_DATA or MRCONFIGID equals the presented document's digest. Raises Untrusted when it does not."""
    if expected.init_data is None:
        if expected.init_data_required:
            return failed("init-data", "init-data-missing", expected="an init-data document", got="none")
        return Finding(check="init-data", result=Result.SKIPPED, code="init-data-absent", got=field.hex())
    want = expected.init_data.field_value(len(field))
    if not hmac.compare_digest(field, want):
        raise Untrusted(
            "init-data-mismatch",
            "the TEE was launched with other init-data",
            where="init-data",
            expected=want.hex(),
            got=field.hex(),
        )
    return passed("init-data", field.hex(), expected=str(expected.init_data.digest))
