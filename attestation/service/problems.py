"""Errors to responses. Two tables: the KBS error body under `/kbs/v0`, RFC 9457 problems elsewhere.

The caller sees a status, a type and one sentence; the log sees the finding. 401 makes a guest attest again, so it is
given only where that can help (keybroker.md 4.1 and 4.2).
"""

from dataclasses import dataclass

from starlette.responses import JSONResponse, Response

from attestation.errors import AttestationError, Denied, Malformed, Misconfigured, Unavailable, Untrusted

KBS_ERRORS = "https://github.com/confidential-containers/kbs/errors/"
RETRY_AFTER_S = "2"


@dataclass(frozen=True, slots=True)
class Row:
    """HTTP status and upstream's error variant."""

    status: int
    variant: str


# By code; what is not here goes by class.
_BY_CODE = {
    "token-not-found": Row(401, "TokenNotFound"),
    "body-too-large": Row(413, "HTTPFailed"),
    "rate-limited": Row(429, "HTTPFailed"),
    "plugin-not-found": Row(404, "PluginNotFound"),
    "resource-path": Row(404, "InvalidRequestPath"),
    "resource-not-found": Row(404, "ResourceNotFound"),
    "method-not-allowed": Row(405, "InvalidRequestPath"),
    "policy-denied": Row(403, "PolicyDeny"),
    "releases-exhausted": Row(403, "PolicyDeny"),
    "role-not-allowed": Row(403, "AdminAuthAccess"),
    "repository-not-allowed": Row(403, "AdminAuthAccess"),
    "admins-denied": Row(403, "AdminAuthAccess"),
    "key-version": Row(409, "HTTPFailed"),
    "key-differs": Row(409, "HTTPFailed"),
    "key-labels": Row(409, "HTTPFailed"),
    "policy-version": Row(409, "HTTPFailed"),
    "policy-rollback": Row(409, "HTTPFailed"),
    "rego-syntax": Row(400, "ParsePolicyError"),
    "rego-engine": Row(400, "ParsePolicyError"),
    "reference-value": Row(400, "RvpsError"),
    "secret-size": Row(413, "HTTPFailed"),
}
_BY_CLASS: tuple[tuple[type[AttestationError], Row], ...] = (
    (Malformed, Row(400, "SerdeError")),
    (Untrusted, Row(401, "TokenVerifierError")),
    (Denied, Row(403, "PolicyDeny")),
    (Unavailable, Row(503, "PluginInternalError")),
    (Misconfigured, Row(400, "SerdeError")),
)
_COMPAT = {"policy-denied": Row(401, "PolicyDeny"), "resource-not-found": Row(401, "PluginInternalError")}
_RETRY = frozenset({429, 503})


def row_of(exc: AttestationError) -> Row:
    """Status and variant of an error."""
    row = _BY_CODE.get(exc.code)
    return row or next((row for kind, row in _BY_CLASS if isinstance(exc, kind)), Row(500, "PluginInternalError"))


def kbs_error(row: Row, detail: str) -> Response:
    """ErrorInformation: both members are strings, always JSON, on every status."""
    headers = {"retry-after": RETRY_AFTER_S} if row.status in _RETRY else None
    return JSONResponse({"type": KBS_ERRORS + row.variant, "detail": detail}, row.status, headers)


def kbs_problem(exc: AttestationError, *, deny_status: int = 403) -> Response:
    """An error of the resource and admin endpoints. `deny_status=401` answers as upstream does."""
    row = _COMPAT.get(exc.code) if deny_status == 401 else None
    return kbs_error(row or row_of(exc), exc.what)


def handshake_problem(exc: AttestationError, step: str) -> Response:
    """An error of `/auth` or `/attest`: 401 for whatever the guest can mend only with a new handshake."""
    row = row_of(exc)
    # A body of the wrong shape is 400, but 401 at /auth, where the guest parses nothing else (4.2, 9).
    if row.status in (413, 429, 503) or (exc.code == "body" and step != "Auth"):
        return kbs_error(row, exc.what)
    # What failed in the evidence is for the operator's log; a version mismatch is for the guest's (4.2, 11).
    reason = f": {exc.what}" if step == "Auth" else ""
    return kbs_error(Row(401, "AttestationError"), f"Attestation error: RCAR handshake {step} failed{reason}")


def problem(exc: AttestationError) -> Response:
    """RFC 9457, for everything outside `/kbs/v0`."""
    status = row_of(exc).status
    body = {"type": f"urn:kata-gpu:error:{exc.code}", "title": exc.what, "status": status}
    if exc.where:
        body["instance"] = exc.where
    headers = {"retry-after": RETRY_AFTER_S} if status in _RETRY else None
    return JSONResponse(body, status, headers, media_type="application/problem+json")
