"""What an API server can answer besides an object, named by what the caller does next."""

from kata_gpu.errors import KataGpuError, Misconfigured, Unavailable


class NotFound(KataGpuError):
    """404: the object is not there."""


class Conflict(Unavailable):
    """409: read again and retry."""


class Gone(Unavailable):
    """410: the watch or list token expired; list again."""


class Refused(Misconfigured):
    """400, 401, 403, 422: a retry of the same request cannot help; RBAC, admission or validation must change."""


class TooMany(Unavailable):
    """429: the server, or a disruption budget, asks to wait."""
