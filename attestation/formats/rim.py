"""Reference-value documents of NVIDIA (SWID tags) and their one signature shape, gpu-attestation.md 3.2 and 3.3.

There is no general XML signature engine here: the document must be the exact tree that NVIDIA signs, the canonical
form of its SignedInfo is written down once with a hole for the digest, and measurements are read by a second parse,
of the canonical bytes that were hashed. Nothing in this module is proven; `attestation.verify.rim` proves it.
"""

import binascii
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from attestation.errors import Malformed
from attestation.formats.certs import MAX_CERTIFICATES, decode_base64

if TYPE_CHECKING:
    from lxml import etree

MAX_RIM_BYTES = 256 * 1024  # gpu-attestation.md 1.8; documents seen: 18 to 26 kB
MAX_INDEX = 63
MAX_ALTERNATIVES = 10  # 4 seen; names up to Hash9 sort as numbers do
DIGEST_BYTES = 48
SIGNATURE_BYTES = 96

SWID = "http://standards.iso.org/iso/19770/-2/2015/schema.xsd"
TCG = "https://trustedcomputinggroup.org/resource/tcg-reference-integrity-manifest-rim-information-model/"
HASH = "http://www.w3.org/2001/04/xmlenc#sha384"
DSIG = "http://www.w3.org/2000/09/xmldsig#"
C14N11 = "http://www.w3.org/2006/12/xml-c14n11"
ENVELOPED = f"{DSIG}enveloped-signature"
ECDSA_SHA384 = "http://www.w3.org/2001/04/xmldsig-more#ecdsa-sha384"
SHA384 = "http://www.w3.org/2001/04/xmldsig-more#sha384"

_ROOT, _ENTITY, _META, _PAYLOAD, _RESOURCE = (
    f"{{{SWID}}}{name}" for name in ("SoftwareIdentity", "Entity", "Meta", "Payload", "Resource")
)
_SIGNATURE = f"{{{DSIG}}}Signature"
_MARKUP_DECLARATIONS = {b"<!--": "rim-comment", b"<![C": "rim-cdata"}  # everything else is DOCTYPE, ENTITY and kin
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

# 3.3: the signature's skeleton. Tag -> (attributes, child tags); leaves of text have no children.
_SHAPE: Mapping[str, tuple[Mapping[str, str], Sequence[str]]] = {
    "Signature": ({}, ("SignedInfo", "SignatureValue", "KeyInfo")),
    "SignedInfo": ({}, ("CanonicalizationMethod", "SignatureMethod", "Reference")),
    "CanonicalizationMethod": ({"Algorithm": C14N11}, ()),
    "SignatureMethod": ({"Algorithm": ECDSA_SHA384}, ()),
    "Reference": ({"URI": ""}, ("Transforms", "DigestMethod", "DigestValue")),
    "DigestMethod": ({"Algorithm": SHA384}, ()),
    "DigestValue": ({}, ()),
    "SignatureValue": ({}, ()),
    "KeyInfo": ({}, ("X509Data",)),
}
_TRANSFORMS = (ENVELOPED, C14N11)
_TEXT = frozenset({"DigestValue", "SignatureValue", "X509Certificate"})


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedRim:
    """A document taken apart. `content` is its canonical form without the signature: what DigestValue is over.

    `signed_info` is the canonical SignedInfo that the one allowed shape has for that DigestValue.
    """

    content: bytes
    digest_value: bytes
    signed_info: bytes
    signature: bytes
    certificates: tuple[bytes, ...]  # DER, leaf first


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


def parse_signed_rim(document: bytes) -> SignedRim:
    """Take a document apart by the one allowed shape. Raises Malformed, and TypeError unless given `bytes`."""
    root = _tree(document)
    children = [child.tag for child in root]
    if children.count(_SIGNATURE) != 1 or children[-1] != _SIGNATURE:
        raise Malformed(
            "rim-signature-count" if children.count(_SIGNATURE) != 1 else "rim-signature-place",
            "the document needs exactly one signature, as its last element",
            where="rim",
            expected="1, last",
            got=f"{children.count(_SIGNATURE)} signatures",
        )
    signature = root[-1]
    if signature.tail:
        raise Malformed("rim-signature-place", "text after the signature", where="rim", got=repr(signature.tail[:40]))
    info, value, key_info = _shape(signature, "Signature")
    _, _, reference = _shape(info, "SignedInfo")
    transforms, _, digest = _shape(reference, "Reference")
    _require_transforms(transforms)
    certificates = _certificates(key_info)
    digest_value = _decode(digest, DIGEST_BYTES)
    signed_info = _signed_info(signature.nsmap, digest_value)
    signature_value = _decode(value, SIGNATURE_BYTES)
    root.remove(signature)
    return SignedRim(
        content=_canonical(root),
        digest_value=digest_value,
        signed_info=signed_info,
        signature=signature_value,
        certificates=certificates,
    )


