"""The report of an installed cluster, of an empty one, and of one with each thing wrong."""

import json
from dataclasses import replace
from typing import Any

import pytest

from kata_gpu.cli.main import cli, run
from kata_gpu.core.claim import DRIVER
from kata_gpu.core.conformance import DRA_RESOURCES, POLICIES, Level, Observed, Status, appraise
from kata_gpu.core.manifests.install import wanted
from kata_gpu.core.manifests.node import NAME
from kata_gpu.core.manifests.values import VALUES
from kata_gpu.core.yaml12 import load
from kata_gpu.errors import ExitCode
from kata_gpu.host.kube import KubeApi
from kata_gpu.ops.conformance import observe
from kata_gpu.ops.install import install
from runtimeclass.model import Tee
from tests.kata_gpu.dra.fake_store import KINDS

Object = dict[str, Any]
LABELS = {"katacontainers.io/kata-runtime": "true", "kata-gpu.dev/cc-mode": "on", "kata-gpu.dev/tee": "snp"}
SLICE: Object = {"metadata": {"name": "n-1"}, "spec": {"driver": DRIVER, "nodeName": "n", "pool": {
    "name": "n", "generation": 1, "resourceSliceCount": 1}, "devices": [{"name": "gpu-0"}, {"name": "gpu-1"}]}}  # fmt: skip


@pytest.fixture
def installed(api: Any) -> Any:
    """The same after `kata-gpu install`, with one node that offers two GPUs and a ready agent."""
    kube = KubeApi.connect(server=api.url)
    install(kube, wanted(VALUES, default_tee=Tee.SNP, with_broker=False), say=lambda _: None)
    api.store.create(KINDS["v1", "nodes"], "", {"metadata": {"name": "n", "labels": LABELS}})
    api.store.create(KINDS["resource.k8s.io/v1", "resourceslices"], "", SLICE)
    agents = KINDS["apps/v1", "daemonsets"]
    status = {"status": {"desiredNumberScheduled": 1, "numberReady": 1}}
    api.store.merge(agents, "kata-gpu", NAME, status, status=True)
    return api


def seen(api: Any) -> Observed:
    return observe(KubeApi.connect(server=api.url))


def status(observed: Observed, id_: str) -> Status:
    return next(r.status for r in appraise(observed) if r.id == id_)


@pytest.mark.envtest
def test_an_installed_cluster(installed: Any, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["conformance", "--server", installed.url, "--platform-name", "Example", "--output", "yaml"]
    code = run(cli, argv)
    document = load(capsys.readouterr().out, where="report")
    assert (
        document["metadata"] | {"platformName": "Example", "kubernetesVersion": seen(installed).version}
        == document["metadata"]
    )
    rows = {r["id"]: r for section in document["spec"].values() for r in section}
    assert {i: r["status"] for i, r in rows.items()} == {
        "dra_support": "Implemented",
        "driver_runtime_management": "Implemented",
        "gpu_sharing": "N/A",
        "virtualized_accelerator": "N/A",
        "gang_scheduling": "Not Implemented",
        "cluster_autoscaling": "",
        "accelerator_metrics": "Partially Implemented",
        "secure_accelerator_access": "Implemented",
        "workload_sandboxing": "Implemented",
    }
    assert code == ExitCode.NEGATIVE, "no gang scheduler is installed"
    assert all(r["evidence"] or r["notes"] for r in rows.values())
    assert {r.level for r in appraise(seen(installed)) if r.id == "secure_accelerator_access"} == {Level.MUST}


@pytest.mark.envtest
def test_an_empty_cluster(api: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(cli, ["conformance", "--server", api.url]) == ExitCode.NEGATIVE
    out = capsys.readouterr().out
    assert "no device is published" in out
    assert "cluster_autoscaling        to be shown by you" in out
    assert run(cli, ["conformance", "--server", api.url, "--output", "json"]) == ExitCode.NEGATIVE
    rows = json.loads(capsys.readouterr().out)["spec"]["security"]
    assert {r["id"]: r["status"] for r in rows} == {
        "secure_accelerator_access": "Partially Implemented",
        "workload_sandboxing": "Not Implemented",
    }


@pytest.mark.envtest
def test_every_policy_that_is_asked_for_is_one_that_install_applies(installed: Any) -> None:
    assert set(POLICIES) <= seen(installed).policies


def test_old_clusters_do_not_serve_dra(installed: Any) -> None:
    old = replace(seen(installed), dra_v1=frozenset(DRA_RESOURCES[:2]))
    assert status(old, "dra_support") is Status.MISSING
    assert status(old, "secure_accelerator_access") is Status.MISSING


def test_gang_schedulers_are_known_by_their_api(installed: Any) -> None:
    assert status(replace(seen(installed), groups=frozenset({"kueue.x-k8s.io"})), "gang_scheduling") is Status.PARTIAL


def pod(**spec: Any) -> Object:
    return {
        "metadata": {"name": "p", "namespace": "d"},
        "spec": {"nodeName": "n", "containers": [{"name": "c"}], **spec},
    }


def claim(name: str, device: str = "gpu-0") -> Object:
    result = {"driver": DRIVER, "pool": "n", "device": device}
    return {"metadata": {"name": name, "namespace": "d"}, "status": {"allocation": {"devices": {"results": [result]}}}}


@pytest.mark.parametrize(("changes", "says"), [
    pytest.param({"pods": [pod(containers=[{"securityContext": {"privileged": True}}])]}, "pod d/p", id="privileged"),
    pytest.param({"pods": [pod(volumes=[{"hostPath": {"path": "/dev/vfio/42"}}])]}, "pod d/p", id="vfio-node"),
    pytest.param({"pods": [pod(volumes=[{"hostPath": {"path": "/dev/"}}])]}, "pod d/p", id="dev"),
    pytest.param({"claims": [claim("a"), claim("b")]}, "device n/gpu-0 is allocated to d/a and d/b", id="shared"),
    pytest.param({"policies": frozenset(POLICIES[1:])}, f"admission policy {POLICIES[0]}", id="policy"),
    pytest.param({"device_classes": [{"metadata": {"name": "x"}, "spec": {
        "config": [{"opaque": {"driver": DRIVER}}], "selectors": [{"cel": {"expression": "true"}}]}}]},
        "DeviceClass x", id="class"),
])  # fmt: skip
def test_each_way_past_allocation_is_named(installed: Any, changes: dict[str, Any], says: str) -> None:
    (row,) = (r for r in appraise(replace(seen(installed), **changes)) if r.id == "secure_accelerator_access")
    assert (row.status, says in row.notes) == (Status.PARTIAL, True)


@pytest.mark.parametrize("changes", [
    pytest.param({"pods": [pod(nodeName="other", containers=[{"securityContext": {"privileged": True}}])]}, id="elsewhere"),
    pytest.param({"pods": [pod(volumes=[{"hostPath": {"path": "/var/log"}}])]}, id="other-path"),
    pytest.param({"claims": [claim("a"), claim("b", "gpu-1")]}, id="two-devices"),
    pytest.param({"pods": [pod(priorityClassName="system-node-critical",
                               containers=[{"securityContext": {"privileged": True}}])]}, id="node-software"),
])  # fmt: skip
def test_what_is_allowed_is_not_named(installed: Any, changes: dict[str, Any]) -> None:
    assert status(replace(seen(installed), **changes), "secure_accelerator_access") is Status.IMPLEMENTED
