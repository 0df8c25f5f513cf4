"""CEL as the API server's admission uses it, in Python: programs once, `Object`, and configurations applied."""

from collections.abc import Mapping
from functools import cache
from typing import Any

import celpy
from celpy.adapter import json_to_cel
from celpy.celtypes import MapType

Object = dict[str, Any]


class ObjectType(MapType):
    """The API server's own type `Object`, and `Object.metadata` below it: making one gives the fields that are set."""

    def __getitem__(self, _name: Any) -> Any:
        return self

    def __call__(self, fields: MapType) -> MapType:
        return fields


@cache
def _program(expression: str) -> Any:
    environment = celpy.Environment()
    return environment.program(environment.compile(expression))


def evaluate(expression: str, **context: Any) -> Any:
    """One expression over JSON values. `variables` is a mapping of what earlier calls returned."""
    values = {name: json_to_cel(value) for name, value in context.items() if name != "variables"}
    if "variables" in context:
        values["variables"] = MapType({celpy.celtypes.StringType(k): v for k, v in context["variables"].items()})
    return _program(expression).evaluate({"Object": ObjectType(), **values})


def variables(policy: Object, **context: Any) -> dict[str, Any]:
    """Every variable of a policy; each may use those before it."""
    found: dict[str, Any] = {}
    for variable in policy["spec"].get("variables", []):
        found[variable["name"]] = evaluate(variable["expression"], variables=found, **context)
    return found


def mutate(policy: Object, obj: Object, params: Object) -> Object:
    """A MutatingAdmissionPolicy on an object."""
    if not all(evaluate(c["expression"], object=obj) for c in policy["spec"]["matchConditions"]):
        return obj
    named = variables(policy, object=obj, params=params)
    for mutation in policy["spec"]["mutations"]:
        expression = mutation["applyConfiguration"]["expression"]
        obj = _applied(obj, evaluate(expression, object=obj, params=params, variables=named))
    return obj


def _applied(there: Any, wanted: Any) -> Any:
    if not isinstance(wanted, Mapping):
        return str(wanted)
    base = there if isinstance(there, dict) else {}
    return base | {str(name): _applied(base.get(str(name)), value) for name, value in wanted.items()}
