"""The Kubernetes API with plain dicts, on the REST core of the official client.

Only its configuration (kubeconfig, in-cluster token with rotation, exec plugins) and its HTTP pool are used. The typed
models are left alone: they cost 20 MiB, drop fields that they do not know and send fields that a server does not know
(docs/adr/0005-kubernetes-client.md). Nothing here retries: callers know what a retry means.
"""

import json
import warnings
from collections.abc import Iterator
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlencode, urlsplit

import urllib3
import yaml
from kubernetes.client import Configuration
from kubernetes.client.rest import RESTClientObject
from kubernetes.config import ConfigException, load_incluster_config, load_kube_config

from kata_gpu.core.api_errors import Conflict, Gone, NotFound, Refused, TooMany
from kata_gpu.errors import KataGpuError, Misconfigured, Unavailable
from kata_gpu.ports import JsonObject

PAGE = 500  # objects per list page, as client-go's reflector
MAX_BODY = 64 << 20  # one page of large objects; etcd holds 1.5 MiB each
CONNECT_S = 5.0
WATCH_SLACK_S = 10.0  # the server ends a watch in time; a dead connection must not hold us longer
_BY_STATUS: dict[int, type[KataGpuError]] = {404: NotFound, 409: Conflict, 410: Gone, 429: TooMany}


class KubeApi:
    """`Kube` over HTTP."""

    def __init__(self, configuration: Configuration) -> None:
        configuration.retries = False
        self._configuration = configuration
        self._pool = RESTClientObject(configuration).pool_manager

    @classmethod
    def connect(cls, *, kubeconfig: Path | None = None, server: str = "") -> Self:
        """From a kubeconfig, else a server's URL, else the pod's service account.

        Raises Misconfigured, also for plain HTTP beyond this machine.
        """
        configuration = Configuration()
        try:
            if kubeconfig is not None:
                load_kube_config(str(kubeconfig), client_configuration=configuration)  # type: ignore[no-untyped-call]
            elif server:
                _require_private(server)
                configuration.host = server
            else:
                load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
        except (ConfigException, OSError) as exc:
            raise Misconfigured(
                "kube-config",
                "no usable access to the Kubernetes API",
                where="" if kubeconfig is None else str(kubeconfig),
                got=exc if kubeconfig is None or kubeconfig.exists() else "No such file or directory",
                hint="give --kubeconfig ~/.kube/config, or run in a pod" if kubeconfig is None else "",
            ) from exc
        except (yaml.YAMLError, AttributeError, KeyError, TypeError, ValueError) as exc:  # its loader looks at nothing
            raise Misconfigured(
                "kube-config",
                "not a kubeconfig",
                where=str(kubeconfig),
                expected="YAML with clusters, users and a current-context",
                got=" ".join(str(exc).split())[:120] if isinstance(exc, yaml.YAMLError) else "another document",
            ) from exc
        _require_private(configuration.host)
        if not configuration.verify_ssl:  # the kubeconfig's choice: said once, not at every request
            warnings.filterwarnings("once", category=urllib3.exceptions.InsecureRequestWarning)
        return cls(configuration)

    def get(self, path: str, *, timeout_s: float) -> JsonObject:
        """One object."""
        return self._json("GET", path, timeout_s)

    def list(self, path: str, *, field_selector: str = "", timeout_s: float) -> tuple[list[JsonObject], str]:
        """All pages. The resourceVersion is that of the first page: all pages show one moment."""
        items: list[JsonObject] = []
        query: dict[str, str | int] = {"limit": PAGE}
        if field_selector:
            query["fieldSelector"] = field_selector
        while True:
            page = self._json("GET", f"{path}?{urlencode(query)}", timeout_s)
            items += page.get("items") or []
            metadata = page.get("metadata") or {}
            if not metadata.get("continue"):
                return items, str(metadata.get("resourceVersion", ""))
            query["continue"] = metadata["continue"]

    def create(self, path: str, body: JsonObject, *, timeout_s: float) -> JsonObject:
        """POST."""
        return self._json("POST", path, timeout_s, body, "application/json")

    def replace(self, path: str, body: JsonObject, *, timeout_s: float) -> JsonObject:
        """PUT; with a resourceVersion in the body a lost race is Conflict."""
        return self._json("PUT", path, timeout_s, body, "application/json")

    def merge(self, path: str, body: JsonObject, *, timeout_s: float) -> JsonObject:
        """PATCH, RFC 7386."""
        return self._json("PATCH", path, timeout_s, body, "application/merge-patch+json")

    def apply(self, path: str, body: JsonObject, *, manager: str, timeout_s: float) -> JsonObject:
        """Server-side apply. JSON is YAML."""
        query = urlencode({"fieldManager": manager, "force": "true"})
        return self._json("PATCH", f"{path}?{query}", timeout_s, body, "application/apply-patch+yaml")

    def delete(self, path: str, *, uid: str = "", timeout_s: float) -> None:
        """DELETE; 404 is success, another object of that name is Conflict."""
        options: JsonObject = {"kind": "DeleteOptions", "apiVersion": "v1"}
        if uid:
            options["preconditions"] = {"uid": uid}
        try:
            self._json("DELETE", path, timeout_s, options, "application/json")
        except NotFound:
            return

    def watch(
        self, path: str, *, resource_version: str, field_selector: str = "", timeout_s: float
    ) -> Iterator[JsonObject]:
        """Events until the server closes after `timeout_s`; bookmarks keep the version young."""
        query = {
            "watch": "true",
            "resourceVersion": resource_version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(max(1, int(timeout_s))),
        }
        if field_selector:
            query["fieldSelector"] = field_selector
        response = self._send("GET", f"{path}?{urlencode(query)}", timeout_s + WATCH_SLACK_S, None, "")
        try:
            for line in _lines(response, path):
                event = _decode(line, path)
                if event.get("type") == "ERROR":
                    status = event.get("object") or {}
                    raise _error(int(status.get("code", 500)), path, str(status.get("message", "")))
                yield event
        finally:
            response.close()
            response.release_conn()

    def _json(
        self, method: str, path: str, timeout_s: float, body: JsonObject | None = None, content_type: str = ""
    ) -> JsonObject:
        response = self._send(method, path, timeout_s, body, content_type)
        try:
            data = response.read(MAX_BODY + 1)
            response.release_conn()
        except urllib3.exceptions.HTTPError as exc:
            raise _unreachable(path, exc) from exc
        if len(data) > MAX_BODY:
            raise Unavailable("api-body", "the answer of the API server is too large", where=path, expected=MAX_BODY)
        return _decode(data, path)

    def _send(self, method: str, path: str, timeout_s: float, body: JsonObject | None, content_type: str) -> Any:
        headers = {"Accept": "application/json", "User-Agent": "kata-gpu"}
        token = self._configuration.get_api_key_with_prefix("BearerToken", alias="authorization")
        if token:
            headers["Authorization"] = token
        if content_type:
            headers["Content-Type"] = content_type
        try:
            response = self._pool.request(
                method,
                self._configuration.host + path,
                headers=headers,
                body=None if body is None else encode(body),
                timeout=urllib3.Timeout(connect=min(CONNECT_S, timeout_s), read=timeout_s),
                preload_content=False,
            )
            if 200 <= response.status < 300:
                return response
            message = response.read(1 << 16).decode(errors="replace")
            response.release_conn()
        except (urllib3.exceptions.HTTPError, OSError) as exc:
            raise _unreachable(path, exc) from exc
        try:
            message = str(json.loads(message)["message"])
        except (ValueError, KeyError, TypeError):
            message = message[:200]
        raise _error(response.status, path, message)


