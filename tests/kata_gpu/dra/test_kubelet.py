"""The driver as a process under a real kubelet, scheduler, controller manager and containerd, on the simulated host.

What `fake_kubelet` claims about kubelet is seen here on kubelet itself. Needs root and the programs of `real_node`.
"""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest

from kata_gpu.core.claim import DRIVER
from kata_gpu.core.claim_cdi import claim_of
from kata_gpu.core.device_classes import render_device_classes
from kata_gpu.core.lint.admission import one_pod_policy
from kata_gpu.core.manifests.node import ACCOUNT, BINDING, ROLE
from kata_gpu.dra._pb import podresources_v1_pb2 as pb
from kata_gpu.dra._pb import podresources_v1_pb2_grpc as rpc
from kata_gpu.host.simkernel.kernel import SimKernel
from kata_gpu.host.simkernel.presets import hgx_h100
from tests.kata_gpu.dra.fake_store import KINDS, ApiError
from tests.kata_gpu.dra.real_api import RealApi, assets
from tests.kata_gpu.dra.real_node import IMAGE, RealNode, missing
from tests.kata_gpu.dra.test_agent import get
from tests.kata_gpu.dra.world import CLAIMS, HANDLER, KATA, NODE, NODES, PODS, RUNTIME_CLASSES, SLICES, numbered

pytestmark = [pytest.mark.envtest, pytest.mark.timeout(300)]
NO_KUBELET = "envtest: KUBEBUILDER_ASSETS is not set: no kubelet"
CLASSES = KINDS["resource.k8s.io/v1", "deviceclasses"]
ROLES = KINDS["rbac.authorization.k8s.io/v1", "clusterroles"]
BINDINGS = KINDS["rbac.authorization.k8s.io/v1", "clusterrolebindings"]
EVENTS = KINDS["v1", "events"]
TEMPLATES = KINDS["resource.k8s.io/v1", "resourceclaimtemplates"]
POLICY = "apiVersion: config.kata-gpu.dev/v1alpha1\nkind: NodePolicy\ndevices:\n  - select: all\n    mode: on\n"
OF_KIND = {k.kind: k for k in KINDS.values()}
GPUS = 2


