"""The administrators' endpoints that concern no single key: revocations, leases, tenants' limits, the audit log.

Who is limited to repositories sees what concerns them and nothing else; what concerns everybody is for the others.
"""

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from attestation.broker.revocation import RevocationKind
from attestation.broker.roles import Principal
from attestation.errors import Malformed
from attestation.ops import revocations
from attestation.service.admin import AdminApi, resource_path
from attestation.service.wire import QuotaUpload, RevocationUpload, parse_body
from attestation.sources.tenants import Quota
from attestation.values import ResourcePath

MAX_TAIL, _MAX_DIGITS = 1000, 4


def list_revocations(api: AdminApi, _request: Request, who: Principal, _body: bytes) -> Response:
    """`GET /api/v1/revocations`."""
    found = revocations.list_revocations(api.world, who)
    return JSONResponse({"revocations": [revocation.to_json() for revocation in found]})


def revoke(api: AdminApi, _request: Request, who: Principal, body: bytes) -> Response:
    """`POST /api/v1/revocations`: refuse an identity or firmware; answers with the leases that this ended."""
    upload = parse_body(RevocationUpload, body)
    kind = _kind(upload.kind)
    ended = revocations.revoke(api.world, who, kind, upload.value, upload.reason, now=api.clock())
    return JSONResponse({"kind": kind, "value": upload.value, "ended": [lease.to_json() for lease in ended]})


def unrevoke(api: AdminApi, request: Request, who: Principal, _body: bytes) -> Response:
    """`DELETE /api/v1/revocations?kind=&value=`."""
    kind, value = _kind(request.query_params.get("kind", "")), request.query_params.get("value", "")
    return JSONResponse({"removed": revocations.unrevoke(api.world, who, kind, value, now=api.clock())})


def list_leases(api: AdminApi, request: Request, who: Principal, _body: bytes) -> Response:
    """`GET /api/v1/leases?path=`."""
    text = request.query_params.get("path")
    path = None if text is None else ResourcePath.parse(text)
    found = revocations.list_leases(api.world, who, path, now=api.clock())
    return JSONResponse({"leases": [lease.to_json() for lease in found]})


def list_tenants(api: AdminApi, _request: Request, who: Principal, _body: bytes) -> Response:
    """`GET /api/v1/tenants`: limits, and what was used of them."""
    return JSONResponse({"tenants": revocations.list_quotas(api.world, who, now=api.clock())})


def set_tenant(api: AdminApi, request: Request, who: Principal, body: bytes) -> Response:
    """`PUT /api/v1/tenants/<repository>`: its limits; those not given are lifted."""
    name: str = request.path_params["name"]
    upload = parse_body(QuotaUpload, body)
    revocations.set_quota(api.world, who, name, Quota(**upload.model_dump()), now=api.clock())
    return JSONResponse({"tenant": name, **upload.model_dump()})


def audit_tail(api: AdminApi, request: Request, who: Principal, _body: bytes) -> Response:
    """`GET /api/v1/audit?last=100&repository=`."""
    last = request.query_params.get("last", "100")
    if not last.isascii() or not last.isdigit() or len(last) > _MAX_DIGITS or not 0 < int(last) <= MAX_TAIL:
        raise Malformed("audit-last", "bad count", where="last", expected=f"1..{MAX_TAIL}", got=last[:20])
    found = revocations.audit_tail(api.world, who, int(last), request.query_params.get("repository"))
    return JSONResponse({"entries": [entry.to_json() for entry in found]})


def policy_history(api: AdminApi, request: Request, who: Principal, _body: bytes) -> Response:
    """`GET /api/v1/policies/<path>`: who gave the key which policy when."""
    path = resource_path(request)
    return JSONResponse({"path": str(path), "changes": revocations.policy_history(api.world, who, path)})


def _kind(text: str) -> RevocationKind:
    try:
        return RevocationKind(text)
    except ValueError as exc:
        expected = "|".join(RevocationKind)
        raise Malformed("revocation-kind", "unknown kind", where="kind", expected=expected, got=text[:40]) from exc
