"""Install, install again, uninstall: the plan is what happens, and nothing of ours is left."""

import json
from collections.abc import Iterator

import pytest

from kata_gpu.cli.main import cli, run
from kata_gpu.core.manifests.classes import NVIDIA
from kata_gpu.core.manifests.install import plan_install, plan_uninstall, wanted
from kata_gpu.core.manifests.paths import object_path
from kata_gpu.core.manifests.quantity import same_quantity
from kata_gpu.core.manifests.values import VALUES
from kata_gpu.errors import ExitCode, Misconfigured
from kata_gpu.host.kube import KubeApi
from kata_gpu.ops.install import observe
from runtimeclass.model import Tee
from tests.kata_gpu.dra.fake_api import FakeApi


@pytest.fixture
def api() -> Iterator[FakeApi]:
    fake = FakeApi()
    yield fake
    fake.stop()


def call(api: FakeApi, command: str, *args: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, list[str]]:
    """Exit code and the paths in the JSON result."""
    code = run(cli, [command, *args, "--with-broker", "--server", api.url, "--output", "json"])
    out = capsys.readouterr().out
    return code, [s["path"] for s in json.loads(out)] if out else []


def test_dry_run_is_what_apply_does_and_uninstall_leaves_nothing(
    api: FakeApi, capsys: pytest.CaptureFixture[str]
) -> None:
    objects = wanted(VALUES, default_tee=Tee.NONE, with_broker=True)
    kube = KubeApi.connect(server=api.url)
    before = observe(kube, objects)
    assert call(api, "uninstall", "--verify", capsys=capsys) == (0, [])

    code, planned = call(api, "install", "--dry-run", capsys=capsys)
    assert code == 0
    assert planned == [object_path(o) for o in objects]
    assert observe(kube, objects) == before, "a dry run changes nothing"

    assert call(api, "install", "--apply", capsys=capsys) == (0, planned)
    assert call(api, "install", "--apply", capsys=capsys) == (0, [])
    assert call(api, "uninstall", "--verify", capsys=capsys) == (1, planned[::-1])

    assert call(api, "uninstall", capsys=capsys) == (0, planned[::-1])
    assert call(api, "uninstall", "--verify", capsys=capsys) == (0, [])
    assert observe(kube, objects) == before


def test_optional_objects_are_removed_without_being_asked_for(api: FakeApi, capsys: pytest.CaptureFixture[str]) -> None:
    code, paths = call(api, "install", "--with-nvidia", "--apply", capsys=capsys)
    plain = [object_path(o) for o in wanted(VALUES, default_tee=Tee.NONE, with_broker=True)]
    assert (code, len(set(paths) - set(plain)), set(plain) - set(paths)) == (0, len(NVIDIA), set())
    assert call(api, "uninstall", "--verify", capsys=capsys) == (1, paths[::-1])
    assert call(api, "uninstall", capsys=capsys) == (0, paths[::-1])


def test_the_right_to_evict_comes_and_goes_with_the_option(api: FakeApi, capsys: pytest.CaptureFixture[str]) -> None:
    kube = KubeApi.connect(server=api.url)

    def state() -> tuple[set[str], bool]:
        roles = {
            o["metadata"]["name"] for o in kube.list("/apis/rbac.authorization.k8s.io/v1/clusterroles", timeout_s=5)[0]
        }
        policy = kube.get("/api/v1/namespaces/kata-gpu/configmaps/kata-gpu-node-policy", timeout_s=5)
        return roles, "drain: evict" in policy["data"]["node-policy.yaml"]

    always = {"kata-gpu-node", "kata-gpu-node-pods"}
    for option, expected in (((), always), (("--drain",), always | {"kata-gpu-node-evict"}), ((), always)):
        assert call(api, "install", "--apply", *option, capsys=capsys)[0] == ExitCode.OK
        assert state() == (expected, bool(option))
        assert call(api, "install", "--apply", *option, capsys=capsys) == (ExitCode.OK, [])


def test_what_is_still_going_is_waited_for_and_named(api: FakeApi, capsys: pytest.CaptureFixture[str]) -> None:
    """Without its controllers a cluster never ends the deletion of a namespace or of a protected volume."""
    call(api, "install", "--apply", capsys=capsys)
    api.store.controllers = False
    assert run(cli, ["uninstall", "--with-broker", "--wait", "0", "--server", api.url]) == ExitCode.UNAVAILABLE
    said = capsys.readouterr().err
    assert "install-deleting" in said
    assert "/api/v1/namespaces/kata-gpu (kubernetes)" in said
    assert "persistentvolumeclaims/kata-gpu-kbs-data (kubernetes.io/pvc-protection)" in said
    left = [f"/api/v1/namespaces/kata-gpu{p}" for p in ("/persistentvolumeclaims/kata-gpu-kbs-data", "")]
    assert call(api, "uninstall", "--verify", capsys=capsys) == (1, left)
    assert run(cli, ["install", "--apply", "--wait", "0", "--server", api.url]) == ExitCode.UNAVAILABLE
    api.store.finish_deletions()
    assert call(api, "uninstall", "--verify", capsys=capsys) == (0, [])
    assert call(api, "install", "--apply", capsys=capsys)[0] == 0


