"""The one error tree of this package, named by who must act, and the exit codes of its console scripts.

Every error carries a stable `code` (kebab-case; tests and operators rely on it) and says what, where, expected
and got. Nothing else may leave a public function of the core: that promise is fuzzed.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of `kata-gpu`, `kata-gpu-kbs` and `kata-gpu-guest`: one table for all three."""

    OK = 0
    NEGATIVE = 1
    USAGE = 2
    IN_USE = 3
    REBOOT_NEEDED = 4
    ROLLED_BACK = 5
    TIMEOUT = 6
    LOCKED = 7
    UNAVAILABLE = 8


MAX_VALUE_CHARS = 1000  # of what was expected and got: both may quote a sender, and both are recorded


class AttestationError(Exception):
    """Root of the tree. Never raised itself."""

    exit_code = ExitCode.NEGATIVE
    signed = False  # whether a CPU's signature over the evidence had held before this was found

    def __init__(self, code: str, what: str, *, where: str = "", expected: object = "", got: object = "") -> None:
        """`code` is stable and kebab-case; `what` is a sentence for people; the rest says where and why."""
        super().__init__(code, what)
        self.code = code
        self.what = what
        self.where = where[:MAX_VALUE_CHARS]
        self.expected = str(expected)[:MAX_VALUE_CHARS]
        self.got = str(got)[:MAX_VALUE_CHARS]

    def __str__(self) -> str:
        parts = [f"{self.where}: {self.what}" if self.where else self.what]
        if self.expected:
            parts.append(f"expected {self.expected}")
        if self.got:
            parts.append(f"got {self.got}")
        return ", ".join(parts)


@contextmanager
def after_signature() -> Iterator[None]:
    """What is found in here is said of evidence that a CPU signed."""
    try:
        yield
    except AttestationError as exc:
        exc.signed = True
        raise


class Malformed(AttestationError):
    """The bytes are not of the format they claim: the sender must act."""

    exit_code = ExitCode.USAGE


class Untrusted(AttestationError):
    """The evidence is well formed and false: signature, chain, nonce, identity."""


class Denied(AttestationError):
    """The evidence is true and the policy says no."""


class Unavailable(AttestationError):
    """We could not tell; the caller may retry."""

    exit_code = ExitCode.UNAVAILABLE


class Misconfigured(AttestationError):
    """The operator must change configuration or command line."""

    exit_code = ExitCode.USAGE
