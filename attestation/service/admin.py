"""The administrators' endpoints: upstream's, which `kbs-client` calls and which answer exactly 200, and `/api/v1`."""

import functools
from collections.abc import Awaitable, Callable

import structlog
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from attestation.broker.keys import KeyKind
from attestation.broker.roles import Principal, Verb
from attestation.crypto.b64 import b64, parse_b64, parse_b64url
from attestation.errors import AttestationError, Malformed
from attestation.ops import administer, model_keys
from attestation.ops.references import register_message
from attestation.ops.release import RESOURCE_POLICY
from attestation.service.desk import Desk
from attestation.service.problems import kbs_problem, problem
from attestation.service.request import bearer_token, kbs_path, read_body
from attestation.service.wire import MAX_ADMIN_BODY_BYTES, KeyUpload, PolicyUpload, parse_body
from attestation.sources.policy_store import PolicyKind
from attestation.values import JsonValue, ResourcePath, Secret

log = structlog.get_logger()
Handler = Callable[["AdminApi", Request, Principal, bytes], Response]


def _ok() -> Response:
    return Response(status_code=200)


class AdminApi:
    """Handlers over one world. Each authenticates first; the body is read within its bound before that."""

    def __init__(self, desk: Desk, *, deny_status: int = 403) -> None:
        self.world, self.metrics, self.clock = desk.world, desk.metrics, desk.clock
        self._desk, self._deny_status = desk, deny_status

    def endpoint(self, handler: Handler, *, kbs: bool) -> Callable[[Request], Awaitable[Response]]:
        """Wrap a handler: authenticate, run in the pool, turn errors into the right kind of body."""

        async def run(request: Request) -> Response:
            try:
                self._desk.admit(request)
                body = await read_body(request, MAX_ADMIN_BODY_BYTES)
                return await self._desk.workers.run(self._guarded, handler, request, body)
            except AttestationError as exc:
                self.metrics.refused("admin", exc.code)
                log.warning("admin.refused", code=exc.code, where=exc.where, reason=exc.what)
                return kbs_problem(exc, deny_status=self._deny_status) if kbs else problem(exc)

        return functools.wraps(handler)(run)

    def _guarded(self, handler: Handler, request: Request, body: bytes) -> Response:
        who = administer.authenticate_admin(self.world, bearer_token(request), now=self.clock())
        return handler(self, request, who, body)


def put_resource(api: AdminApi, request: Request, who: Principal, body: bytes) -> Response:
    """`POST /kbs/v0/resource/...`: the body is the secret, byte for byte."""
    administer.put_key(api.world, who, resource_path(request), Secret(body), now=api.clock())
    api.metrics.resource_writes.inc()
    return _ok()


def delete_resource(api: AdminApi, request: Request, who: Principal, _body: bytes) -> Response:
    """`DELETE /kbs/v0/resource/...`."""
    administer.delete_key(api.world, who, resource_path(request), now=api.clock())
    api.metrics.resource_deletes.inc()
    return _ok()


def put_resource_policy(api: AdminApi, _request: Request, who: Principal, body: bytes) -> Response:
    """`POST /kbs/v0/resource-policy`."""
    text = _policy_text(parse_body(PolicyUpload, body).policy)
    administer.set_rego_policy(api.world, who, PolicyKind.REGO_RESOURCE, RESOURCE_POLICY, text, now=api.clock())
    return _ok()


def list_resource_policies(api: AdminApi, _request: Request, who: Principal, _body: bytes) -> Response:
    """`GET /kbs/v0/resource-policy`: names."""
    return JSONResponse(list(administer.policy_names(api.world, who)))


def put_attestation_policy(api: AdminApi, _request: Request, who: Principal, body: bytes) -> Response:
    """`POST /kbs/v0/attestation-policy`."""
    upload = parse_body(PolicyUpload, body)
    text = _policy_text(upload.policy)
    administer.set_rego_policy(api.world, who, PolicyKind.REGO_ATTESTATION, upload.policy_id, text, now=api.clock())
    return _ok()


def put_reference_value(api: AdminApi, _request: Request, who: Principal, body: bytes) -> Response:
    """`POST /kbs/v0/reference-value`: an RVPS message, `sample` or `swid`."""
    register_message(api.world, who, body, now=api.clock())
    return JSONResponse(None, headers=None)


