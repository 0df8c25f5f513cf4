"""Who the workload is, by bound init-data: `ear.trustee.identifiers` of upstream's tokens (keybroker.md 3.2)."""

import json
from collections.abc import Mapping
from typing import Any

from attestation.values import JsonObject, JsonValue

MAX_IDENTIFIERS_BYTES = 1024  # a token travels with every request, and is under 4 KB without them
_IMAGE = ("OCI", "Annotations", "io.kubernetes.cri.image-name")
_UID = ("OCI", "Process", "User", "UID")


def validated_identifiers(init_data: JsonObject | None) -> dict[str, JsonValue]:
    """Images and user ids of the agent policy's containers, as upstream's default policy collects them.

    Empty where the policy names none, and where they are more than a token has room for: never a part of them.
    """
    policy = (init_data or {}).get("agent_policy_claims")
    containers = policy.get("containers") if isinstance(policy, Mapping) else None
    if not isinstance(containers, list):
        return {}
    found = {"container_images": _each(containers, _IMAGE), "container_uids": _each(containers, _UID)}
    named: dict[str, JsonValue] = {name: values for name, values in found.items() if values}
    return named if len(json.dumps(named)) <= MAX_IDENTIFIERS_BYTES else {}


def _each(containers: list[Any], path: tuple[str, ...]) -> list[JsonValue]:
    values: list[JsonValue] = []
    for value in containers:
        for name in path:
            value = value.get(name) if isinstance(value, Mapping) else None  # noqa: PLW2901 - one step down
        if isinstance(value, str | int):
            values.append(value)
    return values
