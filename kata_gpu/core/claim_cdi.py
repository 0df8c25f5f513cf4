"""The CDI file of one claim: one device per allocated device, named `<claim uid>-<device>` (dra.md 5.3).

One file per claim needs no read-modify-write and makes orphans a directory listing. The claim's UID in the name keeps
a runtime's cached spec from being taken for another claim's. No major and minor: they change with every rebind, the
runtime looks them up. Device-level edits only: Kata's Rust runtime ignores edits of the whole file.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from kata_gpu.core.claim import CDI_KIND, is_uid
from kata_gpu.errors import Malformed

CDI_VERSION = "0.5.0"  # the lowest that knows hostPath and names that start with a digit
PREFIX = CDI_KIND.replace("/", "-") + "_"
SUFFIX = ".json"
MAX_BYTES = 1 << 16
_NODE = re.compile(r"/dev/(?:vfio/(?:devices/vfio)?[0-9]+|vfio/vfio|iommu)\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimFile:
    """What a file of ours says: the claim, and each CDI device name with its nodes."""

    uid: str
    devices: Mapping[str, tuple[str, ...]]


def file_name(uid: str) -> str:
    """File of a claim, as the CDI library names transient specs."""
    return f"{PREFIX}{uid}{SUFFIX}"


def claim_of(name: str) -> str | None:
    """UID of the claim whose file this is, or None for a file that is not ours: we write none under another name."""
    uid = name.removeprefix(PREFIX).removesuffix(SUFFIX)
    return uid if name == file_name(uid) and is_uid(uid) else None


def device_name(uid: str, device: str) -> str:
    """CDI device name inside our kind."""
    return f"{uid}-{device}"


def device_id(uid: str, device: str) -> str:
    """Full CDI name, as kubelet and Kata carry it."""
    return f"{CDI_KIND}={device_name(uid, device)}"


def render_claim(uid: str, devices: Mapping[str, tuple[str, ...]]) -> bytes:
    """The file for `devices`: name of the DRA device -> its device nodes, at least one each. Raises Malformed."""
    if not devices or not all(devices.values()):
        raise Malformed("cdi-empty", "a CDI file needs devices, and each device a node", where=uid)
    for node in (n for nodes in devices.values() for n in nodes):
        if not _NODE.match(node):
            raise Malformed("cdi-node", "not a VFIO device node", where=uid, got=repr(node))
    body = {
        "cdiVersion": CDI_VERSION,
        "kind": CDI_KIND,
        "devices": [
            {
                "name": device_name(uid, device),
                "containerEdits": {"deviceNodes": [{"path": n, "permissions": "rw"} for n in nodes]},
            }
            for device, nodes in devices.items()
        ],
    }
    return json.dumps(body, indent=1).encode() + b"\n"


def parse_claim_file(data: bytes, uid: str) -> ClaimFile:
    """Read a file of ours back. Raises Malformed for anything that `render_claim` would not have written."""
    try:
        body = json.loads(data[: MAX_BYTES + 1])
        rows = {d["name"]: tuple(n["path"] for n in d["containerEdits"]["deviceNodes"]) for d in body["devices"]}
        ours = body["kind"] == CDI_KIND and all(isinstance(n, str) and n.startswith(f"{uid}-") for n in rows)
        ours = ours and all(paths and all(_NODE.match(p) for p in paths) for paths in rows.values())
    except (ValueError, KeyError, TypeError, RecursionError) as exc:
        raise Malformed("cdi-file", "not a claim file of ours", where=uid, got=repr(exc)) from exc
    if not ours or not rows:
        raise Malformed("cdi-file", "not a claim file of ours", where=uid)
    return ClaimFile(uid=uid, devices={n.removeprefix(f"{uid}-"): nodes for n, nodes in rows.items()})
