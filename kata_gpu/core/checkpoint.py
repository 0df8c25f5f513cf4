"""What this driver has promised to kubelet, as one file: claims, their devices, and devices set aside.

Every entry carries the boot id under which its host facts were true: after a reboot VFIO numbers and CDI files are
gone, the promise to kubelet is not (dra.md 1.6, 6.4). A device whose holder is unclear is quarantined, never guessed.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import Any

from kata_gpu.core.claim import ClaimRef
from kata_gpu.errors import KataGpuError, Malformed, Misconfigured

SCHEMA = 1
MAX_BYTES = 1 << 20  # 16 devices and their claims take about 16 KiB


class ClaimState(StrEnum):
    """`preparing` is written before the host is touched, `prepared` before kubelet is answered."""

    PREPARING = "preparing"
    PREPARED = "prepared"


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldDevice:
    """One device of a claim. `cdi_id` is empty for admin access, which gets no device node."""

    request: str
    pool: str
    device: str
    addresses: tuple[str, ...]
    cdi_id: str = ""
    share_id: str | None = None
    admin: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimEntry:
    """One claim. `needs_reset`: every release resets, not only one after an error. `pod` is its consumer's name."""

    ref: ClaimRef
    state: ClaimState
    boot_id: str
    devices: tuple[HeldDevice, ...]
    since: datetime
    needs_reset: bool = True
    pod: str = ""

    @property
    def exclusive(self) -> frozenset[str]:
        """PCI addresses that nobody else may use: names differ (a group device and its members), addresses do not."""
        return frozenset(a for d in self.devices if not d.admin for a in d.addresses)


@dataclass(frozen=True, slots=True, kw_only=True)
class Quarantined:
    """A PCI address that is offered to nobody, and why."""

    address: str
    reason: str
    since: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """All promises. Never modified in place: each change is a new value."""

    claims: tuple[ClaimEntry, ...] = ()
    quarantine: tuple[Quarantined, ...] = ()

    def entry(self, uid: str) -> ClaimEntry | None:
        """The entry of a claim."""
        return next((c for c in self.claims if c.ref.uid == uid), None)

    def holder(self, address: str) -> ClaimEntry | None:
        """The claim that has `address` for itself."""
        return next((c for c in self.claims if address in c.exclusive), None)

    def quarantined(self, address: str) -> Quarantined | None:
        """Why `address` is set aside, or None."""
        return next((q for q in self.quarantine if q.address == address), None)

    def with_entry(self, entry: ClaimEntry) -> "Checkpoint":
        """With `entry` in place of what its claim had."""
        others = tuple(c for c in self.claims if c.ref.uid != entry.ref.uid)
        return replace(self, claims=(*others, entry))

    def without(self, uid: str) -> "Checkpoint":
        """With the claim forgotten."""
        return replace(self, claims=tuple(c for c in self.claims if c.ref.uid != uid))

    def with_quarantine(self, address: str, reason: str, now: datetime) -> "Checkpoint":
        """With `address` set aside; the first reason and its time stay."""
        if self.quarantined(address):
            return self
        return replace(self, quarantine=(*self.quarantine, Quarantined(address=address, reason=reason, since=now)))

    def released(self, addresses: Iterable[str]) -> "Checkpoint":
        """With `addresses` no longer set aside."""
        gone = set(addresses)
        return replace(self, quarantine=tuple(q for q in self.quarantine if q.address not in gone))


def render_checkpoint(checkpoint: Checkpoint) -> bytes:
    """Canonical JSON with its own SHA-256."""
    body: dict[str, Any] = {
        "schema": SCHEMA,
        "claims": [_claim(c) for c in checkpoint.claims],
        "quarantine": [
            {"address": q.address, "reason": q.reason, "since": q.since.isoformat()} for q in checkpoint.quarantine
        ],
    }
    return _canonical(body | {"sha256": _digest(body)})


def parse_checkpoint(data: bytes) -> Checkpoint:
    """The checkpoint in `data`.

    Raises Malformed for anything that we did not write like this, and Misconfigured for a newer schema, which a
    downgraded driver must not touch.
    """
    if len(data) > MAX_BYTES:
        raise Malformed("checkpoint-size", "checkpoint is too large", expected=MAX_BYTES, got=len(data))
    try:
        body = json.loads(data)
    except (ValueError, RecursionError) as exc:
        raise Malformed("checkpoint-json", "checkpoint is not JSON", got=str(exc)) from exc
    if not isinstance(body, dict):
        raise Malformed("checkpoint-shape", "checkpoint is not an object")
    schema = body.get("schema")
    if isinstance(schema, int) and schema > SCHEMA:
        raise Misconfigured(
            "checkpoint-newer",
            "the checkpoint was written by a newer driver",
            expected=f"schema {SCHEMA}",
            got=schema,
            hint="install the newer driver again, or drain the node and remove the checkpoint",
        )
    if schema != SCHEMA:
        raise Malformed("checkpoint-schema", "unknown checkpoint schema", expected=SCHEMA, got=repr(schema))
    claimed = body.pop("sha256", None)
    if claimed != _digest(body):
        raise Malformed("checkpoint-checksum", "checkpoint checksum does not match", got=repr(claimed))
    try:
        return Checkpoint(
            claims=tuple(_parse_entry(c) for c in body["claims"]),
            quarantine=tuple(
                Quarantined(address=q["address"], reason=q["reason"], since=datetime.fromisoformat(q["since"]))
                for q in body["quarantine"]
            ),
        )
    except (KeyError, TypeError, ValueError, KataGpuError) as exc:
        raise Malformed("checkpoint-shape", "checkpoint does not hold what its schema says", got=repr(exc)) from exc


def _claim(entry: ClaimEntry) -> dict[str, Any]:
    return {
        "uid": entry.ref.uid,
        "namespace": entry.ref.namespace,
        "name": entry.ref.name,
        "state": str(entry.state),
        "bootId": entry.boot_id,
        "since": entry.since.isoformat(),
        "needsReset": entry.needs_reset,
        "pod": entry.pod,
        "devices": [
            {
                "request": d.request,
                "pool": d.pool,
                "device": d.device,
                "addresses": list(d.addresses),
                "cdiId": d.cdi_id,
                "shareId": d.share_id,
                "admin": d.admin,
            }
            for d in entry.devices
        ],
    }


def _parse_entry(row: dict[str, Any]) -> ClaimEntry:
    return ClaimEntry(
        ref=ClaimRef(namespace=row["namespace"], name=row["name"], uid=row["uid"]),
        state=ClaimState(row["state"]),
        boot_id=row["bootId"],
        since=datetime.fromisoformat(row["since"]),
        needs_reset=row["needsReset"],
        pod=row["pod"],
        devices=tuple(
            HeldDevice(
                request=d["request"],
                pool=d["pool"],
                device=d["device"],
                addresses=tuple(d["addresses"]),
                cdi_id=d["cdiId"],
                share_id=d["shareId"],
                admin=d["admin"],
            )
            for d in row["devices"]
        ),
    )


def _canonical(body: dict[str, Any]) -> bytes:
    return json.dumps(body, sort_keys=True, separators=(",", ":")).encode()


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(_canonical(body)).hexdigest()
