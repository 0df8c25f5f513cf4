"""The process that evaluates Rego: reads length-prefixed JSON requests on stdin, answers on stdout, knows nothing else.

Run by path with `python -I`: it imports only the standard library and regopy. The parent kills it at its deadline.
Results are always bound to a variable: a bare query of a false rule is indistinguishable from an undefined one.
"""

import json
import os
import resource
import struct
import sys
import threading
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

MEMORY_BYTES = 512 << 20  # resident; the engine needs under 100 MiB for upstream's largest policy
WATCH_S = 0.02
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
            interpreter.set_input_term(_text(request["input"]))
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
            interpreter.add_data_json(_text(request["data"]))
            query = QUERIES.get(request["query"], QUERIES["allow"])
            bundle = interpreter.build(query)
        self._bundles[key] = bundle
        if len(self._bundles) > CACHED_BUNDLES:
            self._bundles.popitem(last=False)
        return bundle


def _text(value: Any) -> str:
    """JSON that the engine takes as it takes a policy's literals: it keeps texts escaped, and compares them so.

    From objects it would take them unescaped: a text with `\\n` in it would equal the literal for a line feed.
    """
    return json.dumps(value, ensure_ascii=False)


def watch_memory() -> None:
    """End the process once it is too large. The engine's allocator reserves 256 GiB of addresses, so that no limit
    on address space can bound what it uses; evaluation releases the interpreter lock, so that this thread runs.
    """
    page = os.sysconf("SC_PAGE_SIZE")
    with Path("/proc/self/statm").open(encoding="ascii") as statm:
        while True:
            statm.seek(0)
            if int(statm.read().split()[1]) * page > MEMORY_BYTES:
                os._exit(1)
            time.sleep(WATCH_S)


def main() -> None:
    """Serve until stdin ends."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    threading.Thread(target=watch_memory, daemon=True).start()
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
