"""Rego evaluation in a child process with a deadline and a memory bound; a child that misses it is killed.

A policy comes from an administrator, but its *input* comes from a guest, and the engine is C++: so it runs apart.
"""

import json
import os
import select
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attestation.errors import Malformed, Unavailable
from attestation.values import JsonValue

DEADLINE_S = 5.0  # the first call starts the child and compiles: 0.3 s; later ones take milliseconds
MAX_ANSWER_BYTES = 4 * 1024 * 1024
_INT64 = (-(1 << 63), (1 << 63) - 1)
_CHILD = Path(__file__).with_name("rego_child.py")


class RegoWorker:
    """One child, started when it is first needed and again after it was killed. Calls take turns."""

    def __init__(self, *, deadline_s: float = DEADLINE_S) -> None:
        self._deadline_s = deadline_s
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None

    def check(self, policy: str) -> None:
        """Malformed unless the policy compiles and is of `package policy`."""
        if "package policy" not in policy:
            raise Malformed("rego-syntax", "not a policy", where="policy", expected="package policy")
        answer = self._ask({"query": "check", "policy": policy, "data": {}, "input": {}})
        if "error" in answer:
            raise Malformed("rego-syntax", "the policy does not compile", where="policy", got=answer["error"][:200])

    def appraise(
        self, policy: str, document: Mapping[str, JsonValue], references: Mapping[str, JsonValue]
    ) -> Mapping[str, JsonValue]:
        """`data.policy.trust_claims`; Malformed where the policy gives no object, or the engine would misread input."""
        if (reason := _misread(document)) is not None:
            raise Malformed("rego-input", "the policy engine would not see what is there", where="input", got=reason)
        data = {"__rvps": dict(references)}
        answer = self._ask({"query": "trust_claims", "policy": policy, "data": data, "input": document})
        value = answer.get("value")
        if not isinstance(value, dict):
            raise Malformed(
                "rego-trust-claims", "the policy gives no trust claims", got=str(answer.get("error", "undefined"))[:200]
            )
        return value

    def allow(self, policy: str, document: Mapping[str, JsonValue], data: Mapping[str, JsonValue]) -> bool:
        """`data.policy.allow`; undefined, errors, misread input and anything but `true` deny."""
        if _misread([document, data]) is not None:
            return False
        answer = self._ask({"query": "allow", "policy": policy, "data": dict(data), "input": document})
        return answer.get("value") is True

    def close(self) -> None:
        """End the child."""
        with self._lock:
            self._stop()

    def _ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        with self._lock:
            until = time.monotonic() + self._deadline_s
            child = self._child
            if child is None or child.poll() is not None:
                self._stop()
                child = self._child = subprocess.Popen(
                    [sys.executable, "-I", str(_CHILD)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    env={},
                    bufsize=0,
                )
            assert child.stdin is not None
            assert child.stdout is not None
            body = json.dumps(request).encode()
            try:
                _write(child.stdin.fileno(), struct.pack(">I", len(body)) + body, until)
                size = struct.unpack(">I", _read(child.stdout.fileno(), 4, until))[0]
                if size > MAX_ANSWER_BYTES:
                    raise TimeoutError
                answer: dict[str, Any] = json.loads(_read(child.stdout.fileno(), size, until))
            except (TimeoutError, OSError, EOFError) as exc:
                self._stop()
                raise Unavailable(
                    "rego-deadline", "policy evaluation did not finish", expected=f"within {self._deadline_s} s"
                ) from exc
            return answer

    def _stop(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            child.wait()
            for pipe in (child.stdin, child.stdout):
                if pipe is not None:
                    pipe.close()


def _misread(document: JsonValue) -> str | None:
    """What the engine takes for something else: texts end at NUL for it, and integers are modulo 2**64."""
    left = [document]
    while left:
        value = left.pop()
        if isinstance(value, str):
            if "\0" in value:
                return "NUL in a text"
        elif isinstance(value, Mapping):
            left += [*value, *value.values()]
        elif isinstance(value, Sequence):
            left += value
        elif isinstance(value, int) and not _INT64[0] <= value <= _INT64[1]:
            return "an integer beyond 64 bits"
    return None


def _write(descriptor: int, body: bytes, until: float) -> None:
    os.set_blocking(descriptor, False)
    view = memoryview(body)
    while view:
        _, ready, _ = select.select([], [descriptor], [], max(0.0, until - time.monotonic()))
        if not ready:
            raise TimeoutError
        view = view[os.write(descriptor, view[:65536]) :]


def _read(descriptor: int, size: int, until: float) -> bytes:
    parts: list[bytes] = []
    while size:
        ready, _, _ = select.select([descriptor], [], [], max(0.0, until - time.monotonic()))
        if not ready:
            raise TimeoutError
        part = os.read(descriptor, size)
        if not part:
            raise EOFError
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
