"""The fake API server over real HTTP: connection handling, watches and faults around `fake_store.Store`."""

import json
import socket
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.kata_gpu.dra.fake_store import KINDS, ApiError, Kind, Object, Store

APPLY = "application/apply-patch+yaml"
MERGE = "application/merge-patch+json"


class FakeApi:
    """`url` answers like a kube-apiserver. Faults: `down`, `latency_s`, `fail_next`, `drop_watches`."""

    def __init__(self) -> None:
        self.store = Store()
        self.down = False
        self.latency_s = 0.0
        self.failures: list[tuple[str, int]] = []  # (resource or "", status), consumed in order
        self.watch_epoch = 0
        self.sockets: set[socket.socket] = set()
        self._http = _Server(("127.0.0.1", 0), _Handler)
        self._http.api = self
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """Base URL."""
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    def fail_next(self, status: int, *, resource: str = "", times: int = 1) -> None:
        """The next requests on `resource` get `status`."""
        self.failures += [(resource, status)] * times

    def drop_watches(self) -> None:
        """Cut every watch, as a load balancer does."""
        with self.store.lock:
            self.watch_epoch += 1
            self.store.lock.notify_all()

    def go_down(self) -> None:
        """Refuse and cut everything."""
        self.down = True
        self.drop_watches()

    def stop(self) -> None:
        """Close."""
        self.go_down()
        self._http.shutdown()
        self._http.server_close()
        for open_socket in list(self.sockets):
            with suppress(OSError):
                open_socket.shutdown(socket.SHUT_RDWR)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    api: FakeApi

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up are part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def setup(self) -> None:
        super().setup()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.server.api.sockets.add(self.connection)

    def finish(self) -> None:
        self.server.api.sockets.discard(self.connection)
        with suppress(OSError, ValueError):
            super().finish()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Quiet."""

    def _serve(self) -> None:
        api = self.server.api
        length = int(self.headers.get("Content-Length") or 0)
        raw = self.rfile.read(length)
        if api.latency_s:
            time.sleep(api.latency_s)
        if api.down:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        url = urlsplit(self.path)
        query = {k: v[-1] for k, v in parse_qs(url.query).items()}
        try:
            if self.command == "GET" and (found := discovery(url.path)) is not None:
                self._send(200, found)
                return
            kind, namespace, name, sub = route(url.path)
            for index, (resource, status) in enumerate(api.failures):
                if resource in {"", kind.resource}:
                    del api.failures[index]
                    raise ApiError(status, "Injected", "injected fault")
            if self.command == "GET" and query.get("watch") in {"1", "true"}:
                self._watch(kind, query)
                return
            body = json.loads(raw) if raw else {}
            self._send(*self._answer(kind, namespace, name, sub, query, body))
        except ApiError as exc:
            self._send(exc.code, exc.body)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _serve  # noqa: N815

    def _answer(
        self, kind: Kind, namespace: str, name: str, sub: str, query: dict[str, str], body: Object
    ) -> tuple[int, Object]:
        store, status = self.server.api.store, sub == "status"
        fields, labels = query.get("fieldSelector", ""), query.get("labelSelector", "")
        match self.command, bool(name):
            case "GET", True:
                return 200, store.get(kind, namespace, name)
            case "GET", False:
                return 200, self._list(kind, namespace, query)
            case "POST", True if sub == "eviction":
                return 201, evict(store, namespace, name)
            case "POST", False:
                return 201, store.create(kind, namespace, body, self.headers.get("X-Remote-User", ""))
            case "PUT", True:
                return 200, store.replace(kind, namespace, name, body, status=status)
            case "PATCH", True if self.headers["Content-Type"] == APPLY:
                force = query.get("force") == "true"
                return 200, store.apply(kind, namespace, name, body, query["fieldManager"], force=force, status=status)
            case "PATCH", True if self.headers["Content-Type"] == MERGE:
                return 200, store.merge(kind, namespace, name, body, status=status)
            case "DELETE", True:
                store.delete(kind, namespace, name, body)
                return 200, {"kind": "Status", "apiVersion": "v1", "status": "Success"}
            case "DELETE", False:
                assert not labels
                store.delete_collection(kind, fields)
                return 200, {"kind": f"{kind.kind}List", "apiVersion": kind.api, "items": []}
        raise ApiError(405, "MethodNotAllowed", f"{self.command} {self.path}")

    def _list(self, kind: Kind, namespace: str, query: dict[str, str]) -> Object:
        items, version = self.server.api.store.list(
            kind, namespace, query.get("fieldSelector", ""), query.get("labelSelector", "")
        )
        start, limit = int(query.get("continue") or 0), int(query.get("limit") or 0)
        page = items[start : start + limit] if limit else items
        more = limit and start + limit < len(items)
        meta = {"resourceVersion": str(version)} | ({"continue": str(start + limit)} if more else {})
        return {"kind": f"{kind.kind}List", "apiVersion": kind.api, "metadata": meta, "items": page}

    def _watch(self, kind: Kind, query: dict[str, str]) -> None:
        api, store = self.server.api, self.server.api.store
        store.requests["watch", kind.resource] += 1
        version = int(query.get("resourceVersion") or store.version)
        until = time.monotonic() + float(query.get("timeoutSeconds") or 60)
        epoch = api.watch_epoch
        fields, labels = query.get("fieldSelector", ""), query.get("labelSelector", "")
        store.since(kind, version)  # an expired version is answered before the stream starts
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        while time.monotonic() < until and not api.down and epoch == api.watch_epoch:
            try:
                events = store.since(kind, version, fields, labels)
            except ApiError as exc:
                self._chunk({"type": "ERROR", "object": exc.body})
                break
            for version, event, obj in events:  # noqa: B007 - the watch goes on after the last one
                self._chunk({"type": event, "object": obj})
            with store.lock:
                store.lock.wait(timeout=0.05)
        else:
            if api.down or epoch != api.watch_epoch:
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
                return
        self.wfile.write(b"0\r\n\r\n")

    def _chunk(self, event: Object) -> None:
        data = json.dumps(event).encode() + b"\n"
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()

    def _send(self, code: int, body: Object) -> None:
        data = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def discovery(path: str) -> Object | None:
    """What `/version`, `/apis/GROUP` and `/apis/GROUP/VERSION` answer; None for other paths and unknown groups."""
    parts = path.strip("/").split("/")
    if parts == ["version"]:
        return {"major": "1", "minor": "36", "gitVersion": "v1.36.0"}
    served = [k for k in KINDS.values() if k.api.startswith("/".join(parts[1:]))] if parts[0] == "apis" else []
    if len(parts) == 2 and (apis := {k.api for k in served if k.api.split("/")[0] == parts[1]}):
        return {"kind": "APIGroup", "name": parts[1], "versions": [{"groupVersion": a} for a in sorted(apis)]}
    if len(parts) == 3 and (exact := [k for k in served if k.api == "/".join(parts[1:])]):
        resources = [{"name": k.resource, "kind": k.kind, "namespaced": k.namespaced} for k in exact]
        return {"kind": "APIResourceList", "groupVersion": exact[0].api, "resources": resources}
    return None


def route(path: str) -> tuple[Kind, str, str, str]:
    """(kind, namespace, name, subresource) of a path, or 404."""
    parts = path.strip("/").split("/")
    api = parts[1] if parts[0] == "api" else "/".join(parts[1:3])
    rest = parts[2:] if parts[0] == "api" else parts[3:]
    namespace = ""
    if len(rest) >= 3 and rest[0] == "namespaces":
        namespace, rest = rest[1], rest[2:]
    kind = KINDS.get((api, rest[0] if rest else ""))
    if kind is None:
        raise ApiError(404, "NotFound", f"the server could not find the requested resource {path}")
    name, sub = ([*rest[1:3], "", ""])[:2]
    return kind, namespace, name, sub


def evict(store: Store, namespace: str, name: str) -> Object:
    """The eviction subresource: a budget without room answers 429."""
    pods = KINDS["v1", "pods"]
    pod = store.get(pods, namespace, name)
    labels = pod["metadata"].get("labels", {})
    for budget in store.list(KINDS["policy/v1", "poddisruptionbudgets"], namespace)[0]:
        wanted = budget["spec"].get("selector", {}).get("matchLabels", {})
        if all(labels.get(k) == v for k, v in wanted.items()) and not budget.get("status", {}).get(
            "disruptionsAllowed"
        ):
            raise ApiError(429, "TooManyRequests", "Cannot evict pod as it would violate the pod's disruption budget.")
    store.delete(pods, namespace, name)
    return {"kind": "Status", "apiVersion": "v1", "status": "Success"}