@dataclass
class Site:
    """The node, the simulated host, and our processes on it."""

    node: RealNode
    sim: SimKernel
    agents: dict[str, tuple["subprocess.Popen[bytes]", int]] = field(default_factory=dict)

    @property
    def api(self) -> RealApi:
        return self.node.api

    def start_agent(self, instance: str, *extra: str) -> None:
        """Start one and wait until kubelet has registered it and its slices are there."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        node = self.node
        argv = [
            "agent", "run", "--node-name", NODE, "--instance", instance, "--server", self.api.url,
            "--kubelet-root", str(node.root), "--cdi-dir", str(node.cdi), "--sim", str(self.sim.path),
            "--policy", str(node.dir / "policy.yaml"), "--listen", f"127.0.0.1:{port}", *extra,
        ]  # fmt: skip
        self.agents[instance] = (node.run(f"agent-{instance}", kata_gpu(*argv)), port)
        node.wait(lambda: get(port, "/readyz")[0] == 200, f"agent {instance}")

    def stop_agent(self, instance: str) -> None:
        """SIGTERM; it ends well."""
        child, _ = self.agents.pop(instance)
        child.send_signal(signal.SIGTERM)
        assert child.wait(40) == 0, self.node.log(f"agent-{instance}")

    def calls(self, instance: str) -> list[tuple[str, str]]:
        """(call, code) of kubelet's calls, from the log."""
        rows = (json.loads(line) for line in self.node.log(f"agent-{instance}").splitlines())
        return [(r["call"], r["code"]) for r in rows if r["event"] == "claim"]

    def pool(self) -> dict[str, dict[str, Any]]:
        """Devices in the API."""
        found = self.api.store.list(SLICES, fields=f"spec.nodeName={NODE}")[0]
        return {d["name"]: d for s in found for d in s["spec"].get("devices") or []}

    def pod(self, name: str, **spec: Any) -> dict[str, Any]:
        """Create a pod; by default one of Kata with one confidential GPU of its own claim."""
        claimed = {"resourceClaims": [{"name": "gpu", "resourceClaimTemplateName": "gpu"}]}
        container = {
            "name": "c",
            "image": IMAGE,
            "imagePullPolicy": "Never",
            "resources": {"claims": [{"name": "gpu"}]},
        }
        body = {"runtimeClassName": KATA, "hostNetwork": True, "terminationGracePeriodSeconds": 1, "tolerations": [{"operator": "Exists"}],
                "automountServiceAccountToken": False, "containers": [container]} | claimed | spec  # fmt: skip
        return self.api.store.create(PODS, "default", {"metadata": {"name": name}, "spec": body})

    def state(self, name: str) -> dict[str, Any]:
        """The pod, or nothing when it is gone."""
        try:
            return self.api.store.get(PODS, "default", name)
        except ApiError as exc:
            assert exc.code == 404
            return {}

    def running(self, name: str) -> dict[str, Any]:
        """Wait until it runs."""
        self.node.wait(lambda: self.state(name)["status"].get("phase") == "Running", f"pod {name} runs")
        return self.state(name)

    def delete(self, name: str) -> None:
        """Delete, and wait for the end."""
        self.api.store.delete(PODS, "default", name)
        self.node.wait(lambda: not self.state(name), f"pod {name} ends")

    def delete_all(self) -> None:
        """Every pod, and their claims."""
        for pod in self.api.store.list(PODS)[0]:
            self.delete(pod["metadata"]["name"])
        self.node.wait(lambda: not self.api.store.list(CLAIMS)[0], "the claims end")

    def ask_bridge(self, name: str) -> list[str]:
        """CDI names that Kata would make of the bridge's answer, once kubelet knows the pod."""
        request, answer = (
            pb.GetPodResourcesRequest(pod_name=name, pod_namespace="default"),
            pb.GetPodResourcesResponse(),
        )

        def answered() -> bool:
            with suppress(grpc.RpcError):
                answer.CopyFrom(rpc.PodResourcesListerStub(channel).Get(request, timeout=10))
                return True
            return False

        with grpc.insecure_channel(f"unix:{self.node.dir}/b.sock") as channel:
            self.node.wait(answered, f"the bridge answers for {name}")
        found = [d for c in answer.pod_resources.containers for d in c.devices]
        return [f"{d.resource_name}={i}" for d in found for i in d.device_ids]


def kata_gpu(*argv: str) -> list[str]:
    return [sys.executable, "-c", "from kata_gpu.cli.main import main; main()", *argv]


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    """Started once: kubelet last, as at boot, so that it finds our sockets and wipes our slices."""
    folder = assets()
    if folder is None:
        pytest.skip(NO_KUBELET)
    if why := missing(folder):
        pytest.skip(why)
    api = RealApi(folder)
    node = RealNode(folder, api)
    made = Site(node, SimKernel.create(hgx_h100(gpus=GPUS, switches=0), node.dir / "host.json"))
    bridge = None
    try:
        (node.dir / "policy.yaml").write_text(POLICY)
        for body in render_device_classes(extended_resource=True):
            api.store.create(CLASSES, "", body)
        api.store.create(RUNTIME_CLASSES, "", {"metadata": {"name": KATA}, "handler": HANDLER})
        request = {"name": "gpu", "exactly": {"deviceClassName": "confidential-gpu"}}
        template = {"metadata": {"name": "gpu"}, "spec": {"spec": {"devices": {"requests": [request]}}}}
        api.store.create(TEMPLATES, "default", template)
        node.start()
        node.start_kubelet()
        made.start_agent("a")
        bridge = node.run(
            "bridge", kata_gpu("bridge", "run", "--socket", f"{node.dir}/b.sock", "--kubelet-root", str(node.root))
        )
        yield made
    finally:
        for child in [c for c, _ in made.agents.values()] + ([bridge] if bridge is not None else []):
            child.kill()
            child.wait(30)
        node.stop()
        api.stop()


@pytest.fixture(autouse=True)
def clean(site: Site, request: pytest.FixtureRequest) -> Iterator[None]:
    """No pod is left behind, and an agent is there."""
    request.node.user_properties.append(("api-server", "real"))
    yield
    if not site.agents:
        site.start_agent("a")
    site.delete_all()


