"""Objects with values left open, and their two renderings: defaults filled in (kustomize), or a Helm template.

An open value is the text `${dotted.name}`, alone or inside a longer text; `VALUES` holds every default. In a Helm
template a lone value becomes `{{ .Values.dotted.name | toJson }}`: JSON is YAML, so it fits whatever its type is.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from kata_gpu.errors import Misconfigured

_OPEN = re.compile(r"\$\{([A-Za-z0-9.]+)\}")
_TOKEN = re.compile(r"'?HELM<([A-Za-z0-9.]+)>'?")
_INNER = re.compile(r"HELM\(([A-Za-z0-9.]+)\)")
NAMESPACE = "namespace"  # Helm has its own name for it


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """One object. `when`: conditions, separated by spaces, that must all hold in Helm: `name` of a boolean value that
    is true, or `name=text` of a value that is this text.
    """

    file: str  # stem of the file that holds it
    obj: Mapping[str, Any]
    when: str = ""


def lookup(values: Mapping[str, Any], name: str) -> Any:
    """A value by dotted name. Raises Misconfigured for a name that no default explains."""
    node: Any = values
    for part in name.split("."):
        if not isinstance(node, Mapping) or part not in node:
            raise Misconfigured("manifest-value", "unknown value", where=name)
        node = node[part]
    return node


def _walk(node: Any, text: Callable[[str], Any]) -> Any:
    if isinstance(node, Mapping):
        return {k: _walk(v, text) for k, v in node.items()}
    if isinstance(node, (list, tuple)):
        return [_walk(v, text) for v in node]
    return text(node) if isinstance(node, str) else node


def fill(node: Any, values: Mapping[str, Any]) -> Any:
    """The object with every open value replaced."""

    def text(value: str) -> Any:
        whole = _OPEN.fullmatch(value)
        if whole:
            return lookup(values, whole.group(1))
        return _OPEN.sub(lambda m: str(lookup(values, m.group(1))), value)

    return _walk(node, text)


def render_yaml(obj: Mapping[str, Any]) -> str:
    """YAML text, keys in the order given."""
    return yaml.safe_dump(obj, sort_keys=False, default_flow_style=False, width=4096)


def render_helm(document: Document, values: Mapping[str, Any]) -> str:
    """The object as a Helm template. Braces that belong to the content are escaped."""

    def text(value: str) -> Any:
        value = value.replace("{{", "HELM-OPEN").replace("}}", "HELM-CLOSE")
        for name in _OPEN.findall(value):
            lookup(values, name)
        whole = _OPEN.fullmatch(value)
        return f"HELM<{whole.group(1)}>" if whole else _OPEN.sub(r"HELM(\1)", value)

    body = render_yaml(_walk(document.obj, text))
    body = _TOKEN.sub(lambda m: f"{{{{ {_reference(m.group(1))} | toJson }}}}", body)
    body = _INNER.sub(lambda m: f"{{{{ {_reference(m.group(1))} }}}}", body)
    body = body.replace("HELM-OPEN", '{{ "{{" }}').replace("HELM-CLOSE", '{{ "}}" }}')
    if not document.when:
        return body
    conditions = " ".join(map(_condition, document.when.split()))
    return f"{{{{- if and {conditions} true }}}}\n{body}{{{{- end }}}}\n"


def applies(document: Document, values: Mapping[str, Any]) -> bool:
    """Whether Helm would render it."""
    for condition in document.when.split():
        name, equals, text = condition.partition("=")
        value = lookup(values, name)
        if not (value == text if equals else value):
            return False
    return True


def _condition(condition: str) -> str:
    name, equals, text = condition.partition("=")
    return f'(eq .Values.{name} "{text}")' if equals else f".Values.{name}"


def _reference(name: str) -> str:
    return ".Release.Namespace" if name == NAMESPACE else f".Values.{name}"
