"""A real kube-apiserver and etcd from KUBEBUILDER_ASSETS behind the face of `FakeApi`, with a proxy that can fail.

The same test bodies run on both; feature gates are set at the start, so a test that needs some closed gets a server of
its own. There is no controller manager: nobody finishes the deletion of a namespace, fills one with a ServiceAccount or
binds a volume.
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from ssl import CERT_NONE, PROTOCOL_TLS_CLIENT, SSLContext
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

from kata_gpu.host.kube import encode
from tests.kata_gpu.dra.fake_api import APPLY, MERGE, route
from tests.kata_gpu.dra.fake_store import HELD, KINDS, NAMESPACES, PODS, ApiError, Kind, Object

START_S = 60.0
GATES = {"taints": "DRADeviceTaints", "counters": "DRAPartitionableDevices"}  # by what the server drops without
RUNTIME = "resource.k8s.io/v1=true,resource.k8s.io/v1beta2=true"
# Without its cache the server answers a watch from etcd, which knows of its compaction.
UNCACHED = "resourceslices.resource.k8s.io#0"
POLICY, POLICY_BINDING = (
    KINDS["admissionregistration.k8s.io/v1", f"validatingadmissionpolic{e}"] for e in ("ies", "ybindings")
)
OURS = quote("!kubernetes.io/bootstrapping")  # roles that the server made at its start are left alone
NOBODY_ELSE: Mapping[str, str] = {}  # no impersonation
ADMISSION_S = 30.0  # policies are compiled in the background


class RealStore:
    """The methods of `Store` that tests use, over the real server. Requests of the driver are counted by the proxy."""

    def __init__(self, api: "RealApi") -> None:
        self._api = api
        self.requests: Counter[tuple[str, str]] = Counter()

    def get(self, kind: Kind, namespace: str, name: str) -> Object:
        return self._api.ask("GET", _path(kind, namespace, name))

    def list(self, kind: Kind, namespace: str = "", fields: str = "", labels: str = "") -> tuple[list[Object], int]:
        query = f"?fieldSelector={fields}&labelSelector={labels}"
        body = self._api.ask("GET", _path(kind, namespace, "") + query)
        return body["items"], int(body["metadata"]["resourceVersion"])

    def create(self, kind: Kind, namespace: str, body: Object, user: str = "") -> Object:
        typed = {"apiVersion": kind.api, "kind": kind.kind} | body
        who = {"Impersonate-User": user, "Impersonate-Group": "system:masters"} if user else {}
        return self._api.ask("POST", _path(kind, namespace, ""), typed, headers=who)

    def replace(self, kind: Kind, namespace: str, name: str, body: Object, *, status: bool = False) -> Object:
        typed: Object = {"apiVersion": kind.api, "kind": kind.kind} | body
        typed["metadata"] = {"name": name} | typed["metadata"]
        typed["metadata"].setdefault("resourceVersion", self.get(kind, namespace, name)["metadata"]["resourceVersion"])
        return self._api.ask("PUT", _path(kind, namespace, name) + ("/status" if status else ""), typed)

    def merge(self, kind: Kind, namespace: str, name: str, patch: Object, *, status: bool = False) -> Object:
        return self._api.ask("PATCH", _path(kind, namespace, name) + ("/status" if status else ""), patch, MERGE)

    def debug(self, namespace: str, pod: str, containers: Sequence[Object]) -> Object:
        """Debug containers of a running pod, by their own subresource: nothing else may set them."""
        body = {"spec": {"ephemeralContainers": containers}}
        return self._api.ask("PATCH", f"{_path(PODS, namespace, pod)}/ephemeralcontainers", body, MERGE)

    def delete(self, kind: Kind, namespace: str, name: str, options: Object | None = None) -> None:
        self._api.ask("DELETE", _path(kind, namespace, name), options)

    def delete_collection(self, kind: Kind, fields: str = "") -> None:
        spaces = [n["metadata"]["name"] for n in self.list(NAMESPACES)[0]] if kind.namespaced else [""]
        for namespace in spaces:
            path = f"{_path(kind, namespace, '')}?fieldSelector={fields}&labelSelector={OURS}&gracePeriodSeconds=0"
            self._api.ask("DELETE", path)

    def compact(self) -> None:
        self._api.compact()

    def finish_deletions(self) -> None:
        """What the controllers do in the end; the server has none."""
        for kind in HELD:
            for obj in self.list(kind)[0]:
                if "deletionTimestamp" in obj["metadata"]:
                    self._finish(kind, obj["metadata"].get("namespace", ""), obj["metadata"]["name"])

    def _finish(self, kind: Kind, namespace: str, name: str) -> None:
        self.merge(kind, namespace, name, {"metadata": {"finalizers": None}})
        if kind is NAMESPACES:
            path = _path(kind, "", name)
            self._api.ask("PUT", f"{path}/finalize", self._api.ask("GET", path) | {"spec": {"finalizers": []}})

    @property
    def version(self) -> int:
        return self.list(KINDS["v1", "nodes"])[1]

    @property
    def admit(self) -> None:
        """The server's own admission."""

    @admit.setter
    def admit(self, _value: object) -> None:
        self._api.await_admission()


