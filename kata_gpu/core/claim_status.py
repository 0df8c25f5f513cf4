"""`status.devices` of a claim: what a person who reads the claim wants to know about its devices (dra.md 2.3, 6.2).

Asserted by the host like everything in the API, and read by nothing of ours: Unprepare works from the checkpoint.
"""

import json
from datetime import datetime

from kata_gpu.core.cdi import node_paths
from kata_gpu.core.checkpoint import ClaimEntry, HeldDevice
from kata_gpu.core.claim import DRIVER
from kata_gpu.core.gpu import CcMode
from kata_gpu.core.inventory import Inventory
from kata_gpu.core.slices import JsonObject

API_VERSION = "resource.k8s.io/v1"
MAX_DATA = 10 << 10  # bytes of `data`, resource.k8s.io/v1
CONFIDENTIAL = frozenset({CcMode.ON, CcMode.PPCIE})  # devtools has the mode's interfaces and not its protection


def render_claim_status(entry: ClaimEntry, inventory: Inventory, now: datetime) -> JsonObject | None:
    """The object to apply for a prepared claim; None where the claim has no device of its own (admin access).

    `now` is when a condition turned that no longer says what Prepare found; the others date from Prepare.
    """
    rows = [_row(d, entry, inventory, now) for d in entry.devices if not d.admin]
    if not rows:
        return None
    ref = entry.ref
    return {
        "apiVersion": API_VERSION,
        "kind": "ResourceClaim",
        "metadata": {"name": ref.name, "namespace": ref.namespace, "uid": ref.uid},
        "status": {"devices": rows},
    }


def _row(held: HeldDevice, entry: ClaimEntry, inventory: Inventory, now: datetime) -> JsonObject:
    here = [d for d in inventory.devices if str(d.function.address) in held.addresses]
    whole = len(here) == len(held.addresses)
    modes = {d.cc_mode for d in here if d.modes}
    mode = next(iter(modes)) if len(modes) == 1 else None
    at = entry.since if whole else now
    confidential = "Unknown" if mode is None else str(mode in CONFIDENTIAL)
    data = {
        "bdf": list(held.addresses),
        "ccMode": str(mode) if mode is not None else "unknown",
        "vfio": [p for d in here for p in node_paths(d, iommufd=inventory.iommufd)],
    }
    row: JsonObject = {
        "driver": DRIVER,
        "pool": held.pool,
        "device": held.device,
        "conditions": [
            _condition("Ready", str(whole), "Prepared" if whole else "DeviceGone", at),
            _condition("ConfidentialMode", confidential, "Unreadable" if mode is None else mode.capitalize(), at),
        ],
    }
    if held.share_id is not None:
        row["shareID"] = held.share_id
    if len(json.dumps(data)) <= MAX_DATA:
        row["data"] = data
    return row


def _condition(kind: str, status: str, reason: str, at: datetime) -> JsonObject:
    return {
        "type": kind,
        "status": status,
        "reason": reason,
        "message": "",
        "lastTransitionTime": at.strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