@numbered("dra-014-kubelet")
def test_a_pod_gets_its_gpu_and_gives_it_back(site: Site, case: None) -> None:
    assert sorted(site.pool()) == ["gpu-0000-17-00-0", "gpu-0000-3d-00-0"]
    uid = site.pod("p")["metadata"]["uid"]
    site.running("p")
    (claim,) = site.api.store.list(CLAIMS)[0]
    (result,) = claim["status"]["allocation"]["devices"]["results"]
    cdi = f"cgpu.kata-gpu.dev/claim={claim['metadata']['uid']}-{result['device']}"
    (file,) = site.node.cdi.iterdir()
    (entry,) = json.loads(file.read_bytes())["devices"]
    (device,) = entry["containerEdits"]["deviceNodes"]
    assert device["path"] in site.node.devices_of(uid)  # containerd resolved the id that kubelet passed on
    assert site.ask_bridge("p") == [cdi]
    site.node.wait(lambda: bool(status_devices(site)), "the agent says what it prepared")
    (row,) = status_devices(site)
    assert row["data"]["vfio"] == [device["path"]]
    assert {c["type"]: c["status"] for c in row["conditions"]} == {"Ready": "True", "ConfidentialMode": "True"}
    site.delete("p")
    assert list(site.node.cdi.iterdir()) == []
    assert site.calls("a")[-2:] == [("prepare", "ok"), ("unprepare", "ok")]


@numbered("dra-013-kubelet")
def test_a_killed_kubelet_finds_everything_again(site: Site, case: None) -> None:
    """No second Prepare for a pod that runs; the slices that kubelet deletes at its start come back."""
    site.pod("p")
    before = site.running("p")["status"]["containerStatuses"][0]["containerID"]
    calls, slices = site.calls("a"), {s["metadata"]["uid"] for s in site.api.store.list(SLICES)[0]}
    site.node.kill_kubelet()
    site.node.start_kubelet()

    def published_again() -> bool:
        found = site.api.store.list(SLICES)[0]
        return bool(found) and not slices & {s["metadata"]["uid"] for s in found}

    site.node.wait(published_again, "slices come back")
    site.node.wait(lambda: metric(site, "a", "kata_gpu_registered") == 1, "registered again")
    assert site.running("p")["status"]["containerStatuses"][0]["containerID"] == before
    assert site.calls("a") == calls
    assert len(site.ask_bridge("p")) == 1
    site.delete("p")
    assert site.calls("a") == [*calls, ("unprepare", "ok")]


@numbered("dra-010-kubelet")
def test_a_rolling_update_under_a_running_pod(site: Site, case: None) -> None:
    """The new instance serves while the old one ends; kubelet goes over to it and deletes no slice."""
    site.pod("p")
    site.running("p")
    slices = {s["metadata"]["uid"] for s in site.api.store.list(SLICES)[0]}
    site.start_agent("b")
    site.stop_agent("a")
    site.pod("q")
    site.running("q")
    assert ("prepare", "ok") in site.calls("b")
    site.delete_all()
    assert site.calls("b").count(("unprepare", "ok")) == 2
    assert {s["metadata"]["uid"] for s in site.api.store.list(SLICES)[0]} == slices
    site.start_agent("a")
    site.stop_agent("b")


@numbered("dra-045-kubelet")
def test_a_pod_waits_for_its_driver_to_end(site: Site, case: None) -> None:
    site.pod("p")
    site.running("p")
    child, _ = site.agents.pop("a")
    os.kill(child.pid, signal.SIGKILL)
    child.wait(30)
    site.api.store.delete(PODS, "default", "p")
    site.node.wait(lambda: "unprepare dynamic resources" in site.node.log("kubelet"), "kubelet tries")
    assert site.state("p")
    assert len(list(site.node.cdi.iterdir())) == 1
    site.start_agent("a")
    site.node.wait(lambda: not site.state("p"), "the pod ends")
    assert list(site.node.cdi.iterdir()) == []


@numbered("dra-087-kubelet")
def test_health_reaches_the_pod(site: Site, case: None) -> None:
    site.pod("p")
    site.running("p")

    def health() -> list[str]:
        (status,) = site.state("p")["status"]["containerStatuses"]
        rows = status.get("allocatedResourcesStatus") or []
        return [r["health"] for row in rows for r in row["resources"]]

    site.node.wait(lambda: health() == ["Healthy"], "kubelet reports the device healthy")


