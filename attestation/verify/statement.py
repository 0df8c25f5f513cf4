"""What one signed revocation document says about one certificate, whatever its format."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from attestation.values import Digest


class Said(StrEnum):
    """The answer inside a document: of an OCSP responder, or of a CRL (listed or not)."""

    GOOD = "good"
    REVOKED = "revoked"
    HELD = "certificate-hold"  # RFC 5280 5.3.1: temporary, may be lifted
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """A signature-checked answer. `until` is None where the document names no end; aware UTC throughout."""

    said: Said
    reason: str  # RFC 5280 5.3.1 reason name of a revocation, else empty
    since: datetime  # thisUpdate
    until: datetime | None  # nextUpdate, or the end of the signer's certificate if that is earlier
    source: str  # ocsp | crl
    document: Digest

    def fresh(self, now: datetime, *, max_age: timedelta, grace: timedelta) -> bool:
        """Whether `now` is at most `max_age` after thisUpdate and at most `grace` after nextUpdate."""
        # Differences of datetimes cannot overflow, sums with 9999-12-31 can (gpu-attestation.md 2.1).
        return now - self.since <= max_age and (self.until is None or now - self.until <= grace)
