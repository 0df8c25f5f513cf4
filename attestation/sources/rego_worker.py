"""Rego evaluation in child processes with a deadline and a memory bound; a child that misses it is killed.

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
from queue import Empty, LifoQueue
from typing import Any

from attestation.appraise.rego_text import require_faithful
from attestation.errors import Malformed, Unavailable
from attestation.values import JsonValue

DEADLINE_S = 5.0  # the first call starts the child and compiles: 0.3 s; later ones take milliseconds
WAIT_S = 1.0  # for a free child: two that start and compile take less; slow evaluations shall not make others slow
CHILDREN = 2  # of three threads that serve guests (service/app.py): slow evaluations leave one to the rest
MAX_ANSWER_BYTES = 4 * 1024 * 1024
_INT64 = (-(1 << 63), (1 << 63) - 1)
_CHILD = Path(__file__).with_name("rego_child.py")


class RegoWorker:
    """Children that are started when they are first needed, and again after they were killed.

    The one that was busy last is asked first: it has the policy compiled, and an idle broker keeps one child warm.
    """

    def __init__(self, *, deadline_s: float = DEADLINE_S, wait_s: float = WAIT_S) -> None:
        self._wait_s = wait_s
        self._children = tuple(_Child(deadline_s) for _ in range(CHILDREN))
        self._free: LifoQueue[_Child] = LifoQueue()
        for child in self._children:
            self._free.put(child)

    def check(self, policy: str) -> None:
        """Malformed unless the policy compiles, is of `package policy`, and means here what it says."""
        if "package policy" not in policy:
            raise Malformed("rego-syntax", "not a policy", where="policy", expected="package policy")
        require_faithful(policy)
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
        """End the children, once they have answered."""
        for child in self._children:
            child.stop()

    def _ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        body = json.dumps(request).encode()
        try:
            child = self._free.get(timeout=self._wait_s)
        except Empty:
            raise Unavailable("rego-busy", "other policy evaluations take too long; try again") from None
        try:
            return child.ask(body)
        finally:
            self._free.put(child)


class _Child:
    """One process and its pipes, for one caller at a time."""

    def __init__(self, deadline_s: float) -> None:
        self._deadline_s = deadline_s
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, body: bytes) -> dict[str, Any]:
        """The answer, or Unavailable and the process killed."""
        with self._lock:
            until = time.monotonic() + self._deadline_s
            process = self._running()
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                _write(process.stdin.fileno(), struct.pack(">I", len(body)) + body, until)
                size = struct.unpack(">I", _read(process.stdout.fileno(), 4, until))[0]
                if size > MAX_ANSWER_BYTES:
                    raise TimeoutError
                answer: dict[str, Any] = json.loads(_read(process.stdout.fileno(), size, until))
            except (TimeoutError, OSError, EOFError) as exc:
                self._stop()
                raise Unavailable(
                    "rego-deadline", "policy evaluation did not finish", expected=f"within {self._deadline_s} s"
                ) from exc
            return answer

    def stop(self) -> None:
        """End it."""
        with self._lock:
            self._stop()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self._stop()
            self._process = subprocess.Popen(
                [sys.executable, "-I", str(_CHILD)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={},
                bufsize=0,
            )
        return self._process

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
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
