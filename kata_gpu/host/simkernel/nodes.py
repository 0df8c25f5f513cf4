"""A file tree made on demand: directories as mappings, attributes as show and store functions."""

import errno
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from kata_gpu.host.simkernel.syscall import fail

MAX_LINKS = 40  # the kernel's own limit


class Link(str):
    """A symbolic link's target."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Attr:
    """A file: what a read shows and what a write does; None where not permitted."""

    show: Callable[[], bytes] | None = None
    store: Callable[[bytes], None] | None = None


@dataclass(frozen=True, slots=True)
class Device:
    """A character device: kind and target for `vfio.open_node`; kind "plain" opens to nothing."""

    kind: str
    target: str = ""


class Socket:
    """A unix socket."""


Node: TypeAlias = "Mapping[str, Node | Callable[[], Node]] | Link | Attr | Device | Socket"
Dir: TypeAlias = "dict[str, Node | Callable[[], Node]]"


def text(value: object) -> Attr:
    """A read-only one-line file."""
    return Attr(show=f"{value}\n".encode)


def resolve(root: Dir, path: str, *, follow: bool = True) -> Node:
    """Walk a path. ENOENT, ENOTDIR and ELOOP as the kernel gives them."""
    links = 0
    todo = [p for p in reversed(path.split("/")) if p]
    trail: list[Node] = [root]
    while todo:
        name = todo.pop()
        if name == ".":
            continue
        if name == "..":
            if len(trail) > 1:
                trail.pop()
            continue
        here = trail[-1]
        if not isinstance(here, Mapping):
            raise fail(errno.ENOTDIR)
        if name not in here:
            raise fail(errno.ENOENT)
        node = here[name]
        if callable(node):
            node = node()
        if isinstance(node, Link) and (todo or follow):
            links += 1
            if links > MAX_LINKS:
                raise fail(errno.ELOOP)
            if node.startswith("/"):
                trail = [root]
            todo.extend(p for p in reversed(node.split("/")) if p)
            continue
        trail.append(node)
    return trail[-1]


def directory(root: Dir, path: str) -> Dir:
    """The directory at a path, made with its parents where it is not there."""
    here = root
    for part in path.strip("/").split("/"):
        child = here.setdefault(part, {})
        assert isinstance(child, dict), path
        here = child
    return here


def place(root: Dir, path: str, node: "Node | Callable[[], Node]") -> None:
    """Put a node at a path, its parents made as needed."""
    parent, _, name = path.rpartition("/")
    if isinstance(node, dict):
        directory(root, path).update(node)
    else:
        (directory(root, parent) if parent else root)[name] = node
