"""Whatever the files hold, doctor answers: no traceback, bounded time, and the rest of the host is still judged."""

import random
import time
from pathlib import Path

import pytest

from kata_gpu.core.doctor import CHECKS, Profile, examine
from kata_gpu.core.doctor.pciconfig import acs_control, forwards_downstream
from kata_gpu.core.doctor.quantity import duration_s, memory_mib, version
from kata_gpu.host.facts import gather
from kata_gpu.host.probes import SavedProbes
from kata_gpu.host.real import RealHost
from tests.kata_gpu.doctor.tree import KUBELET_YAML, Tree, config_space, healthy

HGX = healthy(Profile.SNP)
CONTENTS = {
    "empty": b"",
    "binary": bytes(range(256)) * 64,
    "invalid-utf8": b"\xff\xfe\x80" * 1000,
    "zeros": b"\0" * 4096,
    "huge-line": b"A" * (2 << 20),
    "brackets": b"[" * 5000,
    "digits": b"9" * 5000,
    "yaml-bomb": b"a: &a [x,x]\nb: [*a,*a]\n",
    "links": b"../../../../../../etc/passwd\n",
}


@pytest.mark.parametrize("content", CONTENTS)
def test_every_file_hostile(content: str, tmp_path: Path) -> None:
    """All files of the tree hold this at once; and all programs print it."""
    tree = healthy(Profile.SNP)
    for path in tree.files:
        tree.files[path] = CONTENTS[content] if not path.endswith("/config") else CONTENTS[content][:4096]
    text = CONTENTS[content].decode("utf-8", "replace")[: 1 << 20]
    tree.probes.commands = dict.fromkeys(tree.probes.commands, text)
    start = time.process_time()
    report = tree.report(tmp_path)
    assert len(report.findings) == len(CHECKS)
    assert report.negative(strict=False)
    assert time.process_time() - start < 10


INTERESTING = sorted(
    p for p in HGX.files
    if p.startswith(("/etc", "/opt/kata/share/defaults", "/var", "/proc/cpuinfo", "/proc/800", "/proc/900", "/run"))
    or p.endswith(("/resource", "/config", "misc.capacity", "/vendor", "lockdown"))
)  # fmt: skip


@pytest.mark.parametrize("path", INTERESTING)
def test_each_file_hostile_alone(path: str, tmp_path: Path) -> None:
    for number, data in enumerate(CONTENTS.values()):
        tree = healthy(Profile.SNP).put(path, data)
        assert len(tree.report(tmp_path / str(number)).findings) == len(CHECKS)


HANDLER = 'plugins."io.containerd.cri.v1.runtime".containerd.runtimes.kata-qemu-nvidia-gpu-snp'
STRUCTURES = {
    "kubelet-list": (KUBELET_YAML, "- a\n- b\n"),
    "kubelet-gates-list": (KUBELET_YAML, "featureGates: [a]\nruntimeRequestTimeout: [1]\n"),
    "kubelet-gates-text": (KUBELET_YAML, "featureGates: text\ncontainerRuntimeEndpoint: {a: b}\n"),
    "containerd-plugins-list": ("/etc/containerd/config.toml", "plugins = [1, 2]\nimports = 3\n"),
    "containerd-runtimes-list": (
        "/etc/containerd/conf.d/kata-deploy.toml",
        '[plugins."io.containerd.cri.v1.runtime".containerd]\nruntimes = ["a"]\n',
    ),
    "containerd-handler-text": (
        "/etc/containerd/conf.d/kata-deploy.toml",
        '[plugins."io.containerd.cri.v1.runtime".containerd.runtimes]\nkata-qemu-nvidia-gpu-snp = "x"\n',
    ),
    "containerd-options-list": (
        "/etc/containerd/conf.d/kata-deploy.toml",
        f"[{HANDLER}]\noptions = [1]\nruntime_path = 7\npod_annotations = {{a = 1}}\n",
    ),
    "containerd-nul-path": (
        "/etc/containerd/conf.d/kata-deploy.toml",
        f'[{HANDLER}]\nruntime_path = "/a\\u0000b"\n[{HANDLER}.options]\nConfigPath = "/a\\u0000b"\n',
    ),
    "cdi-list": ("/var/run/cdi/kata-gpu.json", "[]"),
    "cdi-devices-text": ("/var/run/cdi/kata-gpu.json", '{"kind": "a/b", "devices": ["x", {"containerEdits": []}]}'),
    "cdi-nodes": (
        "/var/run/cdi/kata-gpu.json",
        '{"kind": "a/b", "devices": [{"containerEdits": {"deviceNodes": [1, {"path": 3}]}}]}',
    ),
    "cdi-deep": ("/var/run/cdi/kata-gpu.json", "[" * 100_000),
    "pccs-bad-url": ("/etc/sgx_default_qcnl.conf", '{"pccs_url": "https://[::"}'),
}