class RealApi:
    """A server for many tests; `reset` empties it between them. `url` is the proxy's."""

    def __init__(self, assets: Path, *, closed: frozenset[str] = frozenset()) -> None:
        """`closed` names gates of GATES."""
        gates = ",".join(f"{gate}={str(name not in closed).lower()}" for name, gate in GATES.items())
        gates += (
            f",DRADeviceTaintRules={str('taints' not in closed).lower()}"  # off in 1.36, and useless without taints
        )
        self._dir = Path(tempfile.mkdtemp(prefix="envtest"))
        self._token = secrets.token_hex(16)
        etcd, peer, port = (_free_port() for _ in range(3))
        self._etcd, self._port = etcd, port
        self._tls = SSLContext(PROTOCOL_TLS_CLIENT)
        self._tls.check_hostname, self._tls.verify_mode = False, CERT_NONE  # our own throw-away server on loopback
        self._watches: set[HTTPConnection] = set()
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
                f"--runtime-config={RUNTIME}", f"--feature-gates={gates}",
                f"--watch-cache-sizes={UNCACHED}", "--allow-privileged",
            ),
        ]  # fmt: skip
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

    def kubeconfig(self) -> Object:
        """For programs of Kubernetes itself: straight to the server, as its administrator."""
        cluster = {"server": f"https://127.0.0.1:{self._port}", "insecure-skip-tls-verify": True}
        return {
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": cluster}],
            "users": [{"name": "c", "user": {"token": self._token}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "c"}}],
        }  # fmt: skip

    def fail_next(self, status: int, *, resource: str = "", times: int = 1) -> None:
        self.failures += [(resource, status)] * times

    def go_down(self) -> None:
        self.down = True
        self.drop_watches()

    def drop_watches(self) -> None:
        for connection in list(self._watches):
            if connection.sock is not None:
                connection.sock.shutdown(socket.SHUT_RDWR)

    def compact(self) -> None:
        """etcd forgets every revision that a watch can resume from, and the watches are cut."""
        connection = HTTPConnection("127.0.0.1", self._etcd, timeout=30)
        revision = 0
        for path in ("put", "put", "compaction"):
            body: Object = {"key": "YQ=="} if path == "put" else {"revision": revision, "physical": True}
            connection.request("POST", f"/v3/kv/{path}", json.dumps(body))
            revision = int(json.loads(connection.getresponse().read())["header"]["revision"])
        connection.close()
        self.drop_watches()

    def await_admission(self) -> None:
        """Until the policies that exist, and only those, decide: one more policy that a probe can see, and its end."""
        name = f"probe-{secrets.token_hex(4)}"
        rule = {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["configmaps"]}
        policy = {"matchConstraints": {"resourceRules": [rule]},
                  "validations": [{"expression": f"object.metadata.name != '{name}'"}]}  # fmt: skip
        binding = {"policyName": name, "validationActions": ["Deny"]}
        self.store.create(POLICY, "", {"metadata": {"name": name}, "spec": policy})
        self.store.create(POLICY_BINDING, "", {"metadata": {"name": name}, "spec": binding})
        _until(lambda: not self._admitted(name))
        self.store.delete(POLICY_BINDING, "", name)
        self.store.delete(POLICY, "", name)
        _until(lambda: self._admitted(name))

    def _admitted(self, name: str) -> bool:
        body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}}
        with suppress(ApiError):
            self.ask("POST", "/api/v1/namespaces/default/configmaps?dryRun=All", body)
            return True
        return False

    def ask(
        self, method: str, path: str, body: Object | None = None, kind: str = "application/json",
        headers: Mapping[str, str] = NOBODY_ELSE,
    ) -> Object:  # fmt: skip
        """`headers` may impersonate."""
        status, data = self.forward(method, path, encode(body) if body is not None else b"", kind, headers)
        try:
            answer: Object = json.loads(data)
        except ValueError:  # a group that is not served is answered in plain text
            answer = {"reason": "NotFound", "message": data.decode()}
        if status >= 300:
            raise ApiError(status, str(answer.get("reason")), str(answer.get("message")))
        return answer

    def forward(
        self, method: str, path: str, body: bytes, kind: str, headers: Mapping[str, str] = NOBODY_ELSE
    ) -> tuple[int, bytes]:
        connection, response = self._request(method, path, body, kind, headers)
        try:
            return response.status, response.read()
        finally:
            connection.close()

    def watch(self, path: str) -> tuple[int, Iterator[bytes]]:
        """Status, and the events chunk by chunk until the watch ends or is cut."""
        connection, response = self._request("GET", path, b"", "")
        return response.status, self._events(connection, response)

    def _events(self, connection: HTTPConnection, response: HTTPResponse) -> Iterator[bytes]:
        self._watches.add(connection)
        try:
            while data := response.read1(1 << 16):
                yield data
        finally:
            self._watches.discard(connection)
            connection.close()

    def _request(
        self, method: str, path: str, body: bytes, kind: str, more: Mapping[str, str] = NOBODY_ELSE
    ) -> tuple[HTTPConnection, HTTPResponse]:
        connection: HTTPConnection = HTTPSConnection("127.0.0.1", self._port, timeout=60, context=self._tls)
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": kind, "Accept": "application/json"}
        connection.request(method, path, body or None, headers | dict(more))
        return connection, connection.getresponse()

    def reset(self) -> None:
        """As at the beginning: objects of every kind gone, faults off."""
        self.down, self.latency_s = False, 0.0
        self.failures.clear()
        self.store.requests.clear()
        policies = self.store.list(POLICY)[0]
        for kind in KINDS.values():
            if kind is not NAMESPACES:
                with suppress(ApiError):  # not every kind of the fake is served
                    self.store.delete_collection(kind)
        for space in (n["metadata"]["name"] for n in self.store.list(NAMESPACES)[0]):
            if space != "default" and not space.startswith("kube-"):
                with suppress(ApiError):  # it is going already
                    self.store.delete(NAMESPACES, "", space)
        self.store.finish_deletions()
        if policies:
            self.await_admission()

    def stop(self) -> None:
        self._proxy.shutdown()
        self._proxy.server_close()
        for process in reversed(self._processes):
            process.kill()  # a server that is asked to end waits for its watches
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
        if parse_qs(urlsplit(self.path).query).get("watch") == ["true"]:
            self._watch()
            return
        self._answer(*api.forward(self.command, self.path, body, kind))

    def _watch(self) -> None:
        status, events = self.server.api.watch(self.path)
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        with suppress(OSError, HTTPException):  # either side may hang up
            for data in events:
                self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
            self.wfile.write(b"0\r\n\r\n")
        self.close_connection = True

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


def _until(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + ADMISSION_S
    while not condition():
        if time.monotonic() > until:
            raise TimeoutError("the admission policies did not settle")
        time.sleep(0.1)


def assets() -> Path | None:
    """Folder of the binaries, by controller-runtime's convention."""
    value = os.environ.get("KUBEBUILDER_ASSETS")
    return Path(value) if value else None
