"""How a system call ends that does not succeed."""

import errno


class Blocked(Exception):
    """The system call does not return, not even for SIGKILL."""


def fail(code: int) -> OSError:
    """An OSError as the system call would give it."""
    return OSError(code, errno.errorcode[code])
