"""One rule in two spellings: Python for the linter, CEL for the API server. A test proves that they agree."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

Json = Mapping[str, Any]


class Scope(StrEnum):
    """What a rule needs to decide.

    `object`: the object alone. `content`: the object alone, but unpacked further than CEL can (gzip, TOML).
    `cluster`: also nodes, classes and claims.
    """

    OBJECT = "object"
    CONTENT = "content"
    CLUSTER = "cluster"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """`holds` is true where the object keeps the rule; `cel` is the same in CEL over `object`."""

    id: str
    holds: Callable[[Json], bool]
    cel: str
    message: str
    symptom: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Violation:
    """A rule that an object breaks."""

    rule: str
    scope: Scope
    subject: str  # kind/name
    message: str
    symptom: str

    def to_json(self) -> dict[str, str]:
        """Plain mapping."""
        return {name: str(getattr(self, name)) for name in self.__slots__}


def mapping(node: Any, *path: str) -> Json:
    """The mapping at a path, empty where something else or nothing is there."""
    for part in path:
        node = node.get(part) if isinstance(node, Mapping) else None
    return node if isinstance(node, Mapping) else {}


def items(node: Any, *path: str) -> list[Json]:
    """The mappings of the list at a path, empty where something else or nothing is there."""
    *tables, leaf = path
    found = mapping(node, *tables).get(leaf)
    return [i for i in found if isinstance(i, Mapping)] if isinstance(found, list) else []
