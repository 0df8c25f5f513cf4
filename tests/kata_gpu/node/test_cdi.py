"""CDI: what we write is valid at the lowest version, and what strict loaders refuse we refuse."""

import json
from dataclasses import replace
from typing import Any

import pytest

from kata_gpu.core.cdi import (
    device_nodes,
    find_duplicates,
    find_stale,
    node_paths,
    parse_spec,
    render_spec,
    validate,
)
from kata_gpu.core.gpu import GpuDevice, Kind
from kata_gpu.errors import Malformed
from kata_gpu.host.simkernel.kernel import SimKernel
from kata_gpu.host.simkernel.presets import mixed
from kata_gpu.ops.observe import observe


def _devices() -> list[GpuDevice]:
    """H100 as vfio3 in group 1, A10 with its audio function as vfio0 and vfio7."""
    h100, a10 = observe(SimKernel(mixed())).devices
    audio = replace(a10.companions[0], driver="vfio-pci", vfio_cdev="vfio7")
    return [
        replace(h100, function=replace(h100.function, driver="vfio-pci", vfio_cdev="vfio3")),
        replace(a10, function=replace(a10.function, driver="vfio-pci", vfio_cdev="vfio0"), companions=(audio,)),
    ]


def test_golden_file() -> None:
    assert render_spec(Kind.GPU, _devices()[:1], iommufd=True) == (
        '{\n  "cdiVersion": "0.5.0",\n  "kind": "cgpu.kata-gpu.dev/gpu",\n  "devices": [\n    {\n'
        '      "name": "gpu-0000-17-00-0",\n      "containerEdits": {\n        "deviceNodes": [\n          {\n'
        '            "path": "/dev/vfio/devices/vfio3",\n            "permissions": "rw"\n          }\n        ]\n'
        "      }\n    }\n  ]\n}\n"
    )


def test_companions_go_along() -> None:
    a10 = _devices()[1]
    assert node_paths(a10, iommufd=True) == ("/dev/vfio/devices/vfio0", "/dev/vfio/devices/vfio7")
    assert node_paths(a10, iommufd=False) == (f"/dev/vfio/{a10.function.iommu_group}",)


def test_nothing_usable_is_no_file() -> None:
    assert render_spec(Kind.NVSWITCH, _devices(), iommufd=True) is None
    assert render_spec(Kind.GPU, observe(SimKernel(mixed())).devices, iommufd=True) is None


def test_names_do_not_follow_cdev_numbers() -> None:
    """After a renumbering the same name leads to the same PCI address."""
    first, second = _devices()
    swapped = [
        replace(first, function=replace(first.function, vfio_cdev="vfio0")),
        replace(second, function=replace(second.function, vfio_cdev="vfio3")),
    ]
    old = json.loads(render_spec(Kind.GPU, [first, second], iommufd=True) or "")
    new = json.loads(render_spec(Kind.GPU, swapped, iommufd=True) or "")
    assert [d["name"] for d in old["devices"]] == [d["name"] for d in new["devices"]]
    assert find_stale(old, swapped, iommufd=True).keys() == {"gpu-0000-17-00-0", "gpu-0000-3d-00-0"}
    assert find_stale(new, swapped, iommufd=True) == {}


def test_stale_reasons() -> None:
    first, second = _devices()
    spec = json.loads(render_spec(Kind.GPU, [first, second], iommufd=True) or "")
    unbound = replace(first, function=replace(first.function, driver=None, vfio_cdev=None))
    assert find_stale(spec, [unbound], iommufd=True) == {
        "gpu-0000-17-00-0": "is not bound, file says /dev/vfio/devices/vfio3",
        "gpu-0000-3d-00-0": "no such device",
    }


def test_frozen_entries_win() -> None:
    text = render_spec(Kind.GPU, _devices(), iommufd=True, frozen={"gpu-0000-17-00-0": ["/dev/vfio/devices/vfio9"]})
    assert "/dev/vfio/devices/vfio9" in (text or "")
    assert "/dev/vfio/devices/vfio3" not in (text or "")


def test_duplicates() -> None:
    spec = json.loads(render_spec(Kind.GPU, _devices(), iommufd=True) or "")
    assert find_duplicates({"a.json": spec, "b.json": spec})["cgpu.kata-gpu.dev/gpu=gpu-0000-17-00-0"] == (
        "a.json",
        "b.json",
    )
    assert find_duplicates({"a.json": spec}) == {}


def _spec(**changes: Any) -> dict[str, Any]:
    device = {"name": "a", "containerEdits": {"deviceNodes": [{"path": "/dev/vfio/1"}]}}
    return {"cdiVersion": "0.5.0", "kind": "example.com/gpu", "devices": [device]} | changes


def _device(**changes: Any) -> dict[str, Any]:
    return _spec(devices=[_spec()["devices"][0] | changes])


