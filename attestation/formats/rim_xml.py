"""XML of NVIDIA's reference documents: a hardened parse and one canonical form (gpu-attestation.md 3.2).

UTF-8 without declarations, comments or instructions, so that no construct can hide a value or reach outside.
"""

from typing import TYPE_CHECKING

from attestation.errors import Malformed

if TYPE_CHECKING:
    from lxml import etree

MAX_RIM_BYTES = 256 * 1024  # gpu-attestation.md 1.8; documents seen: 18 to 26 kB
SWID = "http://standards.iso.org/iso/19770/-2/2015/schema.xsd"
ROOT = f"{{{SWID}}}SoftwareIdentity"
_MARKUP_DECLARATIONS = {b"<!--": "rim-comment", b"<![C": "rim-cdata"}  # everything else is DOCTYPE, ENTITY and kin


def parse_tree(document: bytes) -> "etree._Element":
    """The root of a document that is a SWID tag. Raises Malformed, and TypeError unless given `bytes`."""
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
    if root.tag != ROOT:
        raise unexpected("root element", root.tag)
    return root


def canonical(root: "etree._Element") -> bytes:
    """Canonical XML without comments; 1.0 equals 1.1 here: no xml:* attributes, whole document. Raises Malformed."""
    from lxml import etree

    try:
        return etree.tostring(root, method="c14n")
    except etree.C14NError as exc:  # a relative namespace URI has no canonical form
        raise Malformed("rim-xml", "no canonical form", where="rim", got=str(exc)[:120]) from exc


def attributes_of(element: "etree._Element") -> dict[str, str]:
    """Attributes by name."""
    return dict(element.items())  # type: ignore[arg-type]  # parsed documents hold str


def unexpected(what: str, got: object) -> Malformed:
    """The refusal of a tree that is not of NVIDIA's shape."""
    return Malformed("rim-shape", f"unexpected {what}", where="rim", got=str(got)[:200])
