"""Beside NVIDIA's DRA driver: dra.md 7, behaviours 97 to 100, and the contract of both allocation owners."""

import socket
from pathlib import Path
from typing import Any

import pytest

from kata_gpu.core.allocatable import allocatables
from kata_gpu.core.beside_nvidia import (
    BUS_ID,
    CLASS,
    NVIDIA,
    parse_nvidia_slices,
    render_admission,
    render_companions,
    render_nvidia_class,
)
from kata_gpu.core.claim import DRIVER, parse_config
from kata_gpu.core.device_classes import EXTENDED_RESOURCE, render_device_classes
from kata_gpu.core.gpu import CcMode
from kata_gpu.core.slices import Features, offers_of, render_pool
from kata_gpu.errors import InUse
from kata_gpu.host.real import RealHost
from kata_gpu.ops.owners import Mode, NvidiaAllocation, choose_mode
from kata_gpu.ops.publish import SlicePublisher
from tests.kata_gpu.dra.admission import policies_of
from tests.kata_gpu.dra.fake_rules import ADMIN_ACCESS
from tests.kata_gpu.dra.fake_store import KINDS, ApiError
from tests.kata_gpu.dra.world import CLAIMS, NODE, SLICES, World, address, gpu, numbered

RULES = KINDS["resource.k8s.io/v1beta2", "devicetaintrules"]
TEMPLATES = KINDS["resource.k8s.io/v1", "resourceclaimtemplates"]
PODS = KINDS["v1", "pods"]
NAMESPACES = KINDS["v1", "namespaces"]
CLASSES = KINDS["node.k8s.io/v1", "runtimeclasses"]
POLICIES = KINDS["admissionregistration.k8s.io/v1", "validatingadmissionpolicies"]
BINDINGS = KINDS["admissionregistration.k8s.io/v1", "validatingadmissionpolicybindings"]


def nvidia_slice(world: World, order: list[int], *, node: str = NODE) -> None:
    """Their slice: `gpu-vfio-<n>` numbered by enumeration order, and the sibling entries that are not VFIO."""
    devices = [
        {
            "name": f"gpu-vfio-{n}",
            "attributes": {
                "type": {"string": "vfio"},
                BUS_ID: {"string": address(i)},
                "iommuFDEnabled": {"bool": True},
            },
        }
        for n, i in enumerate(order)
    ]
    devices.append({"name": "gpu-0", "attributes": {"type": {"string": "gpu"}, BUS_ID: {"string": address(7)}}})
    pool = {"name": node, "generation": 1, "resourceSliceCount": 1}
    body: dict[str, Any] = {
        "metadata": {"name": f"nv-{node}"},
        "spec": {"driver": NVIDIA, "nodeName": node, "pool": pool, "devices": devices},
    }
    try:
        world.api.store.replace(SLICES, "", f"nv-{node}", body)
    except ApiError:
        world.api.store.create(SLICES, "", body)


def rules(world: World) -> dict[str, str]:
    """Device named by each rule -> reason."""
    return {r["spec"]["deviceSelector"]["device"]: r["spec"]["taint"]["value"] for r in world.api.store.list(RULES)[0]}


@pytest.mark.envtest
@numbered("dra-097")
def test_taint_rules_follow_the_address_not_the_index(world: World, case: None) -> None:
    owner = NvidiaAllocation(world.kube, NODE)
    nvidia_slice(world, [0, 1, 2])
    nvidia_slice(world, [0, 1, 2], node="node-b")
    owner.mark_unfit({address(2): "cc-mode-on", "0000:ff:00.0": "not-theirs"})
    assert rules(world) == {"gpu-vfio-2": "cc-mode-on"}
    (rule,) = world.api.store.list(RULES)[0]
    assert rule["spec"]["deviceSelector"] == {"driver": NVIDIA, "pool": NODE, "device": "gpu-vfio-2"}
    before = rule["metadata"]["resourceVersion"]
    owner.mark_unfit({address(2): "cc-mode-on"})
    assert world.api.store.list(RULES)[0][0]["metadata"]["resourceVersion"] == before
    nvidia_slice(world, [2, 0, 1])  # enumerated in another order
    owner.mark_unfit({address(2): "cc-mode-on"})
    assert rules(world) == {"gpu-vfio-0": "cc-mode-on"}


