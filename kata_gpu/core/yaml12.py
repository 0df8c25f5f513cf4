"""The one YAML loader: SafeLoader with YAML 1.2 booleans, no sexagesimal numbers, duplicate keys refused.

Plain YAML 1.1 turns `mode: on` into True, `0000:17:00` into a number and lets a second key win silently; each of
these has configured a node wrongly somewhere. Source: YAML 1.2.2 section 10.3 (core schema).
"""

import re
from typing import Any

import yaml

from kata_gpu.errors import Malformed

MAX_BYTES = 1 << 20  # node policies, claims and pod specs are kilobytes; 1 MiB is etcd's own object limit class
MAX_DEPTH = 32  # Kubernetes objects nest about 15 deep
_TEXT = "tag:yaml.org,2002:str"
_TAGS = {None, "!", _TEXT}  # PyYAML's constructors of the others crash on wrong texts, or give what JSON does not have


class _Loader(yaml.SafeLoader):
    """SafeLoader with the core-schema resolvers of YAML 1.2 and a depth bound."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - PyYAML's own API
    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.events.AliasEvent):
            raise Malformed("yaml-alias", "YAML aliases are not accepted", expected="plain values")
        if (tag := getattr(self.peek_event(), "tag", None)) not in _TAGS:  # type: ignore[no-untyped-call]
            raise Malformed("yaml-tag", "YAML tags are not accepted", expected="plain values", got=tag)
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise Malformed("yaml-depth", "YAML nests too deep", expected=f"at most {MAX_DEPTH} levels")
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else None
            if name is None:
                raise Malformed("yaml-key", "YAML keys must be plain text", where=f"line {key.start_mark.line + 1}")
            if name in seen:
                raise Malformed(
                    "yaml-duplicate-key",
                    f"duplicate key {name!r}",
                    where=f"line {key.start_mark.line + 1}",
                    expected="each key once",
                )
            seen.add(name)
            key.tag = _TEXT  # a key is text, as in the JSON that Kubernetes makes of it: `1: x` is {"1": "x"}
        return super().construct_mapping(node, deep=deep)


for _tag, _pattern, _first in (
    ("tag:yaml.org,2002:bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("tag:yaml.org,2002:null", r"~|null|Null|NULL|", "~nN"),
    ("tag:yaml.org,2002:int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "tag:yaml.org,2002:float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
):
    _Loader.add_implicit_resolver(
        _tag, re.compile(rf"(?:{_pattern})\Z"), [*_first, ""] if _tag.endswith("null") else [*_first]
    )


def _construct_int(loader: _Loader, node: yaml.ScalarNode) -> int:
    text = str(loader.construct_scalar(node))
    if text.startswith("0o"):
        return int(text, 8)
    return int(text, 16) if text.startswith("0x") else int(text)


_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)


def load_all(text: str | bytes, *, where: str) -> list[Any]:
    """Every document of a stream as plain dicts, lists and scalars.

    Keys are text. Raises Malformed for syntax, duplicate keys, aliases, tags other than `!!str`, size and depth.
    """
    if len(text) > MAX_BYTES:
        raise Malformed(
            "yaml-size", "YAML is too large", where=where, expected=f"at most {MAX_BYTES} bytes", got=len(text)
        )
    loader = None
    try:
        loader = _Loader(text)
        documents = []
        while loader.check_data():  # type: ignore[no-untyped-call]
            documents.append(loader.get_data())
    except Malformed as exc:
        raise Malformed(
            exc.code, exc.what, where=f"{where} {exc.where}".strip(), expected=exc.expected, got=exc.got
        ) from None
    except (yaml.YAMLError, ValueError, RecursionError) as exc:
        problem = " ".join(str(exc).split())[:200]
        raise Malformed("yaml-syntax", "not valid YAML", where=where, got=problem) from exc
    finally:
        if loader is not None:
            loader.dispose()
    return documents


def load(text: str | bytes, *, where: str) -> Any:
    """Exactly one document; an empty stream is Malformed."""
    documents = load_all(text, where=where)
    if len(documents) != 1:
        raise Malformed("yaml-documents", "wrong number of YAML documents", where=where, expected=1, got=len(documents))
    return documents[0]