def parse_rim_content(content: bytes) -> RimContent:
    """Read the values of a canonical document; every element and attribute must be known. Raises Malformed."""
    root = _tree(content)
    attributes = _attributes(root, _ROOT_ATTRIBUTES)
    if [child.tag for child in root] != [_ENTITY, _META, _PAYLOAD]:
        raise _unexpected("children of SoftwareIdentity", [child.tag for child in root])
    entity, meta, payload = root
    _attributes(entity, frozenset({"name", "role"}))
    described = {k: v for k, v in _attrib(meta).items() if not k.startswith(f"{{{TCG}}}")}
    if frozenset(described) != _META_ATTRIBUTES or len(entity) or len(meta) or payload.attrib:
        raise _unexpected("attributes of Meta", sorted(described))
    if described["PayloadType"] != "direct" or attributes["tagVersion"] != "0":
        raise _unexpected("PayloadType or tagVersion", f"{described['PayloadType']}, {attributes['tagVersion']}")
    if described["product"] != attributes["name"]:
        raise _unexpected("product and name differ", f"{described['product']}, {attributes['name']}")
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
        manufacturer_id=_attrib(meta).get(f"{{{TCG}}}FirmwareManufacturerId", ""),
        golden=MappingProxyType(golden),
    )


def _tree(document: bytes) -> "etree._Element":
    """Hardened parse: UTF-8 without declarations, so that no construct can hide a value or reach outside."""
    from lxml import etree  # late: who verifies no document pays no 10 ms

    if type(document) is not bytes:
        raise TypeError("a reference document is bytes")
    if len(document) > MAX_RIM_BYTES:
        raise Malformed(
            "rim-size", "too large", where="rim", expected=f"at most {MAX_RIM_BYTES} bytes", got=len(document)
        )
    if b"\0" in document:
        raise Malformed("rim-encoding", "not UTF-8 text", where="rim", got="NUL")
    if b"!" in document and (position := document.find(b"<!")) >= 0:  # one byte is found faster than two
        code = _MARKUP_DECLARATIONS.get(document[position : position + 4], "rim-doctype")
        raise Malformed(code, "construct that these documents never have", where="rim", got="<!")
    if b"?" in document and b"<?" in document:
        raise Malformed("rim-instruction", "construct that these documents never have", where="rim", got="<?")
    parser = etree.XMLParser(
        encoding="utf-8", resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False, recover=False
    )
    try:
        root = etree.fromstring(document, parser)
    except (etree.XMLSyntaxError, ValueError) as exc:
        raise Malformed("rim-xml", "not well-formed XML", where="rim", got=str(exc)[:120]) from exc
    if root.tag != _ROOT:
        raise _unexpected("root element", root.tag)
    return root


def _canonical(root: "etree._Element") -> bytes:
    """Canonical XML without comments. 1.0 equals 1.1 here: no xml:* attributes, whole document (3.3)."""
    from lxml import etree

    try:
        return etree.tostring(root, method="c14n")
    except etree.C14NError as exc:  # a relative namespace URI has no canonical form
        raise Malformed("rim-xml", "no canonical form", where="rim", got=str(exc)[:120]) from exc


def _shape(element: "etree._Element", name: str) -> "list[etree._Element]":
    """Children of `element`, after it and they were found to be exactly what `_SHAPE` says."""
    attributes, children = _SHAPE[name]
    if _attrib(element) != attributes:
        code = "rim-reference" if name == "Reference" else "rim-algorithm"
        raise Malformed(
            code, f"unexpected attributes of {name}", where="rim.Signature", expected=dict(attributes),
            got=_attrib(element),
        )  # fmt: skip
    if [child.tag for child in element] != [f"{{{DSIG}}}{child}" for child in children]:
        raise Malformed(
            "rim-key-info" if name == "KeyInfo" else "rim-signature-shape",
            f"unexpected children of {name}",
            where="rim.Signature",
            expected=list(children),
            got=[str(child.tag) for child in element][:8],
        )
    if (name not in _TEXT and element.text) or any(child.tail for child in element):
        raise Malformed("rim-signature-shape", "text between signature elements", where=f"rim.Signature.{name}")
    for child, child_name in zip(element, children, strict=True):
        if child_name in _SHAPE and not _SHAPE[child_name][1]:
            _shape(child, child_name)
    return list(element)


