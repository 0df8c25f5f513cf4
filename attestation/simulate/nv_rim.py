"""Forged reference documents: a SWID tag in NVIDIA's layout, signed in NVIDIA's profile (gpu-attestation.md 3.2, 3.3).

Canonicalisation is lxml's here and a written-down text in `attestation.formats.rim_signature`: two ways to one result.
"""

import base64
import hashlib
from collections.abc import Callable, Mapping, Sequence

from lxml import etree

from attestation.formats.rim import HASH, TCG
from attestation.formats.rim_signature import C14N11, DSIG, ECDSA_SHA384, ENVELOPED, SHA384
from attestation.formats.rim_xml import SWID
from attestation.simulate.pki import SigningKey, sign_raw

_RESOURCES = 64


def render_rim(
    *,
    product: str,
    edition: str,
    version: str,
    golden: Mapping[int, Sequence[bytes]],
    key: SigningKey,
    certificates: Sequence[bytes],
    edit: Callable[[str], str] | None = None,
) -> bytes:
    """A signed document. `golden` are the active indices; all others are present and inactive, as in genuine ones."""
    content = _content(product, edition, version, golden)
    if edit is not None:
        content = edit(content)
    return sign_rim(content, key=key, certificates=certificates)


def sign_rim(content: str, *, key: SigningKey, certificates: Sequence[bytes]) -> bytes:
    """Add the enveloped signature, as the last child, to a document without one."""
    canonical = etree.tostring(etree.fromstring(content.encode()), method="c14n")
    digest = base64.b64encode(hashlib.sha384(canonical).digest()).decode()
    blocks = "".join(f"<ds:X509Certificate>{base64.encodebytes(c).decode()}</ds:X509Certificate>" for c in certificates)
    template = (
        f'<ds:Signature xmlns:ds="{DSIG}"><ds:SignedInfo><ds:CanonicalizationMethod Algorithm="{C14N11}"/>'
        f'<ds:SignatureMethod Algorithm="{ECDSA_SHA384}"/><ds:Reference URI=""><ds:Transforms>'
        f'<ds:Transform Algorithm="{ENVELOPED}"/><ds:Transform Algorithm="{C14N11}"/></ds:Transforms>'
        f'<ds:DigestMethod Algorithm="{SHA384}"/><ds:DigestValue>{digest}</ds:DigestValue></ds:Reference>'
        "</ds:SignedInfo><ds:SignatureValue>@</ds:SignatureValue>"
        f"<ds:KeyInfo><ds:X509Data>{blocks}</ds:X509Data></ds:KeyInfo></ds:Signature>"
    )
    end = content.rindex("</SoftwareIdentity>")
    document = content[:end] + template + content[end:]
    signed_info = etree.fromstring(document.encode())[-1][0]
    signature = sign_raw(key, etree.tostring(signed_info, method="c14n"))
    return document.replace(
        "<ds:SignatureValue>@<", f"<ds:SignatureValue>{base64.b64encode(signature).decode()}<"
    ).encode()


def _content(product: str, edition: str, version: str, golden: Mapping[int, Sequence[bytes]]) -> str:
    tag_id = hashlib.sha384(f"{product} {version}".encode()).hexdigest()
    maker = "NVIDIA Corporation"
    lines = [
        (
            f'<SoftwareIdentity xmlns="{SWID}" xmlns:ns0="{SWID}" xmlns:ns2="{HASH}" corpus="false" name="{product}" '
            f'patch="false" supplemental="false" tagId="{tag_id}" version="1.0" tagVersion="0">'
        ),
        f'    <ns0:Entity name="{maker}" role="softwareCreator tagCreator"/>',
        (
            f'    <ns0:Meta xmlns:ns1="{TCG}" colloquialVersion="{version}" edition="{edition}" product="{product}" '
            f'revision="r1" PayloadType="direct" ns1:BindingSpec="RIMIM" ns1:BindingSpecVersion="1.01" '
            f'ns1:PlatformManufacturerId="5703" ns1:PlatformManufacturerStr="{maker}" ns1:PlatformModel="{product}" '
            f'ns1:FirmwareManufacturer="{maker}" ns1:FirmwareManufacturerId="5703"/>'
        ),
        f'    <ns0:Payload xmlns:SHA384="{HASH}">',
        *(_resource(index, golden.get(index)) for index in range(_RESOURCES)),
        "    </ns0:Payload>",
        "</SoftwareIdentity>",
    ]
    return "\n".join(lines)


def _resource(index: int, values: Sequence[bytes] | None) -> str:
    digests = " ".join(f'ns2:Hash{n}="{value.hex()}"' for n, value in enumerate(values or (bytes(48),)))
    return (
        f'        <ns0:Resource type="Measurement" index="{index}" active="{values is not None}" '
        f'alternatives="{len(values or (b"",))}" {digests} name="Measurement_{index}" size="48"/>'
    )
