"""ValidatingAdmissionPolicy for the fake API server: the CEL subset that our policies use, by cel-python."""

from collections.abc import Callable
from typing import Any

import celpy
from celpy.adapter import json_to_cel

from tests.kata_gpu.dra.fake_store import KINDS, Kind, Object, Store

POLICIES = KINDS["admissionregistration.k8s.io/v1", "validatingadmissionpolicies"]


def policies_of(store: Store) -> Callable[[Kind, Object, str], str | None]:
    """Admission by the policies in the store; compiled once per expression."""
    environment = celpy.Environment()
    programs: dict[str, Any] = {}

    def evaluate(expression: str, activation: dict[str, Any]) -> Any:
        if expression not in programs:
            programs[expression] = environment.program(environment.compile(expression))
        return programs[expression].evaluate(activation)

    def admit(kind: Kind, obj: Object, user: str) -> str | None:
        request = json_to_cel({"operation": "CREATE", "userInfo": {"username": user}})
        group = kind.api.rpartition("/")[0]
        for policy in store.objects[POLICIES].values():
            rules = policy["spec"]["matchConstraints"]["resourceRules"]
            if not any(group in r["apiGroups"] and kind.resource in r["resources"] for r in rules):
                continue
            variables = celpy.celtypes.MapType()
            activation: dict[str, Any] = {
                "object": json_to_cel(obj),
                "request": request,
                "variables": variables,
            }
            for variable in policy["spec"]["variables"]:
                value = evaluate(variable["expression"], activation)
                variables[celpy.celtypes.StringType(variable["name"])] = value
            for rule in policy["spec"]["validations"]:
                if not evaluate(rule["expression"], activation):
                    return f"ValidatingAdmissionPolicy '{policy['metadata']['name']}' denied request: {rule['message']}"
        return None

    return admit