def _edits(version: str = "0.5.0", **edits: Any) -> dict[str, Any]:
    return _device(containerEdits=edits) | {"cdiVersion": version}


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        pytest.param([], "document", id="not-an-object"),
        pytest.param(_spec(cdiVersion="0.9.0"), "cdiVersion", id="unknown-version"),
        pytest.param(_spec(kind="gpu"), "kind", id="kind-without-vendor"),
        pytest.param(_spec(kind="1example.com/gpu"), "kind", id="vendor-starts-with-digit"),
        pytest.param(_spec(kind="example.com/a.b"), "cdiVersion", id="dotted-class-needs-0.6"),
        pytest.param(_spec(extra=1), ".extra", id="unknown-field"),
        pytest.param(_spec(devices=[]), "devices", id="no-devices"),
        pytest.param(_spec(devices=_spec()["devices"] * 2), "devices[1].name", id="duplicate-name"),
        pytest.param(_device(name="-a"), "devices[0].name", id="name-starts-with-dash"),
        pytest.param(_device(name="a b"), "devices[0].name", id="name-with-space"),
        pytest.param(_device(name=7), "devices[0].name", id="name-not-text"),
        pytest.param(_device(name="0a") | {"cdiVersion": "0.4.0"}, "cdiVersion", id="digit-name-needs-0.5"),
        pytest.param(_device(containerEdits={}), "devices[0].containerEdits", id="no-edits"),
        pytest.param(_edits(env=["=x"]), "devices[0].containerEdits.env", id="env-without-name"),
        pytest.param(_edits(deviceNodes=[{}]), "devices[0].containerEdits.deviceNodes[0].path", id="node-without-path"),
        pytest.param(
            _edits(deviceNodes=[{"path": "/d", "permissions": "rx"}]),
            "devices[0].containerEdits.deviceNodes[0].permissions",
            id="permissions",
        ),
        pytest.param(
            _edits(deviceNodes=[{"path": "/d", "type": "x"}]),
            "devices[0].containerEdits.deviceNodes[0].type",
            id="node-type",
        ),
        pytest.param(
            _edits("0.4.0", deviceNodes=[{"path": "/d", "hostPath": "/e"}]), "cdiVersion", id="hostpath-needs-0.5"
        ),
        pytest.param(_edits("0.6.0", additionalGids=[1]), "cdiVersion", id="gids-need-0.7"),
        pytest.param(_edits("1.0.0", netDevices=[{}]), "cdiVersion", id="netdevices-need-1.1"),
        pytest.param(
            _edits(mounts=[{"hostPath": "/a"}]), "devices[0].containerEdits.mounts[0].containerPath", id="mount"
        ),
        pytest.param(
            _edits("0.3.0", mounts=[{"hostPath": "/a", "containerPath": "/b", "type": "bind"}]),
            "cdiVersion",
            id="mount-type-needs-0.4",
        ),
        pytest.param(
            _edits(hooks=[{"hookName": "later", "path": "/h"}]),
            "devices[0].containerEdits.hooks[0].hookName",
            id="hook-name",
        ),
        pytest.param(_spec(annotations={"a": "b"}), "cdiVersion", id="annotations-need-0.6"),
        pytest.param(_spec(annotations={"a b": "c"}, cdiVersion="0.6.0"), "annotations.a b", id="annotation-key"),
        pytest.param(_spec(annotations={"a": 1}, cdiVersion="0.6.0"), "annotations.a", id="annotation-number"),
        pytest.param(_spec(annotations=["a"], cdiVersion="0.6.0"), "annotations", id="annotations-a-list"),
        pytest.param(
            _spec(annotations={"a": "x" * (256 << 10)}, cdiVersion="0.6.0"), "annotations", id="annotations-too-large"
        ),
        pytest.param(_device(annotations={"a": "b"}), "cdiVersion", id="annotations-of-a-device-need-0.6"),
        pytest.param(_spec(kind="/gpu"), "kind", id="kind-without-vendor-name"),
        pytest.param(_spec(kind="example.com/"), "kind", id="kind-without-class"),
        pytest.param(_spec(kind="example.com/9"), "kind", id="class-starts-with-digit"),
        pytest.param(_spec(devices={}), "devices", id="devices-no-list"),
        pytest.param(_device(more=1), "devices[0].more", id="unknown-field-of-a-device"),
        pytest.param(_spec(devices=["a"]), "devices[0]", id="device-no-object"),
        pytest.param(_edits(more=[1]), "devices[0].containerEdits.more", id="unknown-edit"),
        pytest.param(_device(containerEdits=None), "devices[0].containerEdits", id="edits-no-object"),
        pytest.param(_spec(containerEdits={"env": ["x"]}), "containerEdits.env", id="edits-of-all"),
        pytest.param(_spec(containerEdits=[]), "containerEdits", id="edits-of-all-no-object"),
        pytest.param(_edits(env=[1]), "devices[0].containerEdits.env", id="env-number"),
        pytest.param(_edits(env="A=b"), "devices[0].containerEdits.env", id="env-no-list"),
        pytest.param(
            _edits(deviceNodes=[{"path": "d"}]), "devices[0].containerEdits.deviceNodes[0].path", id="path-relative"
        ),
        pytest.param(
            _edits(deviceNodes=[{"path": "/d", "more": 1}]),
            "devices[0].containerEdits.deviceNodes[0].more",
            id="unknown-field-of-a-node",
        ),
        pytest.param(
            _edits(deviceNodes=[{"path": "/d", "permissions": ["r"]}]),
            "devices[0].containerEdits.deviceNodes[0].permissions",
            id="permissions-no-text",
        ),
        pytest.param(
            _edits(mounts=[{"hostPath": "", "containerPath": "/b"}]),
            "devices[0].containerEdits.mounts[0].hostPath",
            id="mount-of-nothing",
        ),
        pytest.param(
            _edits(mounts=[{"hostPath": "/a", "containerPath": "/b", "more": 1}]),
            "devices[0].containerEdits.mounts[0].more",
            id="unknown-field-of-a-mount",
        ),
        pytest.param(
            _edits(hooks=[{"hookName": "prestart"}]), "devices[0].containerEdits.hooks[0].path", id="hook-without-path"
        ),
        pytest.param(
            _edits(hooks=[{"hookName": "prestart", "path": ""}]),
            "devices[0].containerEdits.hooks[0].path",
            id="hook-of-nothing",
        ),
        pytest.param(
            _edits(hooks=[{"hookName": "prestart", "path": "/h", "more": 1}]),
            "devices[0].containerEdits.hooks[0].more",
            id="unknown-field-of-a-hook",
        ),
    ],
)
def test_strict_loader_rules(spec: Any, field: str) -> None:
    with pytest.raises(Malformed) as error:
        validate(spec, where="f")
    assert error.value.where == f"f: {field}"