@numbered("dra-078-eviction")
def test_a_dead_device_is_reported_and_its_pod_evicted(site: Site, case: None) -> None:
    """The taint says NoExecute; the controller for device taints deletes the pod, and the next one gets another GPU."""
    site.pod("p")
    site.running("p")
    (claim,) = site.api.store.list(CLAIMS)[0]
    (given,) = claim["status"]["allocation"]["devices"]["results"]
    address = site.pool()[given["device"]]["attributes"]["resource.kubernetes.io/pciBusID"]["string"]
    with site.sim.edit() as machine:
        chip = machine.functions[address].chip
        assert chip is not None
        chip.faults["dead"] = True
    try:
        site.node.wait(lambda: not site.state("p"), "the pod is evicted")
        (taint,) = site.pool()[given["device"]]["taints"]
        assert (taint["value"], taint["effect"]) == ("device-dead", "NoExecute")
        site.pod("q")
        site.running("q")
        (claim,) = [c for c in site.api.store.list(CLAIMS)[0] if "deletionTimestamp" not in c["metadata"]]
        (other,) = claim["status"]["allocation"]["devices"]["results"]
        assert other["device"] != given["device"]
    finally:
        with site.sim.edit() as machine:
            chip = machine.functions[address].chip
            assert chip is not None
            chip.faults.clear()
    site.delete_all()
    site.stop_agent("a")
    site.start_agent("a")  # looks at what is set aside: the device is well again
    site.node.wait(lambda: not any(d.get("taints") for d in site.pool().values()), "the device is offered again")


def test_device_plugin_mode(site: Site) -> None:
    """The same GPUs by kubelet's device manager."""
    resource = "cgpu.kata-gpu.dev/gpu"
    site.stop_agent("a")
    try:
        site.start_agent("plugin", "--mode", "device-plugin")

        def allocatable() -> str:
            node = site.api.store.get(NODES, "", NODE)
            return str(node["status"].get("allocatable", {}).get(resource))

        site.node.wait(lambda: allocatable() == str(GPUS), "kubelet counts the devices")
        container = {"name": "c", "image": IMAGE, "imagePullPolicy": "Never", "resources": {"limits": {resource: "1"}}}
        uid = site.pod("p", resourceClaims=[], containers=[container])["metadata"]["uid"]
        site.running("p")
        assert any("/dev/vfio/" in d for d in site.node.devices_of(uid))
        (name,) = site.ask_bridge("p")
        assert name.startswith(f"{resource}=gpu-0000-")
        site.delete("p")
        site.stop_agent("plugin")
        site.node.wait(lambda: allocatable() == "0", "kubelet counts no devices")
    finally:
        site.start_agent("a")


@numbered("dra-093-kubelet")
def test_kubelet_does_not_know_every_pod(site: Site, case: None) -> None:
    request = pb.GetPodResourcesRequest(pod_name="absent", pod_namespace="default")
    with grpc.insecure_channel(f"unix:{site.node.dir}/b.sock") as channel, pytest.raises(grpc.RpcError) as caught:
        rpc.PodResourcesListerStub(channel).Get(request, timeout=10)
    assert (caught.value.code(), caught.value.details()) == (
        grpc.StatusCode.UNKNOWN,
        "pod absent in namespace default not found",
    )


@numbered("dra-024-scheduler")
def test_no_gpu_is_given_twice(site: Site, case: None) -> None:
    for name in ("p", "q", "r"):
        site.pod(name)
    site.node.wait(lambda: len(phases(site, "Running")) == GPUS, "as many pods run as there are GPUs")
    (left,) = phases(site, "Pending")
    done = min(phases(site, "Running"))
    site.api.store.delete(PODS, "default", done)
    site.node.wait(lambda: left in phases(site, "Running"), "the last one gets what was given back")
    assert ("prepare", "ok") in site.calls("a")
    assert not [c for c in site.calls("a") if c[1] == "device-held"]


