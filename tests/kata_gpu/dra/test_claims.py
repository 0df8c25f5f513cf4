"""ResourceClaims as the API server hands them out: a good one, and one thing changed (dra.md 4 and 6.2)."""

import copy
from collections.abc import Callable
from typing import Any

import pytest

from kata_gpu.core.claim import CONFIG_API_VERSION, CONFIG_KIND, ClaimRef, parse_claim, parse_config
from kata_gpu.errors import KataGpuError, Malformed

DRIVER, POOL = "gpu.example", "node-1"
REF = ClaimRef(namespace="default", name="claim", uid="u-1")
PARAMETERS = {"apiVersion": CONFIG_API_VERSION, "kind": CONFIG_KIND}


def result(device: str = "gpu-0", **changes: Any) -> dict[str, Any]:
    return {"driver": DRIVER, "pool": POOL, "request": "gpu", "device": device} | changes


def config(requests: list[str] | None = None, source: str = "FromClass", **parameters: Any) -> dict[str, Any]:
    opaque = {"driver": DRIVER, "parameters": PARAMETERS | parameters}
    return {"source": source, "requests": requests or [], "opaque": opaque}


def claim() -> dict[str, Any]:
    pod = {"resource": "pods", "name": "pod", "uid": "p-1"}
    devices = {"results": [result()], "config": []}
    return {"metadata": {"uid": "u-1"}, "status": {"allocation": {"devices": devices}, "reservedFor": [pod]}}


def changed(*path: str | int, to: Any) -> dict[str, Any]:
    """One value of a good claim replaced."""
    made: Any = claim()
    inner = made
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = to
    return copy.deepcopy(made)


def of_results(*results: Any) -> dict[str, Any]:
    return changed("status", "allocation", "devices", "results", to=list(results))


def of_configs(*configs: Any) -> dict[str, Any]:
    return changed("status", "allocation", "devices", "config", to=list(configs))


def devices_of(made: dict[str, Any]) -> list[str]:
    return [device.device for device in parse_claim(made, REF, driver=DRIVER, pool=POOL).devices]


_ALLOCATION = ("status", "allocation")
REFUSED: list[tuple[str, Any, str]] = [
    ("replaced", changed("metadata", "uid", to="u-2"), "claim-replaced"),
    ("no-metadata", changed("metadata", to=None), "claim-replaced"),
    ("metadata-a-list", changed("metadata", to=[]), "claim-shape"),
    ("no-object", [], "claim-replaced"),
    ("no-status", changed("status", to=None), "claim-not-allocated"),
    ("not-allocated", changed(*_ALLOCATION, to=None), "claim-not-allocated"),
    ("allocation-a-list", changed(*_ALLOCATION, to=[1]), "claim-shape"),
    ("not-reserved", changed("status", "reservedFor", to=[]), "claim-not-reserved"),
    ("reserved-for-text", changed("status", "reservedFor", to="pod"), "claim-shape"),
    ("reserved-for-texts", changed("status", "reservedFor", to=["pod"]), "claim-shape"),
    ("shared", changed("status", "reservedFor", to=claim()["status"]["reservedFor"] * 2), "claim-shared"),
    ("consumer-name", changed("status", "reservedFor", 0, "name", to="../pod"), "consumer-name"),
    ("consumer-number", changed("status", "reservedFor", 0, "name", to=1), "claim-shape"),
    ("no-result", of_results(), "claim-not-ours"),
    ("of-another-driver", of_results(result(driver="nic.example")), "claim-not-ours"),
    ("of-another-pool", of_results(result(pool="node-2")), "claim-not-ours"),
    ("33-results", of_results(*[result(f"gpu-{n}") for n in range(33)]), "claim-results"),
    ("result-text", of_results(result(), "gpu-1"), "claim-shape"),
    ("device-number", of_results(result() | {"device": 1}), "claim-shape"),
    ("65-configs", of_configs(*[config()] * 65), "claim-configs"),
    ("config-text", of_configs("x"), "claim-shape"),
    ("config-source", of_configs(config(source="FromPod")), "config-source"),
    ("config-parameters", of_configs({"source": "FromClass", "opaque": {"driver": DRIVER}}), "config-shape"),
    ("config-of-a-tenant", of_configs(config(source="FromClaim", apiDevice=True)), "config-class-only"),
    ("config-value-number", of_configs(config(ppcie=1)), "config-value"),
    ("config-value-list", of_configs(config(ppcie=[True])), "config-value"),
    ("config-value-text", of_configs(config(ppcie="true")), "config-value"),
    ("config-field", of_configs(config(more=1)), "config-field"),
]


@pytest.mark.parametrize(("made", "code"), [pytest.param(m, c, id=i) for i, m, c in REFUSED])
def test_what_is_refused(made: Any, code: str) -> None:
    with pytest.raises(KataGpuError) as caught:
        parse_claim(made, REF, driver=DRIVER, pool=POOL)
    assert caught.value.code == code


def test_what_is_ours() -> None:
    """In the order of the allocation; other drivers and nodes are left out, and as many results as the API allows."""
    mixed = of_results(result("gpu-1"), result("nic", driver="nic.example"), result("far", pool="node-2"), result())
    assert devices_of(mixed) == ["gpu-1", "gpu-0"]
    many = [f"gpu-{n}" for n in range(32)]
    assert devices_of(of_results(*map(result, many))) == many
    assert devices_of(of_configs(*[config()] * 64)) == ["gpu-0"]


@pytest.mark.parametrize(
    ("requests", "request_", "covered"),
    [
        pytest.param([], "gpu", True, id="of-all"),
        pytest.param(["gpu"], "gpu", True, id="by-name"),
        pytest.param(["gpu"], "gpu/big", True, id="by-base-name"),
        pytest.param(["gpu/big"], "gpu/big", True, id="by-sub-request"),
        pytest.param(["gpu/big"], "gpu/small", False, id="of-another-sub-request"),
        pytest.param(["gpu/big"], "gpu", False, id="of-a-sub-request"),
        pytest.param(["other"], "gpu", False, id="of-another"),
    ],
)
def test_whom_a_configuration_is_for(requests: list[str], request_: str, covered: bool) -> None:
    made = of_configs(config(requests, ppcie=True))
    made["status"]["allocation"]["devices"]["results"][0]["request"] = request_
    (device,) = parse_claim(made, REF, driver=DRIVER, pool=POOL).devices
    assert bool(device.config.ppcie) is covered
    assert device.request == "gpu"


def test_a_consumer_has_its_group_in_front() -> None:
    row = claim()["status"]["reservedFor"][0]
    for group, resource in (({}, "pods"), ({"apiGroup": ""}, "pods"), ({"apiGroup": "x.io"}, "x.io/pods")):
        made = changed("status", "reservedFor", 0, to=row | group)
        assert parse_claim(made, REF, driver=DRIVER, pool=POOL).consumer.resource == resource


_KINDS: list[Callable[[], Any]] = [
    lambda: PARAMETERS | {"kind": "Other"},
    lambda: PARAMETERS | {"apiVersion": "v0"},
    lambda: {"kind": CONFIG_KIND},
    dict,
]


@pytest.mark.parametrize("make", _KINDS, ids=["kind", "version", "no-version", "nothing"])
def test_configurations_of_another_kind(make: Callable[[], Any]) -> None:
    with pytest.raises(Malformed) as caught:
        parse_config(make(), where="x")
    assert caught.value.code == "config-kind"