def _require_private(server: str) -> None:
    """Raise Misconfigured for plain HTTP beyond this machine: who is on the way would be believed, and read tokens."""
    with suppress(ValueError):  # of `urlsplit`: brackets that hold no address
        parts = urlsplit(server)
        if parts.hostname and (parts.scheme == "https" or (parts.scheme == "http" and _is_loopback(parts.hostname))):
            return
    raise Misconfigured(
        "kube-server", "not an API server to be trusted with this node", where=server,
        expected="https://..., or http:// to a loopback address", hint="give --kubeconfig, or run in a pod",
    )  # fmt: skip


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def encode(body: JsonObject) -> bytes:
    """As Go writes JSON: no blanks, sorted. The server keeps opaque parameters byte by byte and rewrites them in this
    form at every patch; had they another, a patch of the claim's status would change its immutable allocation.
    """
    return json.dumps(body, separators=(",", ":"), sort_keys=True).encode()


def _lines(response: Any, path: str) -> Iterator[bytes]:
    rest = b""
    try:
        for chunk in response.stream(1 << 16, decode_content=True):
            *lines, rest = (rest + chunk).split(b"\n")
            yield from filter(None, lines)
            if len(rest) > MAX_BODY:
                raise Unavailable("api-body", "an event of the API server is too large", where=path, expected=MAX_BODY)
    except (urllib3.exceptions.HTTPError, OSError) as exc:
        raise _unreachable(path, exc) from exc


def _decode(data: bytes, path: str) -> JsonObject:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as exc:
        raise Unavailable("api-json", "the API server did not answer JSON", where=path, got=str(exc)) from exc
    if not isinstance(value, dict):
        raise Unavailable("api-json", "the API server did not answer an object", where=path)
    return value


def _error(status: int, path: str, message: str) -> KataGpuError:
    kind = _BY_STATUS.get(status) or (Unavailable if status >= 500 else Refused)
    return kind(f"api-{status}", f"the API server answered {status}", where=path, got=message)


def _unreachable(path: str, exc: Exception) -> Unavailable:
    return Unavailable(
        "api-unreachable", "cannot reach the API server", where=path, got=" ".join(str(exc).split())[:200]
    )
