"""Check the CDI directory as runtimes see it."""

from typing import Any

from kata_gpu.core.cdi import FILES, find_duplicates, find_stale, parse_spec
from kata_gpu.errors import KataGpuError
from kata_gpu.ops.node import Node
from kata_gpu.ops.observe import observe

MAX_FILES = 1000  # one per claim and kind; a node runs some hundred pods


def check(node: Node) -> dict[str, str]:
    """Problems by file or device name; empty when all is well. Files of others are validated, not judged."""
    inventory = observe(node.host)
    found: dict[str, str] = {}
    specs: dict[str, dict[str, Any]] = {}
    for name in node.cdi.names()[:MAX_FILES]:
        if not name.endswith(".json"):
            continue
        try:
            specs[name] = parse_spec(node.cdi.get(name) or b"", where=name)
        except KataGpuError as exc:
            found[name] = str(exc)
            continue
        if name in FILES.values():
            found |= find_stale(specs[name], inventory.devices, iommufd=inventory.iommufd)
    found |= {name: f"defined in {' and '.join(files)}" for name, files in find_duplicates(specs).items()}
    return found