@pytest.mark.parametrize(
    "spec",
    [
        _spec(),
        _device(name="0000:17:00.0"),
        _spec(annotations={"example.com/a": "b"}, cdiVersion="0.6.0"),
        _edits("0.7.0", additionalGids=[44]),
        _edits("1.1.0", netDevices=[{"hostInterfaceName": "a", "name": "b"}]),
        _edits(env=["A=b"], hooks=[{"hookName": "createContainer", "path": "/h"}]),
        _edits(deviceNodes=[{"path": "/d", "permissions": "rwm"}]),
        _spec(annotations={"a": "x" * ((256 << 10) - 1)}, cdiVersion="0.6.0"),
        _spec(containerEdits={}),
    ],
    ids=[
        "plain",
        "address-name",
        "annotations",
        "gids",
        "net",
        "env-and-hook",
        "rwm",
        "annotations-largest",
        "no-edits",
    ],
)
def test_valid_specs(spec: dict[str, Any]) -> None:
    assert parse_spec(json.dumps(spec), where="f") == spec


@pytest.mark.parametrize(("size", "code"), [(1 << 20, "cdi-syntax"), ((1 << 20) + 1, "cdi-size")])
def test_files_have_a_size(size: int, code: str) -> None:
    with pytest.raises(Malformed) as caught:
        parse_spec(b"{".ljust(size), where="f")
    assert caught.value.code == code


def test_a_file_is_judged_before_anybody_uses_it() -> None:
    with pytest.raises(Malformed) as caught:
        parse_spec(json.dumps(_spec(extra=1)), where="f")
    assert caught.value.code == "cdi-schema"


def test_the_node_of_the_host_is_the_one_that_counts() -> None:
    nodes = [{"path": "/dev/a", "hostPath": "/dev/b"}, {"path": "/dev/c"}]
    assert device_nodes(_edits(deviceNodes=nodes)) == {"a": ("/dev/b", "/dev/c")}


def test_a_group_is_named_only_while_vfio_has_it() -> None:
    """And never where the node hands out cdevs."""
    (h100, _) = _devices()
    away = replace(h100, function=replace(h100.function, driver="nvidia", vfio_cdev=None))
    variant = replace(h100, function=replace(h100.function, driver="nvgrace_gpu_vfio_pci"))
    assert node_paths(variant, iommufd=False) == node_paths(h100, iommufd=False)
    groupless = replace(h100, function=replace(h100.function, iommu_group=None))
    cdevless = replace(h100, function=replace(h100.function, vfio_cdev=None))
    assert node_paths(h100, iommufd=False) == (f"/dev/vfio/{h100.function.iommu_group}",)
    assert (node_paths(away, iommufd=False), node_paths(groupless, iommufd=False)) == ((), ())
    assert node_paths(cdevless, iommufd=True) == ()


def test_frozen_entries_of_another_kind_stay_where_they_are() -> None:
    frozen = {"nvswitch-0000-01-00-0": ["/dev/vfio/devices/vfio8"]}
    assert "vfio8" not in (render_spec(Kind.GPU, _devices(), iommufd=True, frozen=frozen) or "")
    assert "vfio8" in (render_spec(Kind.NVSWITCH, _devices(), iommufd=True, frozen=frozen) or "")


@pytest.mark.parametrize("data", [b"", b"{", b"[" * 100000, b"\xff\xfe", b" " * (1 << 20) + b"{}"])
def test_bad_bytes_are_malformed(data: bytes) -> None:
    with pytest.raises(Malformed):
        parse_spec(data, where="f")
