"""Root key in Vault or OpenBao Transit: data keys go there to be wrapped; the root key never comes here.

The Transit key is of type `aes256-gcm96`, so that the context is bound as associated data. Versions are Transit's own:
a ciphertext names its version, old ones open as long as `min_decryption_version` lets them.
"""

import binascii
from base64 import b64decode, b64encode
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from attestation.errors import Misconfigured, Unavailable, Untrusted
from attestation.sources.atomic import read_bounded
from attestation.values import Secret

TIMEOUT_S = 5  # a release waits for it
MAX_TOKEN_BYTES = 4096
_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


class TransitRootKey:
    """One key of one Transit mount. The token file is read again when the server refuses the token: agents renew it."""

    def __init__(
        self,
        *,
        url: str,
        key: str,
        token_file: Path,
        mount: str = "transit",
        namespace: str | None = None,
        ca_file: Path | None = None,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in _LOOPBACK):
            raise Misconfigured("transit-url", "data keys travel only over TLS", expected="https://", got=url[:80])
        try:
            import hvac
        except ImportError as exc:
            raise Misconfigured("transit-client", "hvac is not installed", expected="kata-gpu[vault]") from exc
        self._key, self._mount, self._token_file = key, mount, token_file
        self._client: Any = hvac.Client(
            url=url,
            token=self._token(),
            timeout=TIMEOUT_S,
            namespace=namespace,
            allow_redirects=False,
            verify=str(ca_file) if ca_file else True,
        )
        self.name = f"transit:{parts.netloc}/{namespace + '/' if namespace else ''}{mount}/{key}"[:128]

    def wrap(self, key: Secret, context: bytes) -> bytes:
        """`POST /v1/<mount>/encrypt/<key>`. Raises Unavailable."""
        answer = self._call(
            self._client.secrets.transit.encrypt_data,
            plaintext=b64encode(key.expose()).decode(),
            associated_data=b64encode(context).decode(),
        )
        text = _member(answer, "ciphertext")
        if not text.startswith("vault:v"):
            raise Unavailable("transit-answer", "not a Transit ciphertext", where=self.name)
        return text.encode()

    def unwrap(self, wrapped: bytes, context: bytes) -> Secret:
        """`POST /v1/<mount>/decrypt/<key>`. Raises Unavailable."""
        answer = self._call(
            self._client.secrets.transit.decrypt_data,
            ciphertext=wrapped.decode("ascii", "replace"),
            associated_data=b64encode(context).decode(),
        )
        try:
            return Secret(b64decode(_member(answer, "plaintext"), validate=True))
        except binascii.Error as exc:
            raise Unavailable("transit-answer", "not base64", where=self.name) from exc

    def _call(self, method: Any, **arguments: str) -> Any:
        import hvac.exceptions as refused
        import requests

        try:
            try:
                return method(name=self._key, mount_point=self._mount, **arguments)
            except refused.Forbidden:
                self._client.token = self._token()
                return method(name=self._key, mount_point=self._mount, **arguments)
        # Their texts may quote the request, which holds a data key: only their kinds leave.
        except refused.InvalidRequest:
            raise Untrusted("envelope", "the root key provider refuses this envelope", where=self.name) from None
        except (refused.Forbidden, refused.Unauthorized, refused.InvalidPath) as exc:
            kind = type(exc).__name__
            raise Unavailable("transit-refused", "Transit refuses us", where=self.name, got=kind) from None
        except (refused.VaultError, requests.RequestException, ValueError) as exc:
            kind = type(exc).__name__
            raise Unavailable("transit", "Transit does not answer", where=self.name, got=kind) from None

    def _token(self) -> str:
        return read_bounded(self._token_file, MAX_TOKEN_BYTES).decode("ascii", "replace").strip()


def _member(answer: Any, name: str) -> str:
    data = answer.get("data") if isinstance(answer, dict) else None
    value = data.get(name) if isinstance(data, dict) else None
    if not isinstance(value, str):
        raise Unavailable("transit-answer", "Transit answers something else", where=name)
    return value
