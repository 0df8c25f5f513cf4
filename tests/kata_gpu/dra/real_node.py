"""A real node around a real API server: containerd, kubelet, scheduler and controller manager, in namespaces of its own.

All of it runs in a mount and a PID namespace with a /dev of its own, where stand-ins for the simulated host's VFIO
nodes are; when the first process of the namespace is killed, everything in it is gone. Needs root. Containers are of
one image, made here: an ELF file that only waits. Kata's handler is runc here too: only kubelet and the API tell them apart.
"""

import hashlib
import io
import json
import os
import shutil
import struct
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.kata_gpu.dra.real_api import RealApi
from tests.kata_gpu.dra.world import HANDLER, NODE

PROGRAMS = (
    "kubelet",
    "kube-scheduler",
    "kube-controller-manager",
    "containerd",
    "containerd-shim-runc-v2",
    "ctr",
    "runc",
)
IMAGE = "registry.invalid/wait:1"
START_S = 60.0  # two shared cores
CONTROLLERS = (
    "resourceclaim-controller,device-taint-eviction-controller,pod-garbage-collector-controller,"
    "garbage-collector-controller"  # ends the claim of a pod that was gone before the first of these looked
)
VFIO_NODES = 64  # a bind takes the next number


def missing(assets: Path) -> str:
    """Why no node can be had, or empty."""
    absent = [p for p in PROGRAMS if not (assets / p).is_file()]
    if absent:
        return f"envtest: KUBEBUILDER_ASSETS holds no {', '.join(absent)}"
    return "" if os.geteuid() == 0 else "envtest: KUBEBUILDER_ASSETS has a kubelet, which needs root"