@numbered("dra-014-extended-resource")
def test_a_pod_that_asks_for_pgpu_gets_a_claim(site: Site, case: None) -> None:
    """What existing pods and genpolicy write; the scheduler makes the claim."""
    container = {"name": "c", "image": IMAGE, "imagePullPolicy": "Never",
                 "resources": {"limits": {"nvidia.com/pgpu": "1"}}}  # fmt: skip
    uid = site.pod("p", resourceClaims=[], containers=[container])["metadata"]["uid"]
    site.running("p")
    (claim,) = site.api.store.list(CLAIMS)[0]
    assert site.state("p")["status"]["extendedResourceClaimStatus"]["resourceClaimName"] == claim["metadata"]["name"]
    assert any("/dev/vfio/" in d for d in site.node.devices_of(uid))
    assert len(site.ask_bridge("p")) == 1


@numbered("dra-099-without-vm")
def test_a_pod_without_a_vm_gets_no_device(site: Site, case: None) -> None:
    """Its container would have the VFIO node. The pod that comes after it, with a VM, gets the GPU."""
    site.pod("p", runtimeClassName=None)
    site.node.wait(lambda: "pod-without-vm" in told(site, "p"), "kubelet is refused")
    assert "no runtimeClassName" in told(site, "p")
    assert site.state("p")["status"]["phase"] == "Pending"
    assert [f.name for f in site.node.cdi.iterdir() if claim_of(f.name)] == []
    site.delete("p")
    site.pod("q")
    site.running("q")


@numbered("dra-026-reserved")
def test_a_claim_that_a_vm_has_is_not_reserved_for_another_pod(site: Site, case: None) -> None:
    """Kubelet would give its container the device without asking us."""
    for policy in one_pod_policy():
        site.api.store.create(OF_KIND[policy["kind"]], "", policy)
    request = {"name": "gpu", "exactly": {"deviceClassName": "confidential-gpu"}}
    site.api.store.create(CLAIMS, "default", {"metadata": {"name": "c"}, "spec": {"devices": {"requests": [request]}}})
    shared = [{"name": "gpu", "resourceClaimName": "c"}]
    try:
        site.api.await_admission()
        site.pod("p", resourceClaims=shared)
        site.running("p")
        site.pod("q", resourceClaims=shared, runtimeClassName=None)
        site.node.wait(lambda: "claim-shared" in told(site, "q", "FailedScheduling"), "the scheduler is refused")
        (consumer,) = site.api.store.get(CLAIMS, "default", "c")["status"]["reservedFor"]
        assert consumer["name"] == "p"
        assert "nodeName" not in site.state("q")["spec"]
        site.api.store.delete(PODS, "default", "p")
        site.node.wait(lambda: "pod-without-vm" in told(site, "q"), "q has the claim for itself, and no VM")
    finally:
        for policy in one_pod_policy():
            site.api.store.delete(OF_KIND[policy["kind"]], "", policy["metadata"]["name"])
        site.api.store.delete(PODS, "default", "q")
        site.api.store.delete(CLAIMS, "default", "c")
        site.api.await_admission()


def told(site: Site, pod: str, reason: str = "FailedPrepareDynamicResources") -> str:
    """What the events of a pod say."""
    events = site.api.store.list(EVENTS, "default", f"involvedObject.name={pod}")[0]
    return "\n".join(e["message"] for e in events if e["reason"] == reason)


SELECTS = [
    pytest.param("confidential-gpu", {}, True, id="dra-100-class-on"),
    pytest.param("passthrough-gpu", {}, False, id="dra-100-class-off"),
    pytest.param("confidential-gpu-devtools", {}, False, id="dra-100-class-devtools"),
    pytest.param("confidential-gpu-ppcie", {}, False, id="dra-100-class-ppcie"),
    pytest.param("confidential-gpu", {"count": 2}, True, id="dra-100-two"),
    pytest.param("confidential-gpu", {"count": 3}, False, id="dra-100-three"),
    pytest.param(
        "confidential-gpu",
        {"selectors": [{"cel": {"expression": f"device.attributes['{DRIVER}'].absent == 'x'"}}]},
        False,
        id="dra-100-missing-attribute",
    ),
]


