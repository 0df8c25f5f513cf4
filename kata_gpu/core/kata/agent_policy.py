"""The kata agent policy that genpolicy writes: rules, then `policy_data := {JSON}` to the end of the text.

genpolicy counts GPUs only from `nvidia.com/pgpu` limits, so the policy of a pod that gets its GPUs from resource claims
allows none and the agent refuses the container (dra.md 4.7). `with_devices` adds what genpolicy would have written.
"""

import json
from collections.abc import Mapping
from typing import Any

from kata_gpu.errors import Malformed, Misconfigured

_MARKER = "policy_data := {"
MAX_POLICY_BYTES = 1 << 20
MAX_DEVICES = 32
VFIO_PATH = "/dev/vfio/devices/vfio"  # genpolicy-settings.json: devices.vfio.device_path
_ANNOTATION_KEY = r"^cdi\.k8s\.io/vfio[0-9]+$"
_ANNOTATION_VALUE = r"^nvidia\.com/gpu=[0-9]+$"
# What genpolicy-settings.json has: copies go below the container's own folder.
_COPY_TARGETS = ("$(sfprefix)", "$(cpath)/", "^$(sfprefix)", "^$(cpath)/")
# Lists of what the host may run in a container; `commands` is the name of older releases.
_EXEC_LISTS = ("allowed_commands", "regex", "commands")
_DEVICE = {"container_path": VFIO_PATH, "id": "", "options": [], "type_": "vfio-pci-gk", "vm_path": ""}


def parse_policy_data(policy: str) -> dict[str, Any] | None:
    """The JSON behind `policy_data :=`, or None where the policy has none (it is not genpolicy's). Raises Malformed."""
    if len(policy) > MAX_POLICY_BYTES:
        raise Malformed("policy-size", "agent policy is too large", expected=f"at most {MAX_POLICY_BYTES} bytes",
                        got=len(policy))  # fmt: skip
    at = policy.rfind(_MARKER)
    if at < 0:
        return None
    try:
        data = json.loads(policy[at + len(_MARKER) - 1 :], object_pairs_hook=_distinct)
    except (ValueError, RecursionError) as exc:
        raise Malformed("policy-data", "policy_data is not JSON to the end of the text", got=str(exc)[:120]) from exc
    containers = data.get("containers")
    if not isinstance(containers, list) or not all(isinstance(c, dict) for c in containers):
        raise Malformed("policy-data", "policy_data has no list of containers", where="policy_data.containers")
    return data  # type: ignore[no-any-return]


def _distinct(members: list[tuple[str, Any]]) -> dict[str, Any]:
    """Which of two equal keys holds is for each engine to say, so neither does."""
    found = dict(members)
    if len(found) != len(members):
        raise ValueError("a key is listed twice")
    return found


def open_requests(data: Mapping[str, Any]) -> tuple[str, ...]:
    """What `request_defaults` lets the host ask of the guest although the rules' own default is false.

    genpolicy's rules allow a request whose entry is `true`, run what the lists of ExecProcessRequest name, and copy to
    where the expressions of CopyFileRequest say. An entry of another shape than genpolicy's is named too.
    """
    defaults = data.get("request_defaults", {})
    if not isinstance(defaults, dict):
        return ("request_defaults",)
    found = [name for name, value in defaults.items() if value is True]
    if (run := defaults.get("ExecProcessRequest")) not in (None, False, True):
        lists = [run.get(name) for name in _EXEC_LISTS] if isinstance(run, dict) else [run]
        found += ["ExecProcessRequest"] * any(lists)
    if (copies := defaults.get("CopyFileRequest")) not in (None, False, True):
        inside = isinstance(copies, list) and all(isinstance(c, str) and c.startswith(_COPY_TARGETS) for c in copies)
        found += [] if inside else ["CopyFileRequest"]
    return tuple(found)


def vfio_counts(data: Mapping[str, Any]) -> tuple[int, ...]:
    """How many VFIO devices the policy allows each container, in the policy's order (the pause container first)."""
    return tuple(
        sum(1 for d in c.get("devices") or [] if isinstance(d, dict) and d.get("container_path") == VFIO_PATH)
        for c in data["containers"]
    )


def with_devices(policy: str, counts: Mapping[int, int]) -> str:
    """The policy with exactly `counts[i]` VFIO devices for container `i`; everything else unchanged.

    Raises Misconfigured for a policy without `policy_data` and for a container it does not have.
    """
    data = parse_policy_data(policy)
    if data is None:
        raise Misconfigured("policy-not-genpolicy", "this policy was not written by genpolicy", expected=_MARKER)
    for index, count in counts.items():
        if not 0 <= index < len(data["containers"]) or not 0 <= count <= MAX_DEVICES:
            raise Misconfigured("policy-container", "no such container, or impossible count",
                                expected=f"container 0 to {len(data['containers']) - 1}, count 0 to {MAX_DEVICES}",
                                got=f"{index}={count}")  # fmt: skip
        container = data["containers"][index]
        others = [d for d in container.get("devices") or [] if d.get("container_path") != VFIO_PATH]
        container["devices"] = others + [dict(_DEVICE) for _ in range(count)]
        patterns = container.setdefault("runtime_anno_patterns", {})
        patterns.pop(_ANNOTATION_KEY, None)
        if count:
            patterns[_ANNOTATION_KEY] = _ANNOTATION_VALUE
    return policy[: policy.rfind(_MARKER)] + "policy_data := " + json.dumps(data, indent=2) + "\n"
