"""The one error tree of this package, named by who must act, and the exit codes of `kata-gpu`.

Every error carries a stable `code` (kebab-case) and says what, where, expected and got. The node component and the
relying party are different trust domains and share no code: the exit codes equal those of `attestation.errors`, which
a test proves.
"""

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


class KataGpuError(Exception):
    """Root of the tree. Never raised itself."""

    exit_code = ExitCode.NEGATIVE

    def __init__(
        self, code: str, what: str, *, where: str = "", expected: object = "", got: object = "", hint: str = ""
    ) -> None:
        """`code` is stable and kebab-case; `what` is a sentence for people; `hint` is the exact fix."""
        super().__init__(code, what)
        self.code = code
        self.what = what
        self.where = where
        self.expected = str(expected)
        self.got = str(got)
        self.hint = hint

    def __str__(self) -> str:
        parts = [f"{self.where}: {self.what}" if self.where else self.what]
        if self.expected:
            parts.append(f"expected {self.expected}")
        if self.got:
            parts.append(f"got {self.got}")
        return ", ".join(parts)


class Malformed(KataGpuError):
    """Input is not of the format it claims: whoever wrote it must act."""

    exit_code = ExitCode.USAGE


class Misconfigured(KataGpuError):
    """The operator asked for something impossible here."""

    exit_code = ExitCode.USAGE


class InUse(KataGpuError):
    """Somebody holds the device; the error names the holder."""

    exit_code = ExitCode.IN_USE


class RebootNeeded(KataGpuError):
    """Only a reboot clears this state."""

    exit_code = ExitCode.REBOOT_NEEDED


class RolledBack(KataGpuError):
    """A step failed and everything done before it was undone."""

    exit_code = ExitCode.ROLLED_BACK


class TimedOut(KataGpuError):
    """A deadline passed; the device may be wedged and is reported with its holder."""

    exit_code = ExitCode.TIMEOUT


class LockedOutOfBand(KataGpuError):
    """The setting is locked by something outside this host (BMC, fuse, fabric manager)."""

    exit_code = ExitCode.LOCKED


class Unavailable(KataGpuError):
    """We could not tell or reach; a retry may help."""

    exit_code = ExitCode.UNAVAILABLE
