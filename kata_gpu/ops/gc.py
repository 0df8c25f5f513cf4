"""Collect what crashes leave behind: stale CDI entries, and VMs whose sandbox is gone but which still hold a GPU."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from kata_gpu.core.cdi import FILES, find_stale, parse_spec, render_spec
from kata_gpu.core.pci import PciAddress
from kata_gpu.errors import Malformed
from kata_gpu.host.guard import Holder
from kata_gpu.ops.node import Node, observe_node
from kata_gpu.ports import HostFiles

_SANDBOX = re.compile(r"sandbox-([0-9a-f]{12,64})")
_SANDBOX_DIRS = ("/run/vc/sbs", "/run/vc/vm", "/run/kata")


@dataclass(frozen=True, slots=True, kw_only=True)
class Garbage:
    """What was found. `stale` maps CDI names, or files that cannot be read, to reasons."""

    stale: Mapping[str, str]
    orphans: Mapping[PciAddress, Holder]


def collect(node: Node, *, dry_run: bool) -> Garbage:
    """Find garbage, and unless `dry_run` rewrite our CDI files without stale entries. Entries in use stay."""
    if dry_run:
        return _collect(node, dry_run=True)
    with node.locked():
        return _collect(node, dry_run=False)


def _collect(node: Node, *, dry_run: bool) -> Garbage:
    observed = observe_node(node)
    inventory = observed.inventory
    holders = node.guard.holders((d.function for d in inventory.devices), probe=not dry_run)
    held = {d.name for d in inventory.devices if holders[d.function.address]}
    found: dict[str, str] = {}
    for kind, file in FILES.items():
        content = observed.cdi.get(file)
        if content is None:
            continue
        try:
            stale = find_stale(parse_spec(content, where=file), inventory.devices, iommufd=inventory.iommufd)
        except Malformed as exc:
            stale = {file: str(exc)}
        stale = {name: why for name, why in stale.items() if name not in held}
        found |= stale
        if stale and not dry_run:
            good = [d for d in inventory.devices if f'"{d.name}"' in content and d.name not in stale]
            text = render_spec(kind, good, iommufd=inventory.iommufd)
            if text is None:
                node.cdi.remove(file)
            else:
                node.cdi.put(file, text.encode())
    orphans = {a: h for a, hs in holders.items() for h in hs if _orphan(node.host, h)}
    return Garbage(stale=found, orphans=orphans)


def _orphan(host: HostFiles, holder: Holder) -> bool:
    """A VM of Kata whose sandbox directory is gone: nobody will ever end it."""
    match = _SANDBOX.search(holder.command)
    if match is None or not holder.pid:
        return False
    return all(host.kind(f"{directory}/{match.group(1)}") is None for directory in _SANDBOX_DIRS)
