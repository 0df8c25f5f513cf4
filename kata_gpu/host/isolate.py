"""The one place that starts processes for risky work: disposable children with deadlines.

A write to `unbind` of a device in use never returns and survives SIGKILL; on some kernels even reading
`driver_override` then blocks. The child may be lost, we are not: it is killed, abandoned and reaped later.
"""

import errno
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress

from kata_gpu.errors import TimedOut, Unavailable

_ERRNO_BASE = 64  # exit status of the child is this plus errno; errno is at most 133 on Linux
_MAX_OUTPUT = 1 << 20
_CHUNK = 1 << 16
# The child imports nothing beyond `os`: it starts in some 10 ms, and it does exactly one system call that may block.
_CHILD = """
import os, sys
operation, path, limit = sys.argv[1:]
try:
    if operation == "read":
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        os.write(1, os.read(fd, int(limit)))
    else:
        data = os.read(0, int(limit))
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        os.write(fd, data)
except OSError as exc:
    os._exit(64 + (exc.errno or 5))
os._exit(0)
"""
_abandoned: list[subprocess.Popen[bytes]] = []


def read(path: str, *, max_bytes: int, deadline_s: float) -> bytes:
    """One read in a child. OSError as the read gave it, TimedOut when it does not return."""
    return _child(("read", path, str(min(max_bytes, 1 << 16))), b"", path, deadline_s)


def write(path: str, data: bytes, *, deadline_s: float) -> None:
    """One write in a child. OSError as the write gave it, TimedOut when it does not return."""
    _child(("write", path, str(len(data) + 1)), data, path, deadline_s)


def _child(arguments: Sequence[str], data: bytes, path: str, deadline_s: float) -> bytes:
    code, output, _ = run(
        [sys.executable, "-I", "-S", "-c", _CHILD, *arguments], stdin=data, deadline_s=deadline_s, where=path
    )
    if code == 0:
        return output
    number = code - _ERRNO_BASE if code > _ERRNO_BASE else errno.EIO
    raise OSError(number, os.strerror(number), path)


def run(
    command: Sequence[str],
    *,
    deadline_s: float,
    where: str,
    stdin: bytes = b"",
    environment: dict[str, str] | None = None,
) -> tuple[int, bytes, bytes]:
    """Run a program in a session of its own: exit status, stdout and stderr (the first MiB of each is kept).

    Raises TimedOut when it, or a process that it left with its output open, does not end: all of the session is killed.
    Raises Unavailable when it cannot start.
    """
    _reap()
    try:
        with os.fdopen(os.memfd_create("stdin"), "w+b", buffering=0) as given:
            given.write(stdin)
            given.seek(0)
            child = subprocess.Popen(
                list(command),
                stdin=given,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
                env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"} if environment is None else environment,
            )
    except OSError as exc:
        raise Unavailable("cannot-start", "the program cannot be started", where=command[0], got=exc.strerror) from exc
    try:
        output, error = _communicate(child, deadline_s)
    except subprocess.TimeoutExpired:
        _abandon(child)
        raise TimedOut(
            "deadline", "the operation does not return; the device may be wedged", where=where, got=f"{deadline_s:g} s"
        ) from None
    except BaseException:
        _abandon(child)
        raise
    return child.returncode, output, error


def _communicate(child: subprocess.Popen[bytes], deadline_s: float) -> tuple[bytes, bytes]:
    """Both outputs until they are closed and the child has ended; what is beyond the bound is read and dropped."""
    assert child.stdout is not None
    assert child.stderr is not None
    until = time.monotonic() + deadline_s
    kept = {child.stdout: bytearray(), child.stderr: bytearray()}
    with child.stdout, child.stderr, selectors.DefaultSelector() as selector:
        for pipe, buffer in kept.items():
            selector.register(pipe, selectors.EVENT_READ, buffer)
        while selector.get_map():
            left = until - time.monotonic()
            if left <= 0:
                raise subprocess.TimeoutExpired(child.args, deadline_s)
            for key, _ in selector.select(left):
                chunk = os.read(key.fd, _CHUNK)
                if chunk:
                    key.data.extend(chunk[: _MAX_OUTPUT - len(key.data)])
                else:
                    selector.unregister(key.fileobj)
        child.wait(max(0.0, until - time.monotonic()))
    output, error = (bytes(buffer) for buffer in kept.values())
    return output, error


def modprobe(module: str, *, deadline_s: float) -> None:
    """Load a kernel module. OSError ENOENT when the kernel has none of that name, EIO for any other failure."""
    code, _, error = run(["modprobe", "--", module], deadline_s=deadline_s, where=f"modprobe {module}")
    if code:
        number = errno.ENOENT if b"not found" in error else errno.EIO
        raise OSError(number, error.decode("utf-8", "replace").strip()[:200] or os.strerror(number), module)


def _abandon(child: subprocess.Popen[bytes]) -> None:
    """Kill its session, and keep a child that may sit in the kernel for ever so that it is reaped if it ever ends.

    It has not been waited for, so its number is still that of its session.
    """
    with suppress(OSError):
        os.killpg(child.pid, signal.SIGKILL)
    _abandoned.append(child)


def _reap() -> None:
    _abandoned[:] = [child for child in _abandoned if child.poll() is None]


def abandoned() -> int:
    """How many children are still stuck in the kernel."""
    _reap()
    return len(_abandoned)
