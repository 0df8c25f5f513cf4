"""A real kube-apiserver and etcd from KUBEBUILDER_ASSETS behind the face of `FakeApi`, with a proxy that can fail.

The same test bodies run on both. What only a fake can do (feature gates at run time, compaction on demand) skips and
says so.
"""

import json
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections import Counter
from contextlib import suppress
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from ssl import CERT_NONE, create_default_context
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.kata_gpu.dra.fake_api import APPLY, MERGE, route
from tests.kata_gpu.dra.fake_store import KINDS, ApiError, Kind, Object

ONLY_FAKE = "envtest: KUBEBUILDER_ASSETS server cannot do this at run time"
START_S = 60.0
GATES = "DRADeviceTaints=true,DRADeviceTaintRules=true,DRAPartitionableDevices=true,DRAAdminAccess=true"
RUNTIME = "resource.k8s.io/v1=true,resource.k8s.io/v1beta2=true"


class _Gates(set[str]):
    """Feature gates of a running server do not change."""

    def add(self, element: str) -> None:
        pytest.skip(f"{ONLY_FAKE} ({element})")


class RealStore:
    """The methods of `Store` that tests use, over the real server. Requests of the driver are counted by the proxy."""

    def __init__(self, api: "RealApi") -> None:
        self._api = api
        self.requests: Counter[tuple[str, str]] = Counter()
        self.drop = _Gates()

    def get(self, kind: Kind, namespace: str, name: str) -> Object:
        return self._api.ask("GET", _path(kind, namespace, name))

    def list(self, kind: Kind, namespace: str = "", fields: str = "", labels: str = "") -> tuple[list[Object], int]:
        query = f"?fieldSelector={fields}&labelSelector={labels}"
        body = self._api.ask("GET", _path(kind, namespace, "") + query)
        return body["items"], int(body["metadata"]["resourceVersion"])

    def create(self, kind: Kind, namespace: str, body: Object, user: str = "") -> Object:
        typed = {"apiVersion": kind.api, "kind": kind.kind} | body
        return self._api.ask("POST", _path(kind, namespace, ""), typed)

    def replace(self, kind: Kind, namespace: str, name: str, body: Object, *, status: bool = False) -> Object:
        typed: Object = {"apiVersion": kind.api, "kind": kind.kind} | body
        typed["metadata"] = {"name": name} | typed["metadata"]
        typed["metadata"].setdefault("resourceVersion", self.get(kind, namespace, name)["metadata"]["resourceVersion"])
        return self._api.ask("PUT", _path(kind, namespace, name) + ("/status" if status else ""), typed)

    def merge(self, kind: Kind, namespace: str, name: str, patch: Object, *, status: bool = False) -> Object:
        return self._api.ask("PATCH", _path(kind, namespace, name) + ("/status" if status else ""), patch, MERGE)

    def delete(self, kind: Kind, namespace: str, name: str, options: Object | None = None) -> None:
        self._api.ask("DELETE", _path(kind, namespace, name), options)

    def delete_collection(self, kind: Kind, fields: str = "") -> None:
        self._api.ask("DELETE", _path(kind, "default" if kind.namespaced else "", "") + f"?fieldSelector={fields}")

    def compact(self) -> None:
        pytest.skip(f"{ONLY_FAKE} (compaction)")

    @property
    def version(self) -> int:
        return self.list(KINDS["v1", "nodes"])[1]

    @property
    def admit(self) -> None:
        """The server's own admission."""

    @admit.setter
    def admit(self, _value: object) -> None:
        time.sleep(5)  # policies are compiled in the background