def _require_transforms(transforms: "etree._Element") -> None:
    tag = f"{{{DSIG}}}Transform"
    got = [_attrib(child) if child.tag == tag and not len(child) else {} for child in transforms]
    if transforms.attrib or got != [{"Algorithm": algorithm} for algorithm in _TRANSFORMS]:
        raise Malformed(
            "rim-transform", "unexpected transforms", where="rim.Signature", expected=_TRANSFORMS, got=got[:4]
        )
    if transforms.text or any(child.text or child.tail for child in transforms):
        raise Malformed("rim-signature-shape", "text between signature elements", where="rim.Signature.Transforms")


def _certificates(key_info: "etree._Element") -> tuple[bytes, ...]:
    """KeyInfo is one X509Data of X509Certificates: no key, name or address of the document's own choice."""
    (data,) = _shape(key_info, "KeyInfo")
    tag = f"{{{DSIG}}}X509Certificate"
    if data.attrib or data.text or not 1 <= len(data) <= MAX_CERTIFICATES:
        raise Malformed(
            "rim-key-info", "X509Data", where="rim.Signature", expected="1 to 8 certificates", got=len(data)
        )
    for child in data:
        if child.tag != tag or child.attrib or len(child) or child.tail:
            raise Malformed("rim-key-info", "X509Data holds more than certificates", where="rim.Signature")
    return tuple(decode_base64((child.text or "").encode(), where="rim certificate") for child in data)


def _decode(element: "etree._Element", size: int) -> bytes:
    try:
        value = binascii.a2b_base64((element.text or "").encode(), strict_mode=True)
    except binascii.Error:
        value = b""
    if len(value) != size:
        raise Malformed(
            "rim-signature-value", "not base64 of the right length", where=f"rim.{str(element.tag).rpartition('}')[2]}",
            expected=f"{size} bytes", got=repr((element.text or "")[:40]),
        )  # fmt: skip
    return value


def _signed_info(namespaces: Mapping[str | None, str], digest_value: bytes) -> bytes:
    """Canonical XML 1.1 of the only SignedInfo that `_SHAPE` allows, with the namespaces in scope around it."""
    scope = "".join(
        f' xmlns{":" + prefix if prefix else ""}="{uri}"'
        for prefix, uri in sorted(namespaces.items(), key=lambda item: item[0] or "")
    )
    digest = binascii.b2a_base64(digest_value, newline=False).decode()
    return (
        f"<ds:SignedInfo{scope}>"
        f'<ds:CanonicalizationMethod Algorithm="{C14N11}"></ds:CanonicalizationMethod>'
        f'<ds:SignatureMethod Algorithm="{ECDSA_SHA384}"></ds:SignatureMethod>'
        f'<ds:Reference URI=""><ds:Transforms><ds:Transform Algorithm="{ENVELOPED}"></ds:Transform>'
        f'<ds:Transform Algorithm="{C14N11}"></ds:Transform></ds:Transforms>'
        f'<ds:DigestMethod Algorithm="{SHA384}"></ds:DigestMethod>'
        f"<ds:DigestValue>{digest}</ds:DigestValue></ds:Reference></ds:SignedInfo>"
    ).encode()


def _resource(element: "etree._Element") -> tuple[int, str, list[str], bool]:
    """One Resource: index, name, as many digests as it says it has, and whether it is active.

    Attributes of a canonical document have one order, which is therefore part of the shape.
    """
    keys, values = element.keys(), element.values()
    if element.tag != _RESOURCE or len(element) or keys != _RESOURCE_ATTRIBUTES.get(len(keys)):
        raise _unexpected("element or attributes in Payload", [element.tag, *keys])
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
    attributes = _attrib(element)
    if attributes.keys() != want:
        raise _unexpected("attributes", sorted(attributes)[:12])
    return attributes


def _attrib(element: "etree._Element") -> dict[str, str]:
    return dict(element.items())  # type: ignore[arg-type]  # parsed documents hold str


def _unexpected(what: str, got: object) -> Malformed:
    return Malformed("rim-shape", f"unexpected {what}", where="rim", got=str(got)[:200])
