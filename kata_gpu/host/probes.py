"""Probes: asked of a live host, or replayed from what a bundle recorded."""

import errno
import json
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kata_gpu.errors import Malformed, TimedOut, Unavailable
from kata_gpu.host import isolate
from kata_gpu.ports import Probes

FILE = ".probes.json"  # in the root of a bundle
MAX_FILE = 32 << 20  # a dozen answers of 1 MiB at most, each perhaps escaped
_COMMAND_S = 4.0
_CONNECT_S = 2.0
_MAX_OUTPUT = 1 << 20


class LiveProbes:
    """This machine."""

    def command(self, *argv: str) -> str | None:
        """Standard output; "" where the program is not there, None where it fails without a word or hangs."""
        try:
            code, output, _ = isolate.run(argv, deadline_s=_COMMAND_S, where=argv[0])
        except Unavailable:
            return ""
        except (TimedOut, ValueError):  # ValueError: an argument with a NUL in it
            return None
        return None if code and not output else output[:_MAX_OUTPUT].decode("utf-8", "replace")

    def opens(self, path: str) -> bool | None:
        """Open and close again, which changes nothing for the nodes that doctor asks about."""
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK))
        except OSError as exc:
            return None if exc.errno in {errno.EACCES, errno.EPERM} else False
        return True

    def connects(self, host: str, port: int) -> str | None:
        """One TCP connection, closed at once."""
        try:
            socket.create_connection((host, port), timeout=_CONNECT_S).close()
        except (OSError, UnicodeError) as exc:
            return (getattr(exc, "strerror", None) or str(exc))[:200]
        return ""


@dataclass(slots=True)
class SavedProbes:
    """Answers by question. What was never asked is None."""

    commands: dict[str, str | None] = field(default_factory=dict)
    nodes: dict[str, bool | None] = field(default_factory=dict)
    peers: dict[str, str | None] = field(default_factory=dict)

    def command(self, *argv: str) -> str | None:
        """The recorded output."""
        return self.commands.get(" ".join(argv))

    def opens(self, path: str) -> bool | None:
        """The recorded answer."""
        return self.nodes.get(path)

    def connects(self, host: str, port: int) -> str | None:
        """The recorded answer."""
        return self.peers.get(f"{host}:{port}")

    def to_json(self) -> dict[str, object]:
        """Plain mapping, read back by `load`."""
        return {"commands": self.commands, "nodes": self.nodes, "peers": self.peers}

    @classmethod
    def load(cls, root: Path) -> "SavedProbes":
        """Answers recorded below `root`; none where the tree is no bundle. Raises Malformed for a broken record."""
        path = root / FILE
        try:
            with path.open("rb") as file:
                data = file.read(MAX_FILE + 1)
        except OSError:
            return cls()
        try:
            if len(data) > MAX_FILE:
                raise ValueError(f"more than {MAX_FILE} bytes")
            record = json.loads(data)
            return cls(
                commands=_answers(record["commands"], str),
                nodes=_answers(record["nodes"], bool),
                peers=_answers(record["peers"], str),
            )
        except (ValueError, KeyError, TypeError, RecursionError) as exc:
            raise Malformed("bundle-probes", "not a probe record", where=str(path), got=str(exc)[:200]) from exc


def _answers(rows: Any, kind: type) -> dict[str, Any]:
    if not isinstance(rows, Mapping) or not all(v is None or type(v) is kind for v in rows.values()):
        raise TypeError(f"expected a mapping to {kind.__name__}")
    return dict(rows)


@dataclass(slots=True)
class RecordingProbes:
    """Passes questions on and remembers the answers."""

    inner: Probes
    saved: SavedProbes = field(default_factory=SavedProbes)

    def command(self, *argv: str) -> str | None:
        """Ask and remember."""
        answer = self.saved.commands[" ".join(argv)] = self.inner.command(*argv)
        return answer

    def opens(self, path: str) -> bool | None:
        """Ask and remember."""
        answer = self.saved.nodes[path] = self.inner.opens(path)
        return answer

    def connects(self, host: str, port: int) -> str | None:
        """Ask and remember."""
        answer = self.saved.peers[f"{host}:{port}"] = self.inner.connects(host, port)
        return answer
