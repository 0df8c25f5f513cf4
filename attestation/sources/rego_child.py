"""The process that evaluates Rego: reads length-prefixed JSON requests on stdin, answers on stdout, knows nothing else.

Run by path with `python -I`: it imports only the standard library and regopy. The parent kills it at its deadline.
Results are always bound to a variable: a bare query of a false rule is indistinguishable from an undefined one.
"""

import json
import os
import re
import resource
import struct
import sys
import threading
import time
from collections import OrderedDict
from functools import lru_cache
from pathlib import Path
from typing import Any

MEMORY_BYTES = 512 << 20  # resident; the engine needs under 100 MiB for upstream's largest policy
WATCH_S = 0.02
CACHED_BUNDLES = 64  # of each query: what guests ask for evicts no attestation policy
PRELUDE = """package policy
import rego.v1
query_reference_value(id) := value if { value := data.__rvps[id] } else := null
"""
QUERIES = {"trust_claims": "x = data.policy.trust_claims", "allow": "x = data.policy.allow"}
# A line that is a comment, or all of it in a raw text, which spans lines: no code either way.
_COMMENT = re.compile(r"^[ \t]*#[^`\r\n]*\r?$", re.MULTILINE)
_DATA = re.compile(r"""\bdata\b(?:\.([A-Za-z_]\w*)|\["([^"\\]*)"\])?""")


class Engine:
    """Compiled bundles, by query, policy and what that policy can read of the data: a guest chooses its path and query
    string, and shall not have a policy compiled again that looks at neither.
    """

    def __init__(self) -> None:
        import regopy

        self._regopy = regopy
        self._bundles: dict[str, OrderedDict[tuple[str, str], Any]] = {query: OrderedDict() for query in QUERIES}
        self.compiled = 0

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """`{"value": ...}`, `{"undefined": true}` or `{"error": text}`."""
        try:
            if request["query"] == "check":
                self._compiled(request["policy"], QUERIES["allow"], {})
                return {"value": True}
            bundle = self._bundle(request["query"], request["policy"], request["data"])
            interpreter = self._regopy.Interpreter()
            interpreter.set_input_term(_text(request["input"]))
            output = json.loads(str(interpreter.query_bundle(bundle)))
        except (self._regopy.RegoError, ValueError) as exc:
            return {"error": str(exc)[:1000]}
        if isinstance(output, dict) and "x" in (bindings := output.get("bindings") or {}):
            return {"value": bindings["x"]}
        return {"undefined": True}

    def _bundle(self, query: str, policy: str, data: dict[str, Any]) -> Any:
        data, cache = readable(policy, data), self._bundles[query]
        key = policy, json.dumps(data, sort_keys=True)
        bundle = cache.pop(key, None)
        if bundle is None:
            bundle = self._compiled(policy, QUERIES[query], data)
        cache[key] = bundle
        if len(cache) > CACHED_BUNDLES:
            cache.popitem(last=False)
        return bundle

    def _compiled(self, policy: str, query: str, data: dict[str, Any]) -> Any:
        interpreter = self._regopy.Interpreter()
        interpreter.add_module("policy.rego", policy)
        interpreter.add_module("prelude.rego", PRELUDE)
        interpreter.add_data_json(_text(data))
        self.compiled += 1
        return interpreter.build(query)


def readable(policy: str, data: dict[str, Any]) -> dict[str, Any]:
    """The members of `data` that a policy with this text can read: all of them unless each `data` in it is followed by
    a literal name. Texts and comments behind code count: they can only add to what is kept. `__` is the prelude's.
    """
    named = _named(policy)
    if named is None:
        return data
    return {name: value for name, value in data.items() if name in named or name.startswith("__")}


def _text(value: Any) -> str:
    """JSON that the engine takes as it takes a policy's literals: it keeps texts escaped, and compares them so.

    From objects it would take them unescaped: a text with `\\n` in it would equal the literal for a line feed.
    """
    return json.dumps(value, ensure_ascii=False)


@lru_cache(maxsize=CACHED_BUNDLES)
def _named(policy: str) -> frozenset[str] | None:
    names = [match[1] or match[2] for match in _DATA.finditer(_COMMENT.sub("", policy))]
    return None if None in names else frozenset(names)


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