def get_reference_value(api: AdminApi, request: Request, who: Principal, _body: bytes) -> Response:
    """`GET /kbs/v0/reference-value/<id>`: the value in force, or `null`."""
    who.require(Verb.READ)
    return JSONResponse(api.world.references.raw(request.path_params["name"], api.clock()))


def list_keys(api: AdminApi, request: Request, who: Principal, _body: bytes) -> Response:
    """`GET /api/v1/keys?repository=`."""
    records = administer.list_keys(api.world, who, request.query_params.get("repository"))
    return JSONResponse({"keys": [record.to_json() for record in records]})


def get_key(api: AdminApi, request: Request, who: Principal, _body: bytes) -> Response:
    """`GET /api/v1/keys/<path>`: metadata, versions and policy; never the secret."""
    path = resource_path(request)
    who.require(Verb.READ, path.repository)
    record = administer.existing_key(api.world, path)
    body = record.to_json() | {"versions": list(api.world.keys.versions(path)), "policy": record.policy}
    return JSONResponse(body)


def make_model_key(api: AdminApi, request: Request, who: Principal, _body: bytes) -> Response:
    """`POST /api/v1/keys/<path>`: a new model key, or a new version of one. Its bytes never leave the broker here."""
    path = resource_path(request)
    version = administer.put_key(api.world, who, path, None, kind=KeyKind.MODEL_KEY, now=api.clock())
    return JSONResponse({"path": str(path), "version": version})


def keep_key(api: AdminApi, request: Request, who: Principal, body: bytes) -> Response:
    """`PUT /api/v1/keys/<path>`: secret, labels and release policy, all of them or nothing; never other bytes."""
    path, upload = resource_path(request), parse_body(KeyUpload, body)
    secret = Secret(parse_b64(upload.secret, where="secret"))
    version = administer.keep_key(
        api.world, who, path, secret, labels=upload.labels, policy=upload.policy, now=api.clock()
    )
    api.metrics.resource_writes.inc()
    return JSONResponse({"path": str(path), "version": version})


def wrap_key(api: AdminApi, request: Request, who: Principal, body: bytes) -> Response:
    """`POST /api/v1/wrap/<path>`: the body, a data key, under the newest version of a model key."""
    path = resource_path(request)
    version, packet = model_keys.wrap_key(api.world, who, path, body, now=api.clock())
    return JSONResponse({"path": str(path), "version": version, "annotation": packet})


def unwrap_key(api: AdminApi, request: Request, who: Principal, body: bytes) -> Response:
    """`POST /api/v1/unwrap/<path>`: the body, an annotation, back to the data key in base64."""
    path = resource_path(request)
    version, data = model_keys.unwrap_key(api.world, who, path, _utf8(body), now=api.clock())
    return JSONResponse({"path": str(path), "version": version, "data": b64(data.expose())})


def put_key_policy(api: AdminApi, request: Request, who: Principal, body: bytes) -> Response:
    """`PUT /api/v1/policies/<path>`: TOML, the release policy of one key."""
    path = resource_path(request)
    administer.set_key_policy(api.world, who, path, _utf8(body), now=api.clock())
    return JSONResponse({"path": str(path)})


def attestations(api: AdminApi, _request: Request, who: Principal, _body: bytes) -> Response:
    """`GET /api/v1/attestations`: the newest results."""
    who.require(Verb.READ)
    rows: list[JsonValue] = [
        {
            "jti": result.jti,
            "issued": result.issued.isoformat(),
            "status": str(result.status),
            "tee": str(result.facts.cpu.tee),
            "chip_id": result.facts.cpu.chip_id,
            "devices": [device.chip_id for device in result.facts.devices],
        }
        for result in api.world.attestations.recent(100)
    ]
    return JSONResponse({"attestations": rows})


def resource_path(request: Request) -> ResourcePath:
    """The key that the URL names. Raises Malformed."""
    kbs_path(request)
    return ResourcePath.parse(request.path_params["resource"])


def _policy_text(encoded: str) -> str:
    return _utf8(parse_b64url(encoded.rstrip("="), where="policy"))


def _utf8(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as exc:
        raise Malformed("body", "not UTF-8", where="body") from exc
