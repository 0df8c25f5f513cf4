"""The broker's admin API as a client: keys and their release policies."""

from typing import NoReturn
from urllib.parse import urlencode

from attestation.errors import AttestationError, Denied, Misconfigured, Unavailable
from attestation.formats.json_strict import require_object
from attestation.guest.http import PinnedHttp, Reply
from attestation.values import ResourcePath, Secret

_MAX_DETAIL_CHARS = 300


class AdminClient:
    """One administrator at one broker. For https the certificate is pinned; http is for loopback alone."""

    def __init__(self, url: str, *, certificate: str | None, token: str) -> None:
        if not token.isascii() or not token.isprintable() or not token:
            raise Misconfigured("admin-token", "not a token", expected="one line of text")
        self._http = PinnedHttp(url, certificate=certificate)
        self._headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/octet-stream"}

    def put_key(self, path: ResourcePath, secret: Secret, labels: tuple[str, ...] = ()) -> None:
        """Store a secret under a name; an existing one gets a new version. Every label must be on it afterwards."""
        query = f"?{urlencode([('label', label) for label in labels])}" if labels else ""
        self._call("POST", f"/kbs/v0/resource/{path}{query}", secret.expose())
        if labels:
            got = require_object(self._call("GET", f"/api/v1/keys/{path}", None).json(), "key").get("labels")
            if not isinstance(got, list) or not set(labels) <= set(got):
                self.delete_key(path)
                raise Misconfigured(
                    "key-labels",
                    "the broker does not give the key these labels (use `kata-gpu-kbs key add --label`)",
                    where=str(path),
                    expected=", ".join(labels),
                    got=got,
                )

    def put_policy(self, path: ResourcePath, toml: bytes) -> None:
        """Set the release policy of an existing key."""
        self._call("PUT", f"/api/v1/policies/{path}", toml)

    def delete_key(self, path: ResourcePath) -> None:
        """Delete a key with all its versions."""
        self._call("DELETE", f"/kbs/v0/resource/{path}", None)

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
        raise Misconfigured("admin-refused", "the broker does not accept this", where=reply.where, got=got)
    raise Unavailable("admin-failed", "the broker failed", where=reply.where, got=got)


def _detail(reply: Reply) -> str:
    try:
        text = require_object(reply.json(), reply.where).get("detail")
    except AttestationError:
        return ""
    return " ".join(text.split())[:_MAX_DETAIL_CHARS] if isinstance(text, str) else ""