QUANTITIES = [
    pytest.param("10240Mi", "10Gi", True, id="binary"),
    pytest.param("0.5", "500m", True, id="milli"),
    pytest.param("1e3", "1k", True, id="exponent"),
    pytest.param("1G", "1Gi", False, id="decimal-is-not-binary"),
    pytest.param("2", "2Ki", False, id="other"),
    pytest.param("on", "on", False, id="no-quantity"),
    pytest.param(1, "1", False, id="no-text"),
]


@pytest.mark.parametrize(("one", "other", "same"), QUANTITIES)
def test_quantities_are_compared_by_value(one: object, other: object, same: bool) -> None:
    assert same_quantity(one, other) is same
    assert same_quantity(other, one) is same


def test_what_somebody_changed_is_put_back_and_only_that(api: FakeApi, capsys: pytest.CaptureFixture[str]) -> None:
    call(api, "install", "--apply", capsys=capsys)
    kube = KubeApi.connect(server=api.url)
    path = "/apis/node.k8s.io/v1/runtimeclasses/kata-nvidia-gpu-snp"
    kube.merge(path, {"handler": "runc"}, timeout_s=5)
    kube.merge(path, {"metadata": {"labels": {"team": "ml"}}}, timeout_s=5)
    assert call(api, "install", "--apply", capsys=capsys) == (0, [path])
    found = kube.get(path, timeout_s=5)
    assert found["handler"] == "kata-qemu-nvidia-gpu-snp"
    assert found["metadata"]["labels"]["team"] == "ml"


def test_objects_of_others_with_our_names_stay(api: FakeApi, capsys: pytest.CaptureFixture[str]) -> None:
    kube = KubeApi.connect(server=api.url)
    foreign = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "kata-gpu"}}
    kube.create("/api/v1/namespaces", foreign, timeout_s=5)
    objects = wanted(VALUES, default_tee=Tee.NONE, with_broker=False)
    assert plan_uninstall(objects, observe(kube, objects)) == ()
    assert call(api, "uninstall", capsys=capsys) == (0, [])
    assert kube.get("/api/v1/namespaces/kata-gpu", timeout_s=5)["metadata"]["name"] == "kata-gpu"


def test_a_namespace_of_others_is_never_taken_and_deleted(api: FakeApi, capsys: pytest.CaptureFixture[str]) -> None:
    """One field of it would make it ours, and uninstalling would end everything in it."""
    kube = KubeApi.connect(server=api.url)
    path, label = "/api/v1/namespaces/team", {"pod-security.kubernetes.io/enforce": "restricted"}
    kube.create("/api/v1/namespaces", {"metadata": {"name": "team", "labels": label}}, timeout_s=5)
    at = ("--namespace", "team")
    assert run(cli, ["install", "--apply", *at, "--server", api.url]) == ExitCode.USAGE
    assert "kubectl label namespace team" in capsys.readouterr().err
    assert kube.get(path, timeout_s=5)["metadata"]["labels"] == label
    kube.merge(path, {"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "privileged"}}}, timeout_s=5)
    code, paths = call(api, "install", "--apply", *at, capsys=capsys)
    assert (code, path in paths) == (0, False)
    assert call(api, "uninstall", *at, capsys=capsys) == (0, paths[::-1])
    assert kube.get(path, timeout_s=5)["metadata"]["name"] == "team"


def test_unreachable_server_is_unavailable(api: FakeApi, capsys: pytest.CaptureFixture[str]) -> None:
    api.go_down()
    assert run(cli, ["install", "--server", api.url]) == 8
    assert "Traceback" not in capsys.readouterr().err


def test_kinds_that_are_not_ours_have_no_path() -> None:
    with pytest.raises(Misconfigured):
        object_path({"kind": "Secret", "apiVersion": "v1", "metadata": {"name": "s"}})


def test_plan_of_a_converged_cluster_is_empty() -> None:
    objects = wanted(VALUES, default_tee=Tee.SNP, with_broker=True)
    assert plan_install(objects, {object_path(o): dict(o) for o in objects}) == ()
