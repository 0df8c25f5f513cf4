"""What a process that holds keys asks of the kernel: no core dump, no debugger, no reader of its memory."""

import ctypes
import os
import resource

from attestation.errors import Misconfigured

PR_SET_DUMPABLE = 4  # prctl(2)


def forbid_dumps() -> None:
    """From here on a crash writes no memory to disk and no process without CAP_SYS_PTRACE can attach or read.

    Raises Misconfigured.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        raise Misconfigured("no-dumps", f"cannot forbid core dumps: {os.strerror(ctypes.get_errno())}")