def nvidia_socket(root: Path) -> Path:
    path = root / "plugins" / "gpu.nvidia.com" / "dra.sock"
    path.parent.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
    return path


@numbered("dra-097-mode")
def test_with_their_driver_present_auto_leaves_allocation_to_it(world: World, case: None) -> None:
    host = RealHost()
    assert choose_mode(Mode.AUTO, host, str(world.root)) is Mode.STANDALONE
    path = nvidia_socket(world.root)
    assert choose_mode(Mode.AUTO, host, str(world.root)) is Mode.NVIDIA_DRA
    path.unlink()
    assert choose_mode(Mode.AUTO, host, str(world.root)) is Mode.STANDALONE


@pytest.mark.parametrize(
    "mode",
    [pytest.param(Mode.STANDALONE, id="dra-100"), pytest.param(Mode.DEVICE_PLUGIN, id="dra-100-device-plugin")],
)
def test_two_owners_are_refused_by_name(world: World, mode: Mode) -> None:
    nvidia_socket(world.root)
    with pytest.raises(InUse, match="NVIDIA's DRA driver") as caught:
        choose_mode(mode, RealHost(), str(world.root))
    assert "standalone" in caught.value.hint


@pytest.mark.envtest
@numbered("dra-098")
def test_rules_go_with_their_driver_and_other_rules_stay(world: World, case: None) -> None:
    owner = NvidiaAllocation(world.kube, NODE)
    nvidia_slice(world, [0, 1])
    owner.mark_unfit({address(0): "x", address(1): "y"})
    foreign = {"metadata": {"name": "by-hand"}, "spec": {"deviceSelector": {}, "taint": {"key": "k", "effect": "None"}}}
    world.api.store.create(RULES, "", foreign)
    assert len(world.api.store.list(RULES)[0]) == 3
    owner.clear()
    assert [r["metadata"]["name"] for r in world.api.store.list(RULES)[0]] == ["by-hand"]


def claim(name: str = "cgpu-a", *, cls: str = "confidential-gpu", config: Any = None, **exactly: Any) -> dict[str, Any]:
    devices: dict[str, Any] = {"requests": [{"name": "g", "exactly": {"deviceClassName": cls} | exactly}]}
    if config is not None:
        devices["config"] = [{"opaque": {"driver": NVIDIA, "parameters": config}}]
    return {"metadata": {"name": name}, "spec": {"devices": devices}}


def pod(*claims: str, runtime: str | None = "kata-qemu-nvidia-gpu-snp") -> dict[str, Any]:
    spec: dict[str, Any] = {
        "resourceClaims": [{"name": f"c{i}", "resourceClaimTemplateName": c} for i, c in enumerate(claims)]
    }
    spec["containers"] = [{"name": "c", "image": "i"}]
    if runtime:
        spec["runtimeClassName"] = runtime
    return {"metadata": {"name": "p"}, "spec": spec}