class RealApi:
    """One server for the session; `reset` empties it between tests. `url` is the proxy's."""

    def __init__(self, assets: Path) -> None:
        self._dir = Path(tempfile.mkdtemp(prefix="envtest"))
        self._token = secrets.token_hex(16)
        etcd, peer, port = (_free_port() for _ in range(3))
        (self._dir / "tokens.csv").write_text(f"{self._token},admin,admin,system:masters\n")
        key = self._dir / "sa.key"
        subprocess.run(["openssl", "genrsa", "-out", str(key), "2048"], check=True, capture_output=True)
        self._log = (self._dir / "log").open("wb")
        self._processes = [
            self._start(
                assets / "etcd", f"--data-dir={self._dir}/etcd", f"--listen-client-urls=http://127.0.0.1:{etcd}",
                f"--advertise-client-urls=http://127.0.0.1:{etcd}", f"--listen-peer-urls=http://127.0.0.1:{peer}",
                f"--initial-advertise-peer-urls=http://127.0.0.1:{peer}",
                f"--initial-cluster=default=http://127.0.0.1:{peer}",
            ),
            self._start(
                assets / "kube-apiserver", f"--etcd-servers=http://127.0.0.1:{etcd}", f"--secure-port={port}",
                "--bind-address=127.0.0.1", f"--cert-dir={self._dir}", f"--token-auth-file={self._dir}/tokens.csv",
                "--authorization-mode=RBAC", f"--service-account-key-file={key}",
                f"--service-account-signing-key-file={key}", "--service-account-issuer=https://envtest",
                "--service-cluster-ip-range=10.0.0.0/24", "--disable-admission-plugins=ServiceAccount",
                f"--runtime-config={RUNTIME}", f"--feature-gates={GATES}",
            ),
        ]  # fmt: skip
        self._port = port
        self.store = RealStore(self)
        self.down = False
        self.latency_s = 0.0
        self.failures: list[tuple[str, int]] = []
        self._proxy = _Proxy(("127.0.0.1", 0), _Forward)
        self._proxy.api = self
        threading.Thread(target=self._proxy.serve_forever, daemon=True).start()
        self._wait()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._proxy.server_address[1]}"

    def fail_next(self, status: int, *, resource: str = "", times: int = 1) -> None:
        self.failures += [(resource, status)] * times

    def go_down(self) -> None:
        self.down = True

    def drop_watches(self) -> None:
        pytest.skip(f"{ONLY_FAKE} (cut watches)")

    def ask(self, method: str, path: str, body: Object | None = None, kind: str = "application/json") -> Object:
        status, data = self.forward(method, path, json.dumps(body).encode() if body is not None else b"", kind)
        answer: Object = json.loads(data)
        if status >= 300:
            raise ApiError(status, str(answer.get("reason")), str(answer.get("message")))
        return answer

    def forward(self, method: str, path: str, body: bytes, kind: str) -> tuple[int, bytes]:
        context = create_default_context()
        context.check_hostname, context.verify_mode = False, CERT_NONE  # our own throw-away server on loopback
        connection: HTTPConnection = HTTPSConnection("127.0.0.1", self._port, timeout=30, context=context)
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": kind, "Accept": "application/json"}
        try:
            connection.request(method, path, body or None, headers)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def reset(self) -> None:
        """As at the beginning: objects of every kind gone, faults off."""
        self.down, self.latency_s = False, 0.0
        self.failures.clear()
        self.store.requests.clear()
        for kind in KINDS.values():
            if kind.resource != "namespaces":
                with suppress(ApiError):
                    self.store.delete_collection(kind)

    def stop(self) -> None:
        self._proxy.shutdown()
        self._proxy.server_close()
        for process in reversed(self._processes):
            process.terminate()
            process.wait(30)
        self._log.close()
        shutil.rmtree(self._dir)

    def _start(self, program: Path, *arguments: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([str(program), *arguments], stdout=self._log, stderr=self._log)

    def _wait(self) -> None:
        until = time.monotonic() + START_S
        while time.monotonic() < until:
            with suppress(OSError, HTTPException, ApiError, ValueError):
                if self.forward("GET", "/readyz", b"", "")[0] == 200:
                    self.ask("GET", "/api/v1/namespaces/default")
                    return
            time.sleep(0.3)
        raise TimeoutError((self._dir / "log").read_text(errors="replace")[-2000:])


class _Proxy(ThreadingHTTPServer):
    daemon_threads = True
    api: RealApi


class _Forward(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Proxy

    def _serve(self) -> None:
        api = self.server.api
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        kind = self.headers.get("Content-Type", "application/json")
        if api.down:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        with suppress(ApiError):
            resource, name = route(urlsplit(self.path).path)[0].resource, route(urlsplit(self.path).path)[2]
            verb = {"GET": "get" if name else "list", "POST": "create", "PUT": "update", "DELETE": "delete"}
            api.store.requests["apply" if kind == APPLY else verb.get(self.command, "patch"), resource] += 1
            for index, (wanted, status) in enumerate(api.failures):
                if wanted in {"", resource}:
                    del api.failures[index]
                    self._answer(status, json.dumps(ApiError(status, "Injected", "injected fault").body).encode())
                    return
        self._answer(*api.forward(self.command, self.path, body, kind))

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _serve  # noqa: N815

    def _answer(self, status: int, data: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Quiet."""


def _path(kind: Kind, namespace: str, name: str) -> str:
    root = "/api/v1" if kind.api == "v1" else f"/apis/{kind.api}"
    inside = f"/namespaces/{namespace}" if namespace and kind.namespaced else ""
    return f"{root}{inside}/{kind.resource}" + (f"/{name}" if name else "")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def assets() -> Path | None:
    """Folder of the binaries, by controller-runtime's convention."""
    value = os.environ.get("KUBEBUILDER_ASSETS")
    return Path(value) if value else None