@pytest.mark.parametrize("name", STRUCTURES)
def test_wrong_structure(name: str, tmp_path: Path) -> None:
    path, text = STRUCTURES[name]
    assert len(healthy(Profile.SNP).put(path, text).report(tmp_path).findings) == len(CHECKS)


KUBECTL = ("[]", "{", '{"items": 3}', '{"items": [1, {"handler": []}]}', '{"labels": [], "allocatable": {"memory": 1}}')


@pytest.mark.parametrize("text", KUBECTL)
def test_wrong_answers_of_kubectl(text: str, tmp_path: Path) -> None:
    tree = healthy(Profile.SNP)
    for line in tree.probes.commands:
        if line.startswith("kubectl"):
            tree.command(line, text)
    assert len(tree.report(tmp_path).findings) == len(CHECKS)


def test_link_out_of_the_root_is_not_followed(tmp_path: Path) -> None:
    """A bundle's link cannot make doctor read this machine's files."""
    secret = tmp_path / "outside.toml"
    secret.write_text('imports = ["stolen"]\n')
    tree = healthy(Profile.SNP).drop("/etc/containerd/config.toml")
    tree.links["/etc/containerd/config.toml"] = f"../../../{tmp_path.name}/outside.toml"
    tree.write(tmp_path / "root")
    facts = gather(RealHost(tmp_path / "root"), SavedProbes.load(tmp_path / "root"))
    assert facts.containerd.main is None


def test_many_functions_and_processes(tmp_path: Path) -> None:
    tree: Tree = healthy(Profile.SNP)
    for number in range(300):
        tree.put(f"/proc/{20000 + number}/comm", "bash\n")
        tree.put(f"/sys/bus/pci/devices/0000:{number % 256:02x}:1f.{number % 8}/vendor", "0x8086\n")
        tree.put(f"/sys/bus/pci/devices/junk{number}/vendor", "0x10de\n")
    report = examine(CHECKS, tree.facts(tmp_path), tree.profiles)
    assert not report.negative(strict=True)


def test_capability_walk_ends_on_any_bytes() -> None:
    source = random.Random(7)
    for _ in range(300):
        data = bytearray(source.randbytes(4096))
        data[6] |= 0x10
        assert forwards_downstream(bytes(data)) in {True, False}
        assert isinstance(acs_control(bytes(data)), int)
    loop = bytearray(config_space(port=True))
    loop[0x40:0x42] = bytes((0x01, 0x40))  # a capability that points to itself
    assert forwards_downstream(bytes(loop)) is False
    loop[0x100:0x104] = (1 | 0x100 << 20).to_bytes(4, "little")
    assert acs_control(bytes(loop)) == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [("v1.34.2", (1, 34, 2)), ("Kubernetes v1.32", (1, 32, 0)), ("", None), (None, None), ("9" * 50, None)],
)
def test_version(text: str | None, expected: object) -> None:
    assert version(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("20m", 1200.0), ("1h0m0s", 3600.0), ("1.5m", 90.0), ("20", None), ("m20", None), ("", None), ("20m!", None)],
)
def test_duration(text: str, expected: float | None) -> None:
    assert duration_s(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"), [("1048576Ki", 1024), ("2Gi", 2048), ("1073741824", 1024), ("1G", 953), ("-1Ki", None), ("x", None)]
)  # fmt: skip
def test_memory(text: str, expected: int | None) -> None:
    assert memory_mib(text) == expected
