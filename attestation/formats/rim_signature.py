"""The one signature shape of NVIDIA's reference documents, gpu-attestation.md 3.3.

There is no general XML signature engine here: the document must be the exact tree that NVIDIA signs, and the canonical
form of its SignedInfo is written down once with a hole for the digest. Nothing in this module is proven;
`attestation.verify.rim` proves it.
"""

import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from attestation.errors import Malformed
from attestation.formats.certs import MAX_CERTIFICATES, decode_base64
from attestation.formats.rim_xml import attributes_of, canonical, parse_tree

if TYPE_CHECKING:
    from lxml import etree

DIGEST_BYTES = 48
SIGNATURE_BYTES = 96

DSIG = "http://www.w3.org/2000/09/xmldsig#"
C14N11 = "http://www.w3.org/2006/12/xml-c14n11"
ENVELOPED = f"{DSIG}enveloped-signature"
ECDSA_SHA384 = "http://www.w3.org/2001/04/xmldsig-more#ecdsa-sha384"
SHA384 = "http://www.w3.org/2001/04/xmldsig-more#sha384"

_SIGNATURE = f"{{{DSIG}}}Signature"

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


def parse_signed_rim(document: bytes) -> SignedRim:
    """Take a document apart by the one allowed shape. Raises Malformed, and TypeError unless given `bytes`."""
    root = parse_tree(document)
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
        content=canonical(root),
        digest_value=digest_value,
        signed_info=signed_info,
        signature=signature_value,
        certificates=certificates,
    )


def _shape(element: "etree._Element", name: str) -> "list[etree._Element]":
    """Children of `element`, after it and they were found to be exactly what `_SHAPE` says."""
    attributes, children = _SHAPE[name]
    if attributes_of(element) != attributes:
        code = "rim-reference" if name == "Reference" else "rim-algorithm"
        raise Malformed(
            code, f"unexpected attributes of {name}", where="rim.Signature", expected=dict(attributes),
            got=attributes_of(element),
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
    got = [attributes_of(child) if child.tag == tag and not len(child) else {} for child in transforms]
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
