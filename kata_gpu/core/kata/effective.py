"""Base configuration plus drop-ins, merged as Kata merges them, every value with the file it came from.

Both runtimes read `configuration.toml` and then every file of `config.d` beside it in name order; tables merge, every
other value replaces (Go `updateFromDropIn`, Rust `drop_in.rs`). Arrays of tables replace as a whole.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from kata_gpu.core import toml10
from kata_gpu.errors import Malformed

MAX_FILE_BYTES = 1 << 20  # the shipped templates are about 40 KiB
MAX_LAYERS = 256  # a folder with more drop-ins is not a Kata configuration


class Runtime(StrEnum):
    """Kata has two runtimes with two spellings of some keys."""

    GO = "go"
    RUST = "rust"


@dataclass(frozen=True, slots=True)
class Layer:
    """One parsed file."""

    path: str
    values: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Origin:
    """An effective value and the file that set it last."""

    value: Any
    path: str


@dataclass(frozen=True, slots=True)
class Effective:
    """What the runtime will use. `leaves` maps dotted keys to value and origin, in the order of first appearance."""

    leaves: Mapping[str, Origin]
    layers: tuple[str, ...]

    def get(self, key: str) -> Origin | None:
        """Value and origin of a dotted key, or None where no layer sets it."""
        return self.leaves.get(key)

    @property
    def runtime(self) -> Runtime:
        """Which runtime this file is for: only runtime-rs has `runtime.name` (`virt_container`)."""
        return Runtime.RUST if "runtime.name" in self.leaves else Runtime.GO


def parse_layer(data: bytes, path: str) -> Layer:
    """TOML bytes to a layer. Raises Malformed with the file's name."""
    if len(data) > MAX_FILE_BYTES:
        raise Malformed("kata-config-size", "configuration file is too large", where=path,
                        expected=f"at most {MAX_FILE_BYTES} bytes", got=len(data))  # fmt: skip
    try:
        return Layer(path, toml10.loads(data))
    except ValueError as exc:
        raise Malformed("kata-config-toml", "not valid TOML", where=path, got=str(exc)[:200]) from exc


def merge(layers: Sequence[Layer]) -> Effective:
    """Merge base first, drop-ins after it in the given order. At least one layer. Raises Malformed."""
    if not layers or len(layers) > MAX_LAYERS:
        raise Malformed("kata-config-layers", "no configuration, or too many drop-ins",
                        expected=f"1 to {MAX_LAYERS} files", got=len(layers))  # fmt: skip
    leaves: dict[str, Origin] = {}
    for layer in layers:
        for key, value in _leaves(layer.values, ""):
            _drop_overlaps(leaves, key)
            leaves[key] = Origin(value, layer.path)
    return Effective(leaves, tuple(layer.path for layer in layers))


def _leaves(table: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        dotted = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{dotted}.")
        elif not isinstance(value, dict):
            yield dotted, value


def _drop_overlaps(leaves: dict[str, Origin], key: str) -> None:
    """A table that replaces a value, or a value that replaces a table, leaves nothing of the old one."""
    parts = key.split(".")
    for size in range(1, len(parts)):
        leaves.pop(".".join(parts[:size]), None)
    if key not in leaves:
        below = f"{key}."
        for other in [k for k in leaves if k.startswith(below)]:
            del leaves[other]
