"""Revocations: whom the broker refuses from now on. Read once per change; asked at every handshake and release."""

from datetime import datetime

from attestation.broker.revocation import FirmwareRange, Revocation, RevocationKind, normal_value
from attestation.sources.configuration import Configuration
from attestation.sources.configuration_change import Change
from attestation.sources.schema import moment, ms
from attestation.sources.sheets import REVOCATIONS


class RevocationStore:
    """Token ids, TEE keys, chips, GPUs and firmware that were taken back."""

    def __init__(self, configuration: Configuration) -> None:
        self._configuration = configuration

    def revoke(self, change: Change, kind: str, value: str, reason: str, now: datetime) -> None:
        """Refuse a token id, TEE key thumbprint, chip or GPU from now on."""
        value = normal_value(RevocationKind(kind), value)
        change.put(REVOCATIONS, {"kind": str(kind), "value": value, "reason": reason, "created": ms(now)})

    def unrevoke(self, change: Change, kind: str, value: str) -> bool:
        """Take a revocation back; false where there was none."""
        return change.remove(REVOCATIONS, str(kind), value)

    def revoked(self, subjects: tuple[tuple[str, str], ...]) -> str | None:
        """The first of these (kind, value) pairs that is revoked, as text, or None."""
        known = self._configuration.remember("revocations", self._pairs)
        return next((f"{kind} {value}" for kind, value in subjects if (kind, value) in known), None)

    def firmware(self) -> tuple[FirmwareRange, ...]:
        """Firmware that is revoked."""
        return self._configuration.remember("revoked-firmware", self._firmware)

    def all(self) -> tuple[Revocation, ...]:
        """Everything that is revoked, oldest first."""
        rows = sorted(self._configuration.rows(REVOCATIONS).values(), key=lambda row: (row.created, row.value))
        return tuple(
            Revocation(kind=RevocationKind(row.kind), value=row.value, reason=row.reason, created=moment(row.created))
            for row in rows
        )

    def _pairs(self) -> frozenset[tuple[str, str]]:
        return frozenset((str(found.kind), found.value) for found in self.all())

    def _firmware(self) -> tuple[FirmwareRange, ...]:
        return tuple(FirmwareRange.parse(found.value) for found in self.all() if found.kind is RevocationKind.FIRMWARE)