LEGACY = {"kind": "VfioDeviceConfig", "iommu": {"backendPolicy": "LegacyOnly"}}
UNSET = {"kind": "VfioDeviceConfig", "iommu": {}}
GOOD = {"kind": "VfioDeviceConfig", "iommu": {"backendPolicy": "PreferIommuFD"}}
CONTROLLER, SCHEDULER = "system:serviceaccount:kube-system:resource-claim-controller", "system:kube-scheduler"
ADMISSION = [
    pytest.param(CLAIMS, claim(), "", id="dra-099-good-claim"),
    pytest.param(CLAIMS, claim(adminAccess=True), "adminAccess", id="dra-099-admin-access"),
    pytest.param(CLAIMS, claim(cls=CLASS, config=LEGACY), "iommufd", id="dra-099-legacy-iommu"),
    pytest.param(CLAIMS, claim(cls=CLASS, config=UNSET), "iommufd", id="dra-099-unset-iommu"),
    pytest.param(CLAIMS, claim(cls=CLASS, config=GOOD), "", id="dra-099-iommufd"),
    pytest.param(CLAIMS, claim("anything"), "named cgpu-", id="dra-099-name"),
    pytest.param(CLAIMS, claim("x", cls="nic", adminAccess=True, config=LEGACY), "", id="dra-099-other-claims"),
    pytest.param(TEMPLATES, {"metadata": {"name": "cgpu-t"}, "spec": {"spec": claim()["spec"]}}, "", id="dra-099-template"),
    pytest.param(
        TEMPLATES, {"metadata": {"name": "cgpu-t"}, "spec": {"spec": claim(adminAccess=True)["spec"]}}, "adminAccess",
        id="dra-099-template-admin",
    ),
    pytest.param(PODS, pod("cgpu-t"), "", id="dra-099-good-pod"),
    pytest.param(PODS, pod("cgpu-t", runtime="runc"), "RuntimeClass", id="dra-099-wrong-runtime"),
    pytest.param(PODS, pod("cgpu-t", runtime=None), "RuntimeClass", id="dra-099-no-runtime"),
    pytest.param(PODS, pod("cgpu-t", "cgpu-u"), "one GPU claim", id="dra-099-two-claims"),
    pytest.param(PODS, pod("nic", "disk", runtime=None), "", id="dra-099-other-pods"),
    pytest.param(PODS, pod(runtime=None), "", id="dra-099-plain-pod"),
]  # fmt: skip


def generated(name: str) -> dict[str, Any]:
    """A claim that says of itself that it is of a template."""
    body = claim(name)
    return body | {"metadata": body["metadata"] | {"annotations": {"resource.kubernetes.io/pod-claim-name": "gpu"}}}


@pytest.mark.envtest
@pytest.mark.parametrize(("kind", "body", "denied"), ADMISSION)
def test_admission(world: World, kind: Any, body: dict[str, Any], denied: str) -> None:
    install_rules(world)
    if denied:
        with pytest.raises(ApiError, match=f"ValidatingAdmissionPolicy.*{denied}"):
            world.api.store.create(kind, "admin", body)
    else:
        assert world.api.store.create(kind, "admin", body)["metadata"]["uid"]


@pytest.mark.envtest
@numbered("dra-099-generated")
def test_only_controllers_name_claims_otherwise(world: World, case: None) -> None:
    """A tenant's claim that calls itself generated would be in no pod's name, and in any pod's reach."""
    install_rules(world)
    store = world.api.store
    with pytest.raises(ApiError, match="named cgpu-"):
        store.create(CLAIMS, "admin", generated("p-gpu-x"))
    for number, user in enumerate((CONTROLLER, SCHEDULER)):
        assert store.create(CLAIMS, "admin", generated(f"p-gpu-{number}"), user)["metadata"]["uid"]


def install_rules(world: World) -> None:
    """The rules beside NVIDIA's driver, at work, and a namespace where adminAccess is not refused by the server."""
    store = world.api.store
    for runtime in ("runc", "kata-qemu-nvidia-gpu-snp"):
        store.create(CLASSES, "", {"metadata": {"name": runtime}, "handler": runtime})
    store.create(NAMESPACES, "", {"metadata": {"name": "admin", "labels": {ADMIN_ACCESS: "true"}}})
    for policy in render_admission():
        store.create(POLICIES if policy["kind"] == "ValidatingAdmissionPolicy" else BINDINGS, "", policy)
    store.admit = policies_of(store)


def test_their_class_forces_iommufd() -> None:
    spec = render_nvidia_class()["spec"]
    assert spec["config"][0]["opaque"]["parameters"]["iommu"]["backendPolicy"] == "PreferIommuFD"
    assert "iommuFDEnabled" in spec["selectors"][0]["cel"]["expression"]


