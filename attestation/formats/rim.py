"""Reference values of NVIDIA, SWID tags, gpu-attestation.md 3.2: read from the canonical bytes that were hashed.

Nothing in this module is proven; `attestation.verify.rim` proves it.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from attestation.errors import Malformed
from attestation.formats.rim_xml import SWID, attributes_of, parse_tree, unexpected

if TYPE_CHECKING:
    from lxml import etree

MAX_INDEX = 63
MAX_ALTERNATIVES = 10  # 4 seen; names up to Hash9 sort as numbers do

TCG = "https://trustedcomputinggroup.org/resource/tcg-reference-integrity-manifest-rim-information-model/"
HASH = "http://www.w3.org/2001/04/xmlenc#sha384"
_ENTITY, _META, _PAYLOAD, _RESOURCE = (f"{{{SWID}}}{name}" for name in ("Entity", "Meta", "Payload", "Resource"))
_ROOT_ATTRIBUTES = frozenset({"corpus", "name", "patch", "supplemental", "tagId", "version", "tagVersion"})
_META_ATTRIBUTES = frozenset({"colloquialVersion", "edition", "product", "revision", "PayloadType"})
_RESOURCE_ATTRIBUTES = {  # by number: canonical order is by namespace, then by name
    6 + count: [
        *("active", "alternatives", "index", "name", "size", "type"),
        *(f"{{{HASH}}}Hash{n}" for n in range(count)),
    ]
    for count in range(1, MAX_ALTERNATIVES + 1)
}
_INDICES = {str(index): index for index in range(MAX_INDEX + 1)}
_DIGEST = re.compile(r"[0-9a-f]{96}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Golden:
    """Reference values of one active index: the run-time digest must equal any one of them."""

    index: int
    name: str
    alternatives: tuple[bytes, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RimContent:
    """What a document says. `golden` holds active indices only."""

    product: str  # GH100, GB100, LS10
    edition: str  # GPU or SWITCH
    version: str  # driver or VBIOS version
    tag_id: str
    manufacturer_id: str
    golden: Mapping[int, Golden]


def parse_rim_content(content: bytes) -> RimContent:
    """Read the values of a canonical document; every element and attribute must be known. Raises Malformed."""
    root = parse_tree(content)
    attributes = _attributes(root, _ROOT_ATTRIBUTES)
    if [child.tag for child in root] != [_ENTITY, _META, _PAYLOAD]:
        raise unexpected("children of SoftwareIdentity", [child.tag for child in root])
    entity, meta, payload = root
    _attributes(entity, frozenset({"name", "role"}))
    described = {k: v for k, v in attributes_of(meta).items() if not k.startswith(f"{{{TCG}}}")}
    if frozenset(described) != _META_ATTRIBUTES or len(entity) or len(meta) or payload.attrib:
        raise unexpected("attributes of Meta", sorted(described))
    if described["PayloadType"] != "direct" or attributes["tagVersion"] != "0":
        raise unexpected("PayloadType or tagVersion", f"{described['PayloadType']}, {attributes['tagVersion']}")
    if described["product"] != attributes["name"]:
        raise unexpected("product and name differ", f"{described['product']}, {attributes['name']}")
    golden: dict[int, Golden] = {}
    seen: set[int] = set()
    for resource in payload:
        index, name, digests, active = _resource(resource)
        if index in seen:
            raise Malformed("rim-index-duplicate", "index occurs twice", where="rim.Payload", got=index)
        seen.add(index)
        if active:
            golden[index] = Golden(index=index, name=name, alternatives=tuple(map(bytes.fromhex, digests)))
    return RimContent(
        product=described["product"],
        edition=described["edition"],
        version=described["colloquialVersion"],
        tag_id=attributes["tagId"],
        manufacturer_id=attributes_of(meta).get(f"{{{TCG}}}FirmwareManufacturerId", ""),
        golden=MappingProxyType(golden),
    )


def _resource(element: "etree._Element") -> tuple[int, str, list[str], bool]:
    """One Resource: index, name, as many digests as it says it has, and whether it is active.

    Attributes of a canonical document have one order, which is therefore part of the shape.
    """
    keys, values = element.keys(), element.values()
    if element.tag != _RESOURCE or len(element) or keys != _RESOURCE_ATTRIBUTES.get(len(keys)):
        raise unexpected("element or attributes in Payload", [element.tag, *keys])
    active, count, index_text, name, size, kind, *digests = map(str, values)
    index = _INDICES.get(index_text)
    if index is None:
        raise Malformed("rim-index", "index", where="rim.Payload", expected=f"0..{MAX_INDEX}", got=repr(index_text))
    if active not in ("True", "False"):
        raise _bad_resource("rim-active", index, "True or False", active)
    if (size, kind) != ("48", "Measurement"):
        raise _bad_resource("rim-digest-size", index, "48, Measurement", f"{size}, {kind}")
    if str(len(digests)) != count:
        raise _bad_resource("rim-alternatives", index, count, f"{len(digests)} digests")
    for digest in digests:
        if not _DIGEST.fullmatch(digest):
            raise _bad_resource("rim-hash", index, "96 lower-case hex digits", digest[:100])
    return index, name, digests, active == "True"


def _bad_resource(code: str, index: int, expected: str, got: str) -> Malformed:
    return Malformed(code, "unusable reference value", where=f"rim.Payload[{index}]", expected=expected, got=repr(got))


def _attributes(element: "etree._Element", want: frozenset[str]) -> Mapping[str, str]:
    attributes = attributes_of(element)
    if attributes.keys() != want:
        raise unexpected("attributes", sorted(attributes)[:12])
    return attributes
