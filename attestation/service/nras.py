"""NVIDIA-shaped HTTP services, so that NVIDIA's own clients work in an air-gapped site: NRAS and a RIM mirror.

They belong on a listener of their own. Clients look for keys at `/.well-known/jwks.json` of the address they sent
evidence to, and the broker's key set at the same path must never hold this key: these tokens release nothing.
"""

import base64
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from attestation.appraise.nv_claims import ClaimsVersion
from attestation.errors import AttestationError, Denied, Malformed, Unavailable, Untrusted
from attestation.formats.collateral import Kind, require_id
from attestation.formats.nv_evidence import MAX_JSON_BYTES
from attestation.ops.nras import NrasIdentity, answer, parse_request
from attestation.service.request import read_body
from attestation.service.workers import Workers
from attestation.sources.collateral import Collateral
from attestation.values import DeviceKind
from attestation.verify.nv_gpu import Collateral as NvCollateral

_STATUS: tuple[tuple[type[AttestationError], int], ...] = (
    (Malformed, 400),
    (Untrusted, 422),
    (Denied, 413),
    (Unavailable, 503),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class NrasSettings:
    """What the routes answer from. `verify` is complete but for `now`, which `clock` gives for every request.

    `verification_time`, where set, is used instead of the clock to judge evidence (tokens are still issued now).
    """

    store: Collateral
    verify: NvCollateral
    identity: NrasIdentity
    clock: Callable[[], datetime]
    verification_time: datetime | None = None


def nras_routes(settings: NrasSettings, workers: Workers) -> list[BaseRoute]:
    """`/v3` and `/v4/attest/{gpu,switch}`, the key set, and the RIM mirror."""
    api = _Api(settings, workers)
    return [
        *(
            Route(f"/{version}/attest/{name}", api.attest(kind, version), methods=["POST"])
            for version in ("v3", "v4")
            for name, kind in (("gpu", DeviceKind.GPU), ("switch", DeviceKind.NVSWITCH))
        ),
        Route("/.well-known/jwks.json", api.jwks, methods=["GET"]),
        Route("/v1/rim/ids", api.rim_ids, methods=["GET"]),
        Route("/v1/rim/{rim_id}", api.rim, methods=["GET"]),
    ]


def problem(exc: AttestationError) -> Response:
    """RFC 9457. Evidence that is well formed and false is 422: the client cannot mend it by asking again."""
    status = next((code for kind, code in _STATUS if isinstance(exc, kind)), 500)
    body = {"type": f"urn:kata-gpu:error:{exc.code}", "title": exc.what, "status": status, "detail": str(exc)}
    return JSONResponse(body, status, media_type="application/problem+json")


class _Api:
    def __init__(self, settings: NrasSettings, workers: Workers) -> None:
        self._settings, self._workers = settings, workers

    def attest(self, kind: DeviceKind, path_version: str) -> Callable[[Request], object]:
        """Handler of one attest route. Version 4 tokens carry `aud`; version 3 clients refuse tokens that do."""
        is_v3 = path_version == "v3"
        settings = self._settings
        identity = replace(settings.identity, audience=None) if is_v3 else settings.identity

        def work(body: bytes) -> Response:
            request = parse_request(body, kind, ClaimsVersion.V2 if is_v3 else ClaimsVersion.V3)
            issued = settings.clock()
            collateral = replace(settings.verify, now=settings.verification_time or issued)
            return JSONResponse(answer(request, collateral, identity, issued=issued))

        async def handle(request: Request) -> Response:
            try:
                return await self._workers.run(work, await read_body(request, MAX_JSON_BYTES))
            except AttestationError as exc:
                return problem(exc)

        return handle

    async def jwks(self, _request: Request) -> Response:
        return JSONResponse(self._settings.identity.key.jwks())

    async def rim_ids(self, _request: Request) -> Response:
        ids = self._settings.store.ids(Kind.RIM)
        newest = max((d.first_seen for i in ids for d in self._settings.store.get(Kind.RIM, i)), default=None)
        body = {
            "ids": list(ids),
            "last_updated": _time(newest) if newest else None,
            "request_id": self._settings.identity.new_id(),
        }
        return JSONResponse(body)

    async def rim(self, request: Request) -> Response:
        """The newest usable document of an id, in the JSON of NVIDIA's RIM service."""
        try:
            rim_id = require_id(request.path_params["rim_id"], where="RIM id")
        except Malformed as exc:
            return problem(exc)
        documents = self._settings.store.get(Kind.RIM, rim_id)
        if not documents:
            body = {"type": "urn:kata-gpu:error:rim-not-found", "title": "no such document is stored", "status": 404}
            return JSONResponse(body, 404, media_type="application/problem+json")
        newest = documents[0]
        return JSONResponse(
            {
                "id": rim_id,
                "rim": base64.b64encode(newest.content).decode(),
                "sha256": newest.sha256,
                "last_updated": _time(newest.first_seen),
                "rim_format": "TCG",
                "request_id": self._settings.identity.new_id(),
            }
        )


def _time(moment: datetime) -> str:
    return moment.replace(tzinfo=None).isoformat(timespec="microseconds")
