"""The process that evaluates Rego: reads length-prefixed JSON requests on stdin, answers on stdout, knows nothing else.

Run by path with `python -I`: it imports only the standard library and regopy. The parent kills it at its deadline.
Results are always bound to a variable: a bare query of a false rule is indistinguishable from an undefined one.
"""

import json
import os
import resource
import struct
import sys
from collections import OrderedDict
from typing import Any

MEMORY_BYTES = 1 << 30  # address space; the engine needs about 150 MiB for upstream's largest policy
CACHED_BUNDLES = 64
PRELUDE = """package policy
import rego.v1
query_reference_value(id) := value if { value := data.__rvps[id] } else := null
"""
QUERIES = {"trust_claims": "x = data.policy.trust_claims", "allow": "x = data.policy.allow"}


class Engine:
    """Compiled bundles, by policy, query and data."""

    def __init__(self) -> None:
        import regopy

        self._regopy = regopy
        self._bundles: OrderedDict[str, Any] = OrderedDict()

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """`{"value": ...}`, `{"undefined": true}` or `{"error": text}`."""
        try:
            bundle = self._bundle(request)
            if request["query"] == "check":
                return {"value": True}
            interpreter = self._regopy.Interpreter()
            interpreter.set_input(request["input"])
            output = json.loads(str(interpreter.query_bundle(bundle)))
        except (self._regopy.RegoError, ValueError) as exc:
            return {"error": str(exc)[:1000]}
        if isinstance(output, dict) and "x" in (bindings := output.get("bindings") or {}):
            return {"value": bindings["x"]}
        return {"undefined": True}

    def _bundle(self, request: dict[str, Any]) -> Any:
        key = json.dumps([request["policy"], request["query"], request["data"]], sort_keys=True)
        bundle = self._bundles.pop(key, None)
        if bundle is None:
            interpreter = self._regopy.Interpreter()
            interpreter.add_module("policy.rego", request["policy"])
            interpreter.add_module("prelude.rego", PRELUDE)
            interpreter.add_data(request["data"])
            query = QUERIES.get(request["query"], QUERIES["allow"])
            bundle = interpreter.build(query)
        self._bundles[key] = bundle
        if len(self._bundles) > CACHED_BUNDLES:
            self._bundles.popitem(last=False)
        return bundle


def main() -> None:
    """Serve until stdin ends."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)  # the engine prints its complaints, with policy text, to both
    os.dup2(null, 2)
    engine = Engine()
    while len(head := sys.stdin.buffer.read(4)) == 4:
        request = json.loads(sys.stdin.buffer.read(struct.unpack(">I", head)[0]))
        body = json.dumps(engine.answer(request)).encode()
        answers.write(struct.pack(">I", len(body)) + body)


if __name__ == "__main__":
    main()