@pytest.mark.parametrize(("device_class", "more", "schedulable"), SELECTS)
def test_the_scheduler_selects_as_written(
    site: Site, device_class: str, more: dict[str, Any], schedulable: bool
) -> None:
    request = {"name": "gpu", "exactly": {"deviceClassName": device_class} | more}
    site.api.store.create(CLAIMS, "default", {"metadata": {"name": "c"}, "spec": {"devices": {"requests": [request]}}})
    site.pod("p", resourceClaims=[{"name": "gpu", "resourceClaimName": "c"}])
    if schedulable:
        site.running("p")
        assert len(site.ask_bridge("p")) == more.get("count", 1)
    else:
        site.node.wait(lambda: refused(site, "p"), "the scheduler says no")
        assert "nodeName" not in site.state("p")["spec"]
    site.api.store.delete(PODS, "default", "p")
    site.node.wait(lambda: not site.state("p"), "the pod ends")
    site.api.store.delete(CLAIMS, "default", "c")


REFUSED = 'changing status.devices requires resource="resourceclaims/driver"'
WHO = [
    pytest.param(DRIVER, NODE, "", id="own-node"),
    pytest.param(DRIVER, "node-z", REFUSED, id="other-node"),
    pytest.param("gpu.nvidia.com", NODE, REFUSED, id="other-driver"),
]


@pytest.mark.parametrize(("driver", "node", "error"), WHO)
def test_the_agents_rights_are_for_its_own_devices_on_its_own_node(
    site: Site, driver: str, node: str, error: str
) -> None:
    """`status.devices` under the granular authorization of 1.36, with the role that is installed."""
    account = ACCOUNT.obj["metadata"]["name"]
    role = {k: v for k, v in ROLE.obj.items() if k not in {"apiVersion", "kind"}}
    if driver != DRIVER:
        role = json.loads(json.dumps(role).replace(DRIVER, driver))
    site.api.store.create(ROLES, "", role)
    subject = {"kind": "ServiceAccount", "name": account, "namespace": "default"}
    site.api.store.create(
        BINDINGS, "", {"metadata": {"name": account}, "roleRef": BINDING.obj["roleRef"], "subjects": [subject]}
    )
    site.pod("p")
    site.running("p")
    (claim,) = site.api.store.list(CLAIMS)[0]
    (given,) = claim["status"]["allocation"]["devices"]["results"]
    device = {k: given[k] for k in ("driver", "pool", "device")} | {"data": {"by": account}}
    body = {"apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim", "status": {"devices": [device]}}
    path = f"/apis/resource.k8s.io/v1/namespaces/default/resourceclaims/{claim['metadata']['name']}/status"
    who = {"Impersonate-User": f"system:serviceaccount:default:{account}",
           "Impersonate-Extra-authentication.kubernetes.io%2Fnode-name": node}  # fmt: skip

    def answer() -> str:
        try:
            site.api.ask("PATCH", f"{path}?fieldManager=t&force=true", body, "application/apply-patch+yaml", who)
        except ApiError as exc:
            return str(exc)
        return ""

    try:
        site.node.wait(lambda: "cannot patch resource" not in answer(), "the role takes effect")
        assert error in answer() if error else answer() == ""
    finally:
        site.api.store.delete(BINDINGS, "", account)
        site.api.store.delete(ROLES, "", account)


def status_devices(site: Site) -> list[dict[str, Any]]:
    """What the one claim says."""
    (claim,) = site.api.store.list(CLAIMS)[0]
    rows: list[dict[str, Any]] = claim["status"].get("devices") or []
    return rows


def phases(site: Site, phase: str) -> list[str]:
    """Names of the pods in a phase."""
    return [p["metadata"]["name"] for p in site.api.store.list(PODS)[0] if p["status"].get("phase") == phase]


def refused(site: Site, name: str) -> bool:
    """Whether the scheduler has found no node."""
    rows = site.state(name)["status"].get("conditions") or []
    return any(c["type"] == "PodScheduled" and c["status"] == "False" for c in rows)


def metric(site: Site, instance: str, name: str) -> float:
    """A gauge without labels."""
    text = get(site.agents[instance][1], "/metrics")[1].decode()
    return float(next(line.split()[1] for line in text.splitlines() if line.startswith(f"{name} ")))
