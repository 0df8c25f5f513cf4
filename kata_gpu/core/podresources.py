"""From DRA's CDI ids to the device-plugin shape that unmodified Kata reads before it starts a VM (dra.md 4.5, 4.6).

Kata joins `resource_name` + `=` + `device_id` and resolves the result as a CDI name, so `vendor/class=name` is split
at its one `=`. CDI device names hold no `=`.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from kata_gpu.core import toml10
from kata_gpu.errors import Malformed, Misconfigured, Unavailable

BRIDGE_SOCKET = "/run/kata-gpu/kata-pod-resources.sock"  # served by us, named by Kata's `pod_resource_api_sock`

# CDI 1.1.0, names: vendor and class start with a letter, all parts end with a letter or digit.
_CDI_NAME = re.compile(
    r"(?P<kind>[A-Za-z](?:[A-Za-z0-9._-]*[A-Za-z0-9])?/[A-Za-z](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)"
    r"=(?P<device>[A-Za-z0-9](?:[A-Za-z0-9._:-]*[A-Za-z0-9])?)\Z"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimDevice:
    """One entry of `dynamic_resources[].claim_resources[]`."""

    driver: str
    cdi_ids: tuple[str, ...]


def parse_cdi_name(name: str) -> tuple[str, str]:
    """`vendor/class=device` as (kind, device). Raises Malformed."""
    match = _CDI_NAME.match(name)
    if match is None:
        raise Malformed("cdi-name", "not a CDI device name", expected="vendor/class=device", got=repr(name))
    return match["kind"], match["device"]


def container_devices(
    devices: Iterable[ClaimDevice], allowed: frozenset[str], seen: set[str]
) -> dict[str, tuple[str, ...]]:
    """CDI ids of allowed drivers as resource name -> device ids, each id once per `seen`, in kubelet's order.

    Kubelet repeats earlier ids in later entries of one claim (dra.md 1.5). Raises Malformed for an id that Kata could
    not resolve, and Unavailable for a device of an allowed driver without any id: a VM must not start without it.
    """
    out: dict[str, list[str]] = {}
    for entry in devices:
        if entry.driver not in allowed:
            continue
        if not entry.cdi_ids:
            raise Unavailable(
                "claim-without-device",
                "kubelet lists a claimed device without a CDI id",
                where=entry.driver,
                expected="at least one CDI id",
                got="none",
            )
        for name in entry.cdi_ids:
            kind, device = parse_cdi_name(name)
            if name not in seen:
                seen.add(name)
                out.setdefault(kind, []).append(device)
    return {kind: tuple(ids) for kind, ids in out.items()}


def require_promised(translated: set[str], promises: Mapping[str, str], *, pod: str) -> None:
    """Refuse what kubelet lists for `pod` where our driver prepared something else: CDI id -> the pod that it is for.

    Less: a feature gate of kubelet is off, and the VM would start without its GPU. More: kubelet prepares a claim once
    and gives it to every pod that shares it, without asking the driver again (dra.md 1.3). Raises Unavailable for the
    one and Misconfigured for the other.
    """
    foreign = sorted(i for i in translated if promises.get(i, pod) != pod)
    if foreign:
        raise Misconfigured(
            "claim-of-another-pod",
            "a VFIO device belongs to one VM, and this one was prepared for another pod",
            where=f"pod {pod}",
            expected="a claim of its own",
            got=", ".join(f"{i} of {promises[i]}" for i in foreign),
            hint="use a ResourceClaimTemplate, so that each pod gets a claim of its own",
        )
    missing = sorted(i for i, owner in promises.items() if owner == pod and i not in translated)
    if missing:
        raise Unavailable(
            "claim-not-listed",
            "kubelet does not list devices that were prepared for this pod",
            where=f"pod {pod}",
            expected="every prepared CDI id under dynamic_resources",
            got=f"without {', '.join(missing)}",
            hint="kubelet needs the gates KubeletPodResourcesGet and KubeletPodResourcesDynamicResources",
        )


def refuse_native_support(config: str, *, where: str) -> None:
    """Raise Misconfigured when this Kata reads DRA itself: both translations would hand each device over twice."""
    try:
        runtime = toml10.loads(config).get("runtime") or {}
    except ValueError as exc:
        raise Malformed("kata-config", "not a TOML file", where=where, got=exc) from exc
    if "dra" in (runtime.get("pod_resource_device_sources") or []):
        raise Misconfigured(
            "kata-native-dra",
            "this Kata reads DRA claims itself",
            where=f"{where} runtime.pod_resource_device_sources",
            expected='no "dra" while the bridge runs',
            hint="point pod_resource_api_sock at kubelet's own socket and remove the bridge",
        )
