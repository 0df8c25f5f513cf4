"""What a process that holds keys asks of the kernel: no core dump, no debugger, no reader of its memory; and of its
allocator: a size that stays.
"""

import ctypes
import os
import resource

from attestation.errors import Misconfigured

PR_SET_DUMPABLE = 4  # prctl(2)
M_ARENA_MAX = -8  # mallopt(3)


def forbid_dumps() -> None:
    """From here on a crash writes no memory to disk and no process without CAP_SYS_PTRACE can attach or read.

    Raises Misconfigured.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        raise Misconfigured("no-dumps", f"cannot forbid core dumps: {os.strerror(ctypes.get_errno())}")


def keep_one_heap() -> None:
    """All threads allocate in one arena, where the C library has several: before any thread is started.

    What one thread allocates and another frees leaves holes in the first one's arena, a few hundred bytes for each
    handshake without end. Python's threads take turns, so that nobody waits for the one arena.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc's
    if mallopt is not None:
        mallopt(M_ARENA_MAX, 1)
