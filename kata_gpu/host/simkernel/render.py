"""Write a simulated machine as a static tree, for read-only commands and golden bundles."""

from collections.abc import Mapping
from pathlib import Path

from kata_gpu.host.simkernel.machine import Machine
from kata_gpu.host.simkernel.nodes import Attr, Device, Link, Node
from kata_gpu.host.simkernel.syscall import Blocked
from kata_gpu.host.simkernel.tree import build


def render(machine: Machine, directory: Path) -> None:
    """Write every directory, link and readable file below `directory`.

    Device nodes need privileges to make, so they are listed in `.nodes`, one `kind path` a line, which `RealHost`
    reads. Files that would block are left out.
    """
    nodes: list[str] = []
    _write(build(machine), directory, "", nodes)
    (directory / ".nodes").write_text("".join(f"{line}\n" for line in sorted(nodes)))


def _write(node: Node, at: Path, path: str, nodes: list[str]) -> None:
    if isinstance(node, Mapping):
        at.mkdir(parents=True, exist_ok=True)
        for name, child in node.items():
            _write(child() if callable(child) else child, at / name, f"{path}/{name}", nodes)
    elif isinstance(node, Link):
        at.unlink(missing_ok=True)
        at.symlink_to(str(node))
    elif isinstance(node, Attr):
        try:
            at.write_bytes(node.show() if node.show is not None else b"")
        except Blocked:
            return
    else:
        nodes.append(f"{'char-device' if isinstance(node, Device) else 'socket'} {path}")