def test_companions_carry_what_their_slices_lack(world: World) -> None:
    nvidia_slice(world, [1, 0])
    found = parse_nvidia_slices(world.api.store.list(SLICES)[0], NODE)
    assert [d.address for d in found] == [address(0), address(1)]
    (spec,) = render_companions(world.host.observe(), found, NODE)
    assert [d["name"] for d in spec["devices"]] == [gpu(0), gpu(1)]
    assert spec["devices"][0]["attributes"]["ccMode"] == {"string": "on"}
    assert spec["devices"][0]["attributes"][BUS_ID] == {"string": address(0)}
    publisher = SlicePublisher(world.kube, NODE, driver=spec["driver"])
    assert [publisher.sync_specs(lambda _f: [spec]).writes for _ in range(2)] == [1, 0]


# DeviceClasses


def chosen(world: World, expression: str) -> set[str]:
    """Devices of our pool that a selector picks, by cel-python; a missing attribute would raise."""
    import celpy
    from celpy.adapter import json_to_cel

    inventory = world.host.observe()
    offers = offers_of(inventory, allocatables(inventory), {})
    specs = render_pool(inventory, offers, node=NODE, features=Features())
    program = celpy.Environment().program(celpy.Environment().compile(expression))
    out = set()
    for device in (d for s in specs for d in s.get("devices", [])):
        values = {k: next(iter(v.values())) for k, v in device["attributes"].items() if "/" not in k}
        cel = json_to_cel({"driver": DRIVER, "attributes": {DRIVER: values}})
        if program.evaluate({"device": cel}):
            out.add(device["name"])
    return out


@pytest.mark.parametrize(
    ("mode", "name", "count"),
    [
        pytest.param(CcMode.ON, "confidential-gpu", 8, id="on"),
        pytest.param(CcMode.DEVTOOLS, "confidential-gpu-devtools", 8, id="devtools"),
        pytest.param(CcMode.PPCIE, "confidential-gpu-ppcie", 1, id="ppcie"),
        pytest.param(CcMode.OFF, "passthrough-gpu", 8, id="off"),
    ],
)
def test_each_mode_has_one_class(world: World, mode: CcMode, name: str, count: int) -> None:
    world.host.__init__(gpus=8, switches=4, mode=mode)  # type: ignore[misc]
    picked = {
        c["metadata"]["name"]: chosen(world, c["spec"]["selectors"][0]["cel"]["expression"])
        for c in render_device_classes()
    }
    assert {n: len(d) for n, d in picked.items() if d} == {name: count}


def test_classes_demand_what_prepare_checks() -> None:
    for cls in render_device_classes():
        parameters = cls["spec"]["config"][0]["opaque"]["parameters"]
        assert parse_config(parameters, where="test").require_mode is not None
        assert "extendedResourceName" not in cls["spec"]
    extended = {
        c["metadata"]["name"]: c["spec"].get("extendedResourceName")
        for c in render_device_classes(extended_resource=True)
    }
    assert extended.pop("confidential-gpu") == EXTENDED_RESOURCE
    assert set(extended.values()) == {None}


def marks(world: World) -> set[str]:
    """Reasons that the scheduler can see."""
    return set(rules(world).values())


def test_marks_are_exact_repeatable_and_removable(world: World) -> None:
    nvidia_slice(world, list(range(7)))
    owner = NvidiaAllocation(world.kube, NODE)
    owner.mark_unfit({address(0): "cc-mode-on", address(1): "reset-failed"})
    assert marks(world) == {"cc-mode-on", "reset-failed"}
    version = world.api.store.version
    owner.mark_unfit({address(0): "cc-mode-on", address(1): "reset-failed"})
    assert world.api.store.version == version
    owner.mark_unfit({address(1): "reset-failed"})
    assert marks(world) == {"reset-failed"}
    owner.clear()
    assert marks(world) == set()
    owner.clear()


def test_an_owner_survives_an_api_without_taint_rules(world: World) -> None:
    nvidia_slice(world, [0])
    world.api.fail_next(404, resource="devicetaintrules")
    NvidiaAllocation(world.kube, NODE).clear()
