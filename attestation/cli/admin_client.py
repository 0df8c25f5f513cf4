"""The broker's admin API as a client."""

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, NoReturn

from attestation.crypto.b64 import b64
from attestation.errors import AttestationError, Denied, Misconfigured, Unavailable
from attestation.formats.json_strict import require_object
from attestation.guest.commands.common import said_pace
from attestation.guest.http import PinnedHttp, Reply
from attestation.values import ResourcePath, Secret

_MAX_DETAIL_CHARS = 300


class AdminClient:
    """One administrator at one broker. For https the certificate is pinned; http is for loopback alone."""

    def __init__(self, url: str, *, certificate: str | None, token: str) -> None:
        if not token.isascii() or not token.isprintable() or not token:
            raise Misconfigured("admin-token", "not a token", where="--admin-token-file", expected="one line of text")
        self._http = PinnedHttp(url, certificate=certificate, pace=said_pace())
        self._headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}

    def keep_key(
        self, path: ResourcePath, secret: Secret, *, labels: tuple[str, ...] = (), policy: bytes | None = None
    ) -> int:
        """Have these bytes under this name, with these labels and this policy (TOML), in one request: the version.

        Whatever the broker refuses changes nothing there. A key that exists is never replaced and never deleted.
        """
        document = {"secret": b64(secret.expose()), "labels": labels}
        if policy is not None:
            document["policy"] = policy.decode("utf-8", "replace")
        reply = self._call("PUT", f"/api/v1/keys/{path}", json.dumps(document).encode("ascii"))
        version = require_object(reply.json(), "key").get("version")
        if type(version) is not int:
            raise Unavailable("admin-answer", "not an answer of this broker's API", where=reply.where, got=version)
        return version

    def call(self, method: str, path: str, document: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
        """One request of `/api/v1` and the JSON object that answers it."""
        data = None if document is None else json.dumps(document).encode("ascii")
        reply = self._call(method, path, data)
        return require_object(reply.json(), reply.where)

    def _call(self, method: str, path: str, data: bytes | None) -> Reply:
        reply = self._http.call(method, path, data=data, headers=self._headers)
        if reply.status != 200:
            _refuse(reply)
        return reply


def _refuse(reply: Reply) -> NoReturn:
    got = f"{reply.status} {_detail(reply)}".strip()
    if reply.status in {401, 403}:
        raise Denied("admin-denied", "the broker refused", where=reply.where, got=got)
    if reply.status < 500:
        other = reply.status == HTTPStatus.NOT_FOUND and _detail(reply) in {"", "Not Found"}  # no answer of this API
        expected = "the administrators' listener (`serve --admin-listen`)" if other else ""
        raise Misconfigured(
            "admin-refused", "the broker does not accept this", where=reply.where, expected=expected, got=got
        )
    raise Unavailable("admin-failed", "the broker failed", where=reply.where, got=got)


def _detail(reply: Reply) -> str:
    try:
        problem = require_object(reply.json(), reply.where)  # RFC 9457
    except AttestationError:
        return ""
    said = [text for name in ("title", "instance") if isinstance(text := problem.get(name), str)]
    return " ".join(" ".join(said).split())[:_MAX_DETAIL_CHARS]