class RealNode:
    """The node `NODE`. `folder` is kubelet's root, the same path inside and outside of the namespace."""

    def __init__(self, assets: Path, api: RealApi) -> None:
        self._assets = assets
        self.api = api
        self.dir = Path(tempfile.mkdtemp(prefix="n", dir="/tmp"))  # short: a socket path has 107 bytes
        self.root = self.dir / "k"
        self.cdi = self.dir / "cdi"
        for folder in (self.root, self.cdi, self.dir / "cni", self.dir / "bin"):
            folder.mkdir()
        for program in ("containerd-shim-runc-v2", "runc"):
            shutil.copy(assets / program, self.dir / "bin")
        self.kubeconfig = self.dir / "kubeconfig"
        self.kubeconfig.write_text(json.dumps(api.kubeconfig()))
        self._logs: dict[str, Path] = {}
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._holder = subprocess.Popen(
            ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-euc", _HOLDER],
            env=os.environ | {"D": str(self.dir), "NODES": str(VFIO_NODES)}, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == b"ready\n"
        (self._first,) = psutil.Process(self._holder.pid).children()

    def start(self) -> None:
        """Everything but kubelet."""
        self._configure()
        self._run("containerd", "--config", str(self.dir / "containerd.toml"))
        self.wait(lambda: self._ctr("version").returncode == 0, "containerd")
        (self.dir / "image.tar").write_bytes(_image())
        done = self._ctr(
            "-n", "k8s.io", "images", "import", "--local", "--snapshotter", "native", self.dir / "image.tar"
        )
        assert done.returncode == 0, done.stderr
        access = ["--kubeconfig", str(self.kubeconfig), "--leader-elect=false", "--secure-port=0"]
        self._run("kube-scheduler", *access)
        self._run("kube-controller-manager", *access, f"--controllers={CONTROLLERS}")

    def start_kubelet(self) -> None:
        """Start, and return when the Node is ready."""
        self._run(
            "kubelet", "--config", str(self.dir / "kubelet.json"), "--kubeconfig", str(self.kubeconfig),
            "--hostname-override", NODE, "--root-dir", str(self.root), "--cert-dir", str(self.dir / "pki"),
        )  # fmt: skip
        started = self.now()
        self.wait(lambda: self._ready_since(started), "kubelet")

    def kill_kubelet(self) -> None:
        """Kill -9; containers and pods stay."""
        process = self._running["kubelet"]
        (kubelet,) = psutil.Process(process.pid).children()
        kubelet.kill()
        process.wait(30)

    def run(self, name: str, argv: Sequence[str]) -> "subprocess.Popen[bytes]":
        """Run a program of ours: outside of the namespaces, over the same files and sockets."""
        log = self._logs[name] = self.dir / f"{name}.log"
        with log.open("ab") as out:
            return subprocess.Popen(argv, stdout=out, stderr=out)

    def log(self, name: str) -> str:
        """Its output so far."""
        return self._logs[name].read_text(errors="replace")

    def devices_of(self, pod_uid: str) -> set[str]:
        """Device nodes that containerd gave to the container of a pod."""
        for bundle in (self.dir / "run").glob("io.containerd.runtime.v2.task/k8s.io/*/config.json"):
            spec = json.loads(bundle.read_bytes())
            labels = spec.get("annotations") or {}
            if labels.get("io.kubernetes.cri.container-type") == "container" and pod_uid in bundle.read_text():
                return {d["path"] for d in spec["linux"].get("devices") or []}
        return set()

    def wait(self, condition: Callable[[], bool], what: str, *, timeout_s: float = START_S) -> None:
        """Until it holds; else fail with the end of every log."""
        until = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > until:
                tails = "\n".join(f"--- {n}\n{self.log(n)[-3000:]}" for n in self._logs)
                pytest.fail(f"{what}: did not happen in {timeout_s:.0f} s\n{tails}")
            time.sleep(0.1)

    @staticmethod
    def now() -> str:
        """As the API writes times."""
        return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())

    def stop(self) -> None:
        """Kill the namespace, and what it leaves outside: cgroups of containers that were running."""
        with suppress(psutil.NoSuchProcess):
            self._first.kill()
        self._holder.wait(30)
        if self._holder.stdout is not None:
            self._holder.stdout.close()
        for process in self._running.values():
            process.wait(30)
        for group in Path("/sys/fs/cgroup").glob(f"*/{self.dir.name}/*"):
            with suppress(OSError):
                group.rmdir()
        for group in Path("/sys/fs/cgroup").glob(f"*/{self.dir.name}"):
            with suppress(OSError):
                group.rmdir()
        shutil.rmtree(self.dir)

    def _ready_since(self, started: str) -> bool:
        from tests.kata_gpu.dra.world import NODES

        found = [n for n in self.api.store.list(NODES)[0] if n["metadata"]["name"] == NODE]
        rows = [c for n in found for c in n.get("status", {}).get("conditions", []) if c["type"] == "Ready"]
        return any(c["status"] == "True" and c["lastHeartbeatTime"] >= started for c in rows)

    def _run(self, name: str, *argv: str) -> None:
        log = self._logs[name] = self.dir / f"{name}.log"
        with log.open("ab") as out:
            self._running[name] = subprocess.Popen(
                [*self._enter(), str(self._assets / name), *argv], stdout=out, stderr=out, cwd=self.dir,
                env=os.environ | {"PATH": f"{self.dir}/bin:{os.environ['PATH']}"},
            )  # fmt: skip

    def _enter(self) -> list[str]:
        return ["nsenter", f"--mount=/proc/{self._first.pid}/ns/mnt", f"--pid=/proc/{self._first.pid}/ns/pid", "--"]

    def _ctr(self, *argv: str | Path) -> "subprocess.CompletedProcess[str]":
        socket = self.dir / "run" / "containerd.sock"
        command = [*self._enter(), str(self._assets / "ctr"), "-a", str(socket), *map(str, argv)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    def _configure(self) -> None:
        d = self.dir
        (d / "cni" / "lo.conflist").write_text(
            json.dumps({"cniVersion": "1.0.0", "name": "lo", "plugins": [{"type": "loopback"}]})
        )
        (d / "containerd.toml").write_text(_CONTAINERD.format(d=d, image=IMAGE, handler=HANDLER))
        (d / "kubelet.json").write_text(
            json.dumps(
                {
                    "apiVersion": "kubelet.config.k8s.io/v1beta1",
                    "kind": "KubeletConfiguration",
                    "failCgroupV1": False,
                    "cgroupsPerQOS": False,
                    "cgroupRoot": f"/{d.name}",
                    "enforceNodeAllocatable": [],
                    "localStorageCapacityIsolation": False,
                    "makeIPTablesUtilChains": False,
                    "cgroupDriver": "cgroupfs",
                    "containerRuntimeEndpoint": f"unix://{d}/run/containerd.sock",
                    "authentication": {"webhook": {"enabled": False}, "anonymous": {"enabled": True}},
                    "authorization": {"mode": "AlwaysAllow"},
                    "address": "127.0.0.1",
                    "port": _free_port(),
                    "healthzPort": 0,
                    "failSwapOn": False,
                    "syncFrequency": "2s",
                    "nodeStatusUpdateFrequency": "2s",
                    "evictionHard": {"memory.available": "1Mi"},
                    "podLogsDir": f"{d}/pods-log",
                    "registerWithTaints": [],
                }
            )
        )


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


_HOLDER = """
mount --make-rprivate /
mkdir $D/dev
mount -t tmpfs tmpfs $D/dev
for n in null zero full random urandom tty kmsg; do cp -a /dev/$n $D/dev/; done
mkdir -p $D/dev/pts $D/dev/shm $D/dev/mqueue $D/dev/vfio/devices
ln -s /proc/self/fd $D/dev/fd
ln -s pts/ptmx $D/dev/ptmx
mount --rbind /dev/pts $D/dev/pts
i=0
while [ $i -lt $NODES ]; do mknod $D/dev/vfio/devices/vfio$i c 1 3; i=$((i + 1)); done
mount --move $D/dev /dev
mount -t tmpfs tmpfs /var/lib
mkdir -p /var/lib/kubelet/device-plugins $D/k/device-plugins
mount --bind $D/k/device-plugins /var/lib/kubelet/device-plugins
echo ready
exec sleep infinity
"""

_CONTAINERD = """version = 3
root = "{d}/containerd"
state = "{d}/run"
[grpc]
address = "{d}/run/containerd.sock"
[plugins."io.containerd.cri.v1.images"]
snapshotter = "native"
[plugins."io.containerd.cri.v1.images".pinned_images]
sandbox = "{image}"
[plugins."io.containerd.cri.v1.runtime"]
restrict_oom_score_adj = true
cdi_spec_dirs = ["{d}/cdi"]
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.{handler}]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.cri.v1.runtime".cni]
conf_dir = "{d}/cni"
[plugins."io.containerd.nri.v1.nri"]
disable = true
"""


def _image() -> bytes:
    """An OCI archive of one layer with one program."""
    code = bytes.fromhex("b8220000000f05ebf7")  # pause(2), again and again
    start = 0x400000
    header = b"\x7fELF\x02\x01\x01".ljust(16, b"\0") + struct.pack(
        "<HHIQQQIHHHHHH", 2, 62, 1, start + 120, 64, 0, 0, 64, 56, 1, 0, 0, 0
    )
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, start, start, 120 + len(code), 120 + len(code), 0x1000)
    layer = _tar({"wait": header + segment + code}, mode=0o755)
    config = _json(
        {"architecture": "amd64", "os": "linux", "config": {"Entrypoint": ["/wait"]},
         "rootfs": {"type": "layers", "diff_ids": [_digest(layer)]}}
    )  # fmt: skip
    kind = "application/vnd.oci.image"
    manifest = _json(
        {"schemaVersion": 2, "mediaType": f"{kind}.manifest.v1+json",
         "config": _descriptor(f"{kind}.config.v1+json", config),
         "layers": [_descriptor(f"{kind}.layer.v1.tar", layer)]}
    )  # fmt: skip
    named = _descriptor(f"{kind}.manifest.v1+json", manifest) | {
        "annotations": {"io.containerd.image.name": IMAGE, "org.opencontainers.image.ref.name": "1"}
    }
    blobs = {f"blobs/sha256/{_digest(b)[7:]}": b for b in (layer, config, manifest)}
    index = {"schemaVersion": 2, "manifests": [named]}
    return _tar({"oci-layout": _json({"imageLayoutVersion": "1.0.0"}), "index.json": _json(index)} | blobs, mode=0o644)


def _tar(files: dict[str, bytes], *, mode: int) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(data), mode
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


def _digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def _descriptor(kind: str, data: bytes) -> dict[str, Any]:
    return {"mediaType": kind, "digest": _digest(data), "size": len(data)}
