"""`kata-gpu status`, `claims`, `dra` and `bridge`: what people see."""

import json
from pathlib import Path

import pytest

from kata_gpu.cli.main import cli, run
from kata_gpu.core.claim import DRIVER
from kata_gpu.core.gpu import CcMode
from kata_gpu.core.node_policy import NodePolicy
from kata_gpu.errors import ExitCode, Misconfigured
from kata_gpu.host.durable import DurableDir
from kata_gpu.host.kube import KubeApi
from kata_gpu.host.simkernel.kernel import SimKernel
from kata_gpu.host.simkernel.presets import hgx_h100
from kata_gpu.ops import setup
from kata_gpu.ops.node import Node
from kata_gpu.ops.node_devices import HostDevices
from tests.kata_gpu.dra.fake_node import NOW
from tests.kata_gpu.dra.test_beside_nvidia import nvidia_socket
from tests.kata_gpu.dra.world import NODE, World, address, gpu


@pytest.fixture
def sim(tmp_path: Path) -> list[str]:
    """Options that name a simulated host with two bound GPUs in mode on."""
    path = tmp_path / "host.json"
    kernel = SimKernel(hgx_h100(gpus=2, switches=0), path=path)
    state = tmp_path / "state"
    setup.setup(
        Node(host=kernel, state=DurableDir(state), cdi=DurableDir(tmp_path / "cdi-static")),
        NodePolicy.everything(CcMode.ON),
    )
    return ["--sim", str(path), "--state-dir", str(state)]


def out(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str]:
    code = run(cli, list(argv))
    return code, capsys.readouterr().out


def test_status_joins_devices_and_claims(
    world: World, sim: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    node = Node(
        host=SimKernel(path=Path(sim[1])), state=DurableDir(Path(sim[3])), cdi=DurableDir(tmp_path / "cdi-static")
    )
    devices = HostDevices(node)
    name = devices.observe().gpus[0].name
    ref = world.claim(name)
    world.prepare(ref, devices=devices)
    root = ["--kubelet-root", str(world.root)]
    code, text = out(capsys, "status", *root, *sim)
    assert code == ExitCode.OK
    header, first, second = text.splitlines()
    assert header.split() == ["DEVICE", "ADDRESS", "MODE", "BINDING", "CLAIM", "POD", "HEALTH", "REASON"]
    assert first.split() == [
        name, "0000:17:00.0", "on", "vfio-pci", f"default/{ref.name}", "pod-1-0", "ok", "-",
    ]  # fmt: skip
    assert second.split()[4:7] == ["-", "-", "ok"]
    world.store.save(world.store.load().with_quarantine("0000:3d:00.0", "reset-failed", NOW))
    code, text = out(capsys, "status", *root, *sim, "--output", "json")
    assert code == ExitCode.NEGATIVE
    rows = {d["address"]: d for d in json.loads(text)["devices"]}
    assert (rows["0000:3d:00.0"]["health"], rows["0000:3d:00.0"]["reason"]) == ("quarantined", "reset-failed")


def test_claims_lists_promises_without_any_server(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    root = ["--kubelet-root", str(world.root)]
    assert out(capsys, "claims", *root) == (0, "no claims\n")
    assert not (world.root / "plugins" / DRIVER).exists()
    ref = world.claim(gpu(0))
    world.prepare(ref)
    world.store.save(world.store.load().with_quarantine(address(1), "reset-failed", NOW))
    code, text = out(capsys, "claims", *root)
    assert code == 0
    assert f"default/{ref.name}" in text
    assert f"set aside: {address(1)}: reset-failed" in text
    _, text = out(capsys, "claims", *root, "--output", "json")
    body = json.loads(text)
    assert body["claims"][0]["devices"][0]["addresses"] == [address(0)]
    assert body["quarantine"][0]["address"] == address(1)


def test_a_broken_checkpoint_is_one_clear_line(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.store.save(world.store.load())
    (world.root / "plugins" / DRIVER / "checkpoint.json").write_bytes(b"?")
    assert run(cli, ["claims", "--kubelet-root", str(world.root)]) == ExitCode.USAGE
    assert "error[checkpoint-json]" in capsys.readouterr().err


@pytest.mark.parametrize("argv", [["claims"], ["status"], ["bridge", "run"], ["agent", "run", "--node-name", NODE]])
def test_a_folder_that_is_not_kubelets_is_no_node_without_claims(
    argv: list[str], sim: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = sim if argv[0] in {"status", "agent"} else []
    assert run(cli, [*argv, "--kubelet-root", str(tmp_path / "typo"), *more]) == ExitCode.USAGE
    output = capsys.readouterr()
    assert output.out == ""
    assert "error[kubelet-root]" in output.err
    assert "--kubelet-root" in output.err
    assert not (tmp_path / "typo").exists()


def test_status_of_a_simulated_host_needs_no_kubelet(sim: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert out(capsys, "status", *sim)[0] == ExitCode.OK


@pytest.mark.parametrize(
    "server",
    ["http://10.0.0.1:8080", "http://kubernetes.default", "http://127.0.0.1.evil.example", "http://localhost@evil.example",
     "http://[::1", "ftp://127.0.0.1", "https://", "127.0.0.1:8080", "http://0.0.0.0:80"],
)  # fmt: skip
def test_nobody_on_the_way_is_taken_for_the_api_server(
    server: str, world: World, sim: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["agent", "run", "--node-name", NODE, "--kubelet-root", str(world.root), *sim]
    assert run(cli, [*argv, "--server", server]) == ExitCode.USAGE
    assert "error[kube-server]" in capsys.readouterr().err
    kubeconfig = {
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": server}}],
        "users": [{"name": "c", "user": {"token": "t"}}], "contexts": [{"name": "c", "context": {"cluster": "c", "user": "c"}}],
    }  # fmt: skip
    (tmp_path / "kubeconfig").write_text(json.dumps(kubeconfig))
    with pytest.raises(Misconfigured):
        KubeApi.connect(kubeconfig=tmp_path / "kubeconfig")


@pytest.mark.parametrize(
    "server", ["https://10.0.0.1:6443", "http://127.0.0.1:1", "http://[::1]:1", "http://localhost:1"]
)
def test_an_api_server_over_tls_or_on_this_machine_is_taken(server: str) -> None:
    assert KubeApi.connect(server=server) is not None


@pytest.mark.parametrize(
    ("argv", "kinds"),
    [
        (["dra", "classes"], ["DeviceClass"] * 4),
        (["dra", "classes", "--nvidia"], ["DeviceClass"] * 5),
        (["dra", "admission"], ["ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"] * 2),
    ],
)
def test_rendered_objects_are_one_list(argv: list[str], kinds: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code, text = out(capsys, *argv)
    assert code == 0
    assert [i["kind"] for i in json.loads(text)["items"]] == kinds


def test_two_owners_end_the_agent_with_in_use(world: World, sim: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    nvidia_socket(world.root)
    argv = ["agent", "run", "--node-name", NODE, "--kubelet-root", str(world.root), "--mode", "standalone", *sim]
    assert run(cli, argv) == ExitCode.IN_USE
    assert "error[two-owners]" in capsys.readouterr().err


def test_the_bridge_refuses_a_kata_that_reads_dra_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "configuration.toml"
    config.write_text('[runtime]\npod_resource_device_sources = ["device-plugin", "dra"]\n')
    argv = ["bridge", "run", "--socket", str(tmp_path / "b.sock"), "--kata-config", str(config)]
    assert run(cli, argv) == ExitCode.USAGE
    assert "error[kata-native-dra]" in capsys.readouterr().err
    assert not (tmp_path / "b.sock").exists()
