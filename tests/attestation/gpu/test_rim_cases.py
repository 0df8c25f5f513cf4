"""Cases gpu-095 to gpu-138: reference documents (gpu-attestation.md 8.6)."""

import base64
import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from attestation.errors import AttestationError, Misconfigured
from attestation.findings import Result
from attestation.formats.nv_report import GpuFacts
from attestation.formats.rim import parse_rim_content
from attestation.formats.rim_signature import parse_signed_rim
from attestation.simulate.nv_products import PRODUCTS
from attestation.simulate.nv_rim import sign_rim
from attestation.simulate.nvidia import NvidiaForge
from attestation.simulate.pki import mint
from attestation.sources.nv_rim import parse_rim_answer
from attestation.values import Architecture, Level, Nonce
from attestation.verify.cache import BoundedCache
from attestation.verify.nv_gpu import prove_device
from attestation.verify.nv_policy import ExpiryMode, SignerExpiry
from attestation.verify.rim import VerifiedRim, check_id, gpu_needs, require_signer_time, verify_rim
from attestation.verify.roots import Anchors, NvTrust
from tests.attestation.gpu.support import (
    BLACKWELL,
    FORGE,
    FORGED,
    HOPPER,
    LS10,
    NONCE,
    NOW,
    falls_short,
    find,
    policy,
    refused,
    verify,
    with_rim,
)

DRIVER_ID, VBIOS_ID = PRODUCTS[HOPPER].driver_rim, PRODUCTS[HOPPER].vbios_rim
DRIVER, VBIOS = FORGE.rim(HOPPER, driver=True), FORGE.rim(HOPPER, driver=False)
DEVICE = FORGE.device(nonce=NONCE)
Text = Callable[[str], str]


def check(document: bytes) -> VerifiedRim:
    return verify_rim(document, anchors=FORGE.trust.rim_roots)


def edited(edit: Text, *, driver: bool = True) -> bytes:
    """Changed after it was signed."""
    return edit((DRIVER if driver else VBIOS).decode()).encode()


def resigned(edit: Text) -> bytes:
    """Changed and signed again, by the right signer."""
    return FORGE.rim(HOPPER, driver=True, edit=edit)


def sub(old: str, new: str, count: int = 1) -> Text:
    def edit(text: str) -> str:
        assert old in text, old
        return text.replace(old, new, count)

    return edit


HASH = FORGE.measurements(HOPPER)[7].hex()
SIGNATURE_START, SIGNATURE_END = "<ds:Signature ", "</ds:Signature>"


def without_signature(text: str) -> str:
    return text[: text.index(SIGNATURE_START)] + text[text.index(SIGNATURE_END) + len(SIGNATURE_END) :]


def signature_of(text: str) -> str:
    return text[text.index(SIGNATURE_START) : text.index(SIGNATURE_END) + len(SIGNATURE_END)]


def signature_first(text: str) -> str:
    start = text.index("    <ns0:Entity")
    bare = without_signature(text)
    return bare[:start] + signature_of(text) + bare[start:]


def other_digest(text: str) -> str:
    start = text.index("<ds:DigestValue>") + len("<ds:DigestValue>")
    return text[:start] + base64.b64encode(bytes(48)).decode() + text[start + 64 :]


def other_signature(text: str) -> str:
    start = text.index("<ds:SignatureValue>") + len("<ds:SignatureValue>")
    return text[:start] + base64.b64encode(b"\x01" * 96).decode() + text[start + 128 :]


def wrapped(text: str) -> str:
    """The signed document inside another one whose payload is the attacker's."""
    evil = without_signature(text).replace(HASH, "00" * 48)
    end = evil.index("</SoftwareIdentity>")
    return evil[:end] + text + evil[end:]


def wrapped_with_signature(text: str) -> str:
    """The same, and the signature is where it has to be."""
    evil = without_signature(text).replace(HASH, "00" * 48)
    end = evil.index("</SoftwareIdentity>")
    return evil[:end] + without_signature(text) + signature_of(text) + evil[end:]


KEY_VALUE = "<ds:KeyValue>attacker</ds:KeyValue>"
META = '<ds:Object><ns0:Meta colloquialVersion="1.0"/></ds:Object>'
XSLT = '<ds:Transform Algorithm="http://www.w3.org/TR/1999/REC-xslt-19991116"/></ds:Transforms>'
C14N11 = "http://www.w3.org/2006/12/xml-c14n11"

SIGNATURES: list[tuple[str, bytes, str]] = [
    ("095-golden-value", edited(sub(HASH, "00" * 48)), "rim-digest"),
    ("096-signature-value", edited(other_signature), "rim-signature"),
    ("097-digest-value", edited(other_digest), "rim-digest"),
    ("098-no-signature", edited(without_signature), "rim-signature-count"),
    ("099-two-signatures", edited(lambda t: sub("</SoftwareIdentity>", signature_of(t) + "</SoftwareIdentity>")(t)),
     "rim-signature-count"),
    ("100-signature-first", edited(signature_first), "rim-signature-place"),
    ("101-object", edited(sub("</ds:Signature>", META + "</ds:Signature>")), "rim-signature-shape"),
    ("102-key-before", edited(sub("<ds:KeyInfo>", "<ds:KeyInfo>" + KEY_VALUE)), "rim-key-info"),
    ("103-key-after", edited(sub("</ds:X509Data>", "</ds:X509Data>" + KEY_VALUE)), "rim-key-info"),
    ("104-key-name", edited(sub("</ds:X509Data>", "</ds:X509Data><ds:KeyName>x</ds:KeyName>")), "rim-key-info"),
    ("105-retrieval", edited(sub("</ds:X509Data>", '</ds:X509Data><ds:RetrievalMethod URI="http://x/"/>')),
     "rim-key-info"),
    ("105-inside-x509-data", edited(sub("</ds:X509Data>", "<ds:X509CRL>AA==</ds:X509CRL></ds:X509Data>")),
     "rim-key-info"),
    ("106-hmac", edited(sub("http://www.w3.org/2001/04/xmldsig-more#ecdsa-sha384",
                            "http://www.w3.org/2001/04/xmldsig-more#hmac-sha384")), "rim-algorithm"),
    ("107-reference-id", edited(sub('URI=""', 'URI="#id"')), "rim-reference"),
    ("108-two-references", edited(lambda t: sub("</ds:SignedInfo>", t[t.index("<ds:Reference") : t.index(
        "</ds:SignedInfo>")] + "</ds:SignedInfo>")(t)), "rim-signature-shape"),
    ("109-xslt", edited(sub("</ds:Transforms>", XSLT)), "rim-transform"),
    ("109-xpath", edited(sub(f'<ds:Transform Algorithm="{C14N11}"/>',
                             '<ds:Transform Algorithm="http://www.w3.org/TR/1999/REC-xpath-19991116"/>')),
     "rim-transform"),
    ("110-exclusive", edited(sub(f'<ds:CanonicalizationMethod Algorithm="{C14N11}"/>',
                                 '<ds:CanonicalizationMethod Algorithm="http://www.w3.org/2001/10/xml-exc-c14n#"/>')),
     "rim-algorithm"),
    ("110-with-comments", edited(sub(f'<ds:Transform Algorithm="{C14N11}"/>',
                                     f'<ds:Transform Algorithm="{C14N11}#WithComments"/>')), "rim-transform"),
    ("111-sha1", edited(sub("http://www.w3.org/2001/04/xmldsig-more#sha384",
                            "http://www.w3.org/2000/09/xmldsig#sha1")), "rim-algorithm"),
    ("100-text-after", edited(sub("</ds:Signature>", "</ds:Signature>x")), "rim-signature-place"),
    ("100-element-after", edited(sub("</ds:Signature>", "</ds:Signature><ns0:Link/>")), "rim-signature-place"),
    ("101-text-first", edited(sub("<ds:SignedInfo>", "<ds:SignedInfo>x")), "rim-signature-shape"),
    ("101-text-between", edited(sub("</ds:SignedInfo>", "</ds:SignedInfo>x")), "rim-signature-shape"),
    ("101-attribute", edited(sub("<ds:SignedInfo>", '<ds:SignedInfo Id="x">')), "rim-algorithm"),
    ("101-text-in-a-method", edited(sub('ecdsa-sha384"/>', 'ecdsa-sha384">x</ds:SignatureMethod>')), "rim-signature-shape"),
    ("101-child-of-a-method", edited(sub('ecdsa-sha384"/>', 'ecdsa-sha384"><ds:x/></ds:SignatureMethod>')),
     "rim-signature-shape"),
    ("109-attribute", edited(sub("<ds:Transforms>", '<ds:Transforms Id="x">')), "rim-transform"),
    ("109-text-first", edited(sub("<ds:Transforms>", "<ds:Transforms>x")), "rim-signature-shape"),
    ("109-text-last", edited(sub("</ds:Transforms>", "x</ds:Transforms>")), "rim-signature-shape"),
    ("109-text-inside", edited(sub('enveloped-signature"/>', 'enveloped-signature">x</ds:Transform>')),
     "rim-signature-shape"),
    ("109-child", edited(sub('enveloped-signature"/>', 'enveloped-signature"><ds:XPath/></ds:Transform>')), "rim-transform"),
    ("109-other-element", edited(sub("<ds:Transform Algorithm", "<ns0:Transform Algorithm")), "rim-transform"),
    ("109-one", edited(sub(f'<ds:Transform Algorithm="{C14N11}"/>', "")), "rim-transform"),
    ("105-attribute", edited(sub("<ds:X509Data>", '<ds:X509Data Id="x">')), "rim-key-info"),
    ("105-text", edited(sub("<ds:X509Data>", "<ds:X509Data>x")), "rim-key-info"),
    ("105-no-certificate", edited(lambda t: t[: t.index("<ds:X509Data>") + 13] + t[t.index("</ds:X509Data>") :]),
     "rim-key-info"),
    ("105-nine-certificates", edited(sub("</ds:X509Data>", "<ds:X509Certificate>AA==</ds:X509Certificate>" * 5
                                         + "</ds:X509Data>")), "rim-key-info"),
    ("105-eight-certificates", edited(sub("</ds:X509Data>", "<ds:X509Certificate>AA==</ds:X509Certificate>" * 4
                                          + "</ds:X509Data>")), "certificate-syntax"),
    ("105-certificate-attribute", edited(sub("<ds:X509Certificate>", '<ds:X509Certificate Id="x">')), "rim-key-info"),
    ("105-certificate-child", edited(sub("</ds:X509Certificate>", "<ds:x/></ds:X509Certificate>")), "rim-key-info"),
    ("105-text-after-certificate", edited(sub("</ds:X509Certificate>", "</ds:X509Certificate>x")), "rim-key-info"),
    ("105-empty-certificate", edited(lambda t: t[: t.index("<ds:X509Certificate>")] + "<ds:X509Certificate/>"
                                     + t[t.index("</ds:X509Certificate>") + 21 :]), "certificate-size"),
    ("096-empty", edited(lambda t: t[: t.index("<ds:SignatureValue>")] + "<ds:SignatureValue/>"
                         + t[t.index("</ds:SignatureValue>") + 20 :]), "rim-signature-value"),
    ("096-short", edited(sub("</ds:SignatureValue>", "AAAA</ds:SignatureValue>")), "rim-signature-value"),
    ("097-not-base64", edited(sub("<ds:DigestValue>", "<ds:DigestValue>*")), "rim-signature-value"),
    ("112-wrapped", edited(wrapped), "rim-signature-count"),
    ("112-wrapped-with-signature", edited(wrapped_with_signature), "rim-digest"),
]  # fmt: skip


@pytest.mark.parametrize(("document", "code"), [pytest.param(d, c, id=f"gpu-{n}") for n, d, c in SIGNATURES])
def test_signature(document: bytes, code: str) -> None:
    refused(code, lambda: check(document))


DTD = '<!DOCTYPE x [<!ENTITY e "1">]>'
XXE = '<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]>'
LAUGHS = (
    "<!DOCTYPE x ["
    + "".join(f'<!ENTITY l{n} "{("&l" + str(n - 1) + ";") * 10 if n else "lol"}">' for n in range(10))
    + "]>"
)

SYNTAX: list[tuple[str, bytes, str]] = [
    ("113-comment", edited(sub("<ns0:Payload", "<!-- x --><ns0:Payload")),
     "rim-comment"),
    ("114-instruction", edited(sub("</ns0:Payload>", "<?x y?></ns0:Payload>")), "rim-instruction"),
    ("114-xml-declaration", b'<?xml version="1.0"?>' + DRIVER, "rim-instruction"),
    ("115-doctype", DTD.encode() + DRIVER, "rim-doctype"),
    ("116-external-entity", XXE.encode() + edited(sub("GH100", "&e;")), "rim-doctype"),
    ("117-billion-laughs", LAUGHS.encode() + edited(sub("GH100", "&l9;")), "rim-doctype"),
    ("118-50-MB", DRIVER + b" " * 50_000_000, "rim-size"),
    ("119-utf-16", DRIVER.decode().encode("utf-16"), "rim-encoding"),
    ("119-utf-32", DRIVER.decode().encode("utf-32-le"), "rim-encoding"),
    ("119-latin-1", DRIVER.replace(b"NVIDIA", b"NVIDI\xc1"), "rim-xml"),
    ("120-duplicate-attribute", edited(sub('index="7"', 'index="7" index="8"')), "rim-xml"),
    ("115-other-root", b"<x/>", "rim-shape"),
    ("115-relative-namespace", edited(sub("<SoftwareIdentity ", '<SoftwareIdentity xmlns:q="q" ')), "rim-xml"),
    ("113-cdata", edited(sub("</ns0:Payload>", "<![CDATA[x]]></ns0:Payload>")), "rim-cdata"),
]  # fmt: skip


@pytest.mark.parametrize(("document", "code"), [pytest.param(d, c, id=f"gpu-{n}") for n, d, c in SYNTAX])
def test_syntax(document: bytes, code: str) -> None:
    refused(code, lambda: check(document))


RESOURCE_7 = f'index="7" active="True" alternatives="1" ns2:Hash0="{HASH}" name="Measurement_7" size="48"'


def resource(new: str) -> bytes:
    return resigned(sub(RESOURCE_7, new))


def row(*, index: str = "7", active: str = "True", count: str = "1", value: str = HASH, size: str = "48") -> bytes:
    return resource(
        f'index="{index}" active="{active}" alternatives="{count}" ns2:Hash0="{value}" name="Measurement_7" size="{size}"'
    )


VALUES: list[tuple[str, bytes, str]] = [
    ("128-no-alternatives", row(count="0"), "rim-alternatives"),
    ("128-no-hash", resource(RESOURCE_7.replace(f' ns2:Hash0="{HASH}"', "").replace('alternatives="1"', 'alternatives="0"')),
     "rim-shape"),
    ("129-more-than-there-are", row(count="2"), "rim-alternatives"),
    ("129-less-than-there-are", resource(RESOURCE_7.replace("name=", f'ns2:Hash1="{HASH}" name=')), "rim-alternatives"),
    ("129-gap", resource(RESOURCE_7.replace('"1"', '"2"').replace("name=", f'ns2:Hash2="{HASH}" name=')), "rim-shape"),
    ("130-47-bytes", row(value=HASH[:-2]), "rim-hash"),
    ("130-upper-case", row(value=HASH.upper()), "rim-hash"),
    ("130-not-hex", row(value="g" + HASH[1:]), "rim-hash"),
    ("131-duplicate-index", row(index="8"), "rim-index-duplicate"),
    ("132-index-64", row(index="64"), "rim-index"),
    ("132-index-negative", row(index="-1"), "rim-index"),
    ("132-index-07", row(index="07"), "rim-index"),
    ("133-active-true", row(active="true"), "rim-active"),
    ("133-active-TRUE", row(active="TRUE"), "rim-active"),
    ("133-active-empty", row(active=""), "rim-active"),
    ("134-none-active", resigned(lambda t: t.replace('active="True"', 'active="False"')), "rim-no-active"),
    ("136-size-32", row(size="32"), "rim-digest-size"),
    ("136-unknown-attribute", resource(RESOURCE_7 + ' more="1"'), "rim-shape"),
    ("136-other-element", resigned(sub("<ns0:Resource ", "<ns0:File ")), "rim-shape"),
    ("136-child", resigned(sub('name="Measurement_7" size="48"/>', 'name="Measurement_7" size="48"><ns0:x/></ns0:Resource>')),
     "rim-shape"),
    ("136-other-kind", resigned(sub('type="Measurement" index="7"', 'type="Hash" index="7"')), "rim-digest-size"),
    ("136-eleven-alternatives", resource(RESOURCE_7.replace('alternatives="1"', 'alternatives="11"').replace(
        " name=", "".join(f' ns2:Hash{n}="{HASH}"' for n in range(1, 11)) + " name=")), "rim-shape"),
    ("136-no-payload", resigned(lambda t: t[: t.index("    <ns0:Payload")] + t[t.index("</ns0:Payload>") + 14 :]), "rim-shape"),
    ("136-link", resigned(sub("    <ns0:Payload", "    <ns0:Link/><ns0:Payload")), "rim-shape"),
    ("136-root-attribute", resigned(sub('corpus="false"', 'corpus="false" media="x"')), "rim-shape"),
    ("136-entity-attribute", resigned(sub('role="softwareCreator', 'thumbprint="x" role="softwareCreator')), "rim-shape"),
    ("136-entity-child", resigned(sub('tagCreator"/>', 'tagCreator"><ns0:x/></ns0:Entity>')), "rim-shape"),
    ("136-meta-attribute", resigned(sub('edition="GPU"', 'edition="GPU" summary="x"')), "rim-shape"),
    ("136-meta-without-revision", resigned(sub(' revision="r1"', "")), "rim-shape"),
    ("136-meta-child", resigned(sub('FirmwareManufacturerId="5703"/>', 'FirmwareManufacturerId="5703"><ns0:x/></ns0:Meta>')),
     "rim-shape"),
    ("136-payload-attribute", resigned(sub("<ns0:Payload ", '<ns0:Payload more="x" ')), "rim-shape"),
    ("136-indirect", resigned(sub('PayloadType="direct"', 'PayloadType="indirect"')), "rim-shape"),
    ("136-patch-of-a-tag", resigned(sub('tagVersion="0"', 'tagVersion="1"')), "rim-shape"),
    ("136-two-products", resigned(sub('name="GH100"', 'name="GB100"')), "rim-shape"),
    ("136-unknown-element", resigned(sub("</ns0:Payload>", "<ns0:Evil/></ns0:Payload>")), "rim-shape"),
]  # fmt: skip


@pytest.mark.parametrize(("document", "code"), [pytest.param(d, c, id=f"gpu-{n}") for n, d, c in VALUES])
def test_values(document: bytes, code: str) -> None:
    """Signed by the right signer, and still not the shape that reference documents have."""
    refused(code, lambda: check(document))


@pytest.mark.parametrize("name", ["What?", "Ha!", "a ? b ! c"])
def test_marks_in_text_are_no_markup(name: str) -> None:
    assert check(resigned(sub('name="Measurement_7"', f'name="{name}"'))).content.golden[7].name == name


def test_a_document_is_bytes() -> None:
    for value in (DRIVER.decode(), bytearray(DRIVER)):
        with pytest.raises(TypeError):
            parse_signed_rim(value)  # type: ignore[arg-type]


def test_the_last_index_and_as_many_alternatives_as_there_may_be() -> None:
    many = "".join(f' ns2:Hash{n}="{n:096x}"' for n in range(10))
    text = RESOURCE_7.replace(f' ns2:Hash0="{HASH}"', many).replace('alternatives="1"', 'alternatives="10"')
    golden = check(resource(text)).content.golden
    assert golden[7].alternatives == tuple(n.to_bytes(48, "big") for n in range(10))
    last = resigned(sub('index="63" active="False"', 'index="63" active="True"'))
    assert 63 in check(last).content.golden


@pytest.mark.parametrize(
    ("size", "code"), [(256 * 1024, "rim-xml"), (256 * 1024 + 1, "rim-size")], ids=["gpu-118-256k", "gpu-118-more"]
)
def test_documents_have_a_size(size: int, code: str) -> None:
    refused(code, lambda: check((DRIVER + b"<").ljust(size)))


FITS: list[tuple[str, str, bytes, str]] = [
    ("121-driver-of-another-version", DRIVER_ID, FORGE.rim(HOPPER, driver=True, version="550.144.03"), "rim-version"),
    ("122-vbios-of-another-sku", VBIOS_ID, FORGE.rim(HOPPER, driver=False, version="96.00.74.00.01"), "rim-version"),
    ("123-vbios-in-driver-slot", DRIVER_ID, VBIOS, "rim-slot"),
    ("123-driver-in-vbios-slot", VBIOS_ID, DRIVER, "rim-slot"),
    ("124-gb100-for-gh100", DRIVER_ID, FORGE.rim(BLACKWELL, driver=True), "rim-product"),
    ("124-switch-for-gpu", VBIOS_ID, FORGE.rim(LS10, driver=False), "rim-product"),
    ("127-self-signed", DRIVER_ID,
     FORGE.rim(HOPPER, driver=True, specs=NvidiaForge(seed="other").rim_specs(HOPPER)), "chain-root"),
    ("127-no-chain", DRIVER_ID, FORGE.rim(HOPPER, driver=True, specs=FORGE.rim_specs(HOPPER)[:1]), "chain-length"),
]  # fmt: skip


@pytest.mark.parametrize(("rim_id", "document", "code"), [pytest.param(i, d, c, id=f"gpu-{n}") for n, i, d, c in FITS])
def test_fit(rim_id: str, document: bytes, code: str) -> None:
    """A valid document that is not this device's: named, and the device is authentic at most."""
    falls_short(verify(DEVICE, with_rim(rim_id, document)), code)


@pytest.mark.parametrize(
    ("others", "level"),
    [pytest.param(15, Level.TRUSTED, id="gpu-137-16th"), pytest.param(16, Level.AUTHENTIC, id="gpu-137-17th")],
)
def test_so_many_documents_of_one_id_are_looked_at(others: int, level: Level) -> None:
    assert verify(DEVICE, with_rim(DRIVER_ID, *[b"<"] * others, DRIVER)).level is level


@pytest.mark.parametrize(
    ("arch", "chip_info", "product"),
    [
        pytest.param(HOPPER, "gh999", "GH100", id="gpu-124-hopper"),
        pytest.param(BLACKWELL, "gb102", "GB102", id="gpu-124-blackwell-says-its-chip"),
        pytest.param(BLACKWELL, "", "GB100", id="gpu-124-blackwell-does-not"),
    ],
)
def test_which_product_a_document_must_name(arch: Architecture, chip_info: str, product: str) -> None:
    evidence = FORGE.device(arch, nonce=NONCE)
    proof = prove_device(evidence.report, evidence.chain, FORGED, nonce=Nonce(NONCE))
    assert isinstance(proof.facts, GpuFacts)
    needs = gpu_needs(proof.certificate, replace(proof.facts, chip_info=chip_info))
    assert [need.product for need in needs] == [product, product]
    assert product in needs[0].rim_id


@pytest.mark.parametrize("_case", [pytest.param(None, id="gpu-125-debug-root")])
def test_debug_root(vectors: Path, _case: None) -> None:
    """The recorded document under NVIDIA's debug root; such a root cannot even be configured."""
    document = (vectors / "nvidia/rim/incorrect_cert_chain_driver_rim.xml").read_bytes()
    refused("debug-root", lambda: verify_rim(document, anchors=NvTrust.production().rim_roots))
    debug = bytes.fromhex("80addca88e061ffe9a60729791ee77a9abdc22c15374b3984e4a5fd28510ddf5")
    with pytest.raises(Misconfigured):
        Anchors(keys=frozenset({debug}))


EXPIRED_SPECS = [replace(FORGE.rim_specs(HOPPER)[0], not_after=NOW - timedelta(days=10)), *FORGE.rim_specs(HOPPER)[1:]]
EXPIRED = FORGE.rim(HOPPER, driver=True, specs=EXPIRED_SPECS)
SEEN = {hashlib.sha256(EXPIRED).hexdigest(): NOW - timedelta(days=11)}


@pytest.mark.parametrize(
    ("expiry", "level"),
    [
        pytest.param(SignerExpiry(), Level.AUTHENTIC, id="gpu-126-strict"),
        pytest.param(
            SignerExpiry(mode=ExpiryMode.FIRST_SEEN, first_seen=SEEN), Level.TRUSTED, id="gpu-126-valid-when-first-seen"
        ),
        pytest.param(SignerExpiry(mode=ExpiryMode.FIRST_SEEN), Level.AUTHENTIC, id="gpu-126-never-seen"),
        pytest.param(
            SignerExpiry(mode=ExpiryMode.FIRST_SEEN, first_seen=dict.fromkeys(SEEN, NOW - timedelta(days=9))),
            Level.AUTHENTIC, id="gpu-126-seen-too-late",
        ),
        pytest.param(
            SignerExpiry(mode=ExpiryMode.GRACE, grace=timedelta(days=10)), Level.TRUSTED, id="gpu-126-within-grace"
        ),
        pytest.param(
            SignerExpiry(mode=ExpiryMode.GRACE, grace=timedelta(days=9)), Level.AUTHENTIC, id="gpu-126-after-grace"
        ),
    ],
)  # fmt: skip
def test_expired_signer(expiry: SignerExpiry, level: Level) -> None:
    collateral = replace(with_rim(DRIVER_ID, EXPIRED), policy=policy(signer_expiry=expiry).policy)
    device = verify(DEVICE, collateral)
    assert device.level is level
    if level is Level.AUTHENTIC:
        falls_short(device, "rim-signer-expired")


@pytest.mark.parametrize("_case", [pytest.param(None, id="gpu-126-time-is-judged-on-every-use")])
def test_cached_document_expires(_case: None) -> None:
    """A document that verified yesterday is not good for ever: the cache knows no time."""
    cache: BoundedCache[VerifiedRim] = BoundedCache(4)
    first = verify_rim(EXPIRED, anchors=FORGE.trust.rim_roots, cache=cache)
    require_signer_time(first, SignerExpiry(), NOW - timedelta(days=11))
    again = verify_rim(EXPIRED, anchors=FORGE.trust.rim_roots, cache=cache)
    assert again is first
    refused("rim-signer-expired", lambda: require_signer_time(again, SignerExpiry(), NOW))


@pytest.mark.parametrize("_case", [pytest.param(None, id="gpu-135-index-in-both")])
def test_index_conflict(_case: None) -> None:
    golden = {i: (v,) for i, v in FORGE.measurements(HOPPER).items() if i in (7, 9, *range(21, 41))}
    document = FORGE.rim(HOPPER, driver=True, golden=golden)
    device = verify(DEVICE, with_rim(DRIVER_ID, document))
    falls_short(device, "rim-index-conflict")
    assert find(device.findings, "rim-index-conflict").got == "[9]"


@pytest.mark.parametrize("_case", [pytest.param(None, id="gpu-137-older-re-issue")])
def test_older_document_of_a_pinned_id(_case: None) -> None:
    """Two documents under one id; policy pins the newer, retires the older, or lets the matching one decide."""
    newer = DRIVER
    older = FORGE.rim(HOPPER, driver=True, golden={7: (bytes(48),)})
    both = with_rim(DRIVER_ID, older, newer)
    device = verify(DEVICE, both)
    assert device.level is Level.TRUSTED
    assert device.claims["cgpu-driver-rim-sha256"] == hashlib.sha256(newer).hexdigest()
    pin = {DRIVER_ID: frozenset({hashlib.sha256(newer).hexdigest()})}
    only_older = replace(with_rim(DRIVER_ID, older), policy=policy(rim_pins=pin).policy)
    falls_short(verify(DEVICE, only_older), "rim-not-pinned")
    retired = frozenset({hashlib.sha256(newer).hexdigest()})
    withdrawn = replace(with_rim(DRIVER_ID, newer), policy=policy(retired_rims=retired).policy)
    falls_short(verify(DEVICE, withdrawn), "rim-retired")


ANSWER = {
    "id": DRIVER_ID,
    "rim": base64.b64encode(DRIVER).decode(),
    "sha256": hashlib.sha256(DRIVER).hexdigest(),
    "rim_format": "TCG",
}


@pytest.mark.parametrize(
    ("change", "code"),
    [
        pytest.param({"id": VBIOS_ID}, "rim-answer-id", id="gpu-138-wrong-id"),
        pytest.param({"sha256": "00" * 32}, "rim-answer-digest", id="gpu-138-wrong-digest"),
        pytest.param({"rim": "*"}, "rim-answer-base64", id="gpu-138-bad-base64"),
        pytest.param({"rim_format": "CORIM"}, "rim-answer-format", id="gpu-138-corim"),
    ],
)
def test_service_answer(change: dict[str, str], code: str) -> None:
    assert parse_rim_answer(json.dumps(ANSWER).encode(), DRIVER_ID) == DRIVER
    refused(code, lambda: parse_rim_answer(json.dumps({**ANSWER, **change}).encode(), DRIVER_ID))


@pytest.mark.parametrize("rim_id", ["", "../x", "a/b", "a..b", "x" * 129, "a b", "\u0662"])
def test_unsafe_id(rim_id: str) -> None:
    refused("rim-id", lambda: check_id(rim_id))


def test_missing_document_is_named() -> None:
    device = verify(DEVICE, with_rim(DRIVER_ID))
    finding = find(device.findings, "rim-missing")
    assert (device.level, finding.expected, finding.result) == (Level.AUTHENTIC, DRIVER_ID, Result.SKIPPED)


def test_one_bad_document_beside_a_good_one_is_a_remark() -> None:
    device = verify(DEVICE, with_rim(DRIVER_ID, edited(other_signature), DRIVER))
    assert device.level is Level.TRUSTED
    assert find(device.findings, "rim-signature").result is Result.WARN


def test_mismatches_are_all_reported_and_explained() -> None:
    """Index 9 has its explanation; the nearest known document is named."""
    wrong = FORGE.device(nonce=NONCE, measurements={9: b"\x09" * 48, 12: b"\x12" * 48})
    values = FORGE.measurements(HOPPER)
    golden = {i: (values[i],) for i in PRODUCTS[HOPPER].vbios_indices} | {9: (b"\x09" * 48,), 12: (b"\x12" * 48,)}
    near = FORGE.rim(HOPPER, driver=False, version="96.00.99.00.01", golden=golden)
    device = verify(wrong, replace(FORGED, neighbours=(near,)))
    found = [f for f in device.findings if f.code == "measurement-mismatch"]
    assert [f.check for f in found] == ["measurement[9]", "measurement[12]"]
    assert "index 9 changes with the driver generation" in found[0].hint
    assert "96.00.99.00.01" in found[1].hint
    assert found[0].expected == values[9].hex()
    assert found[0].got == "09" * 48


def test_any_alternative_matches() -> None:
    values = FORGE.measurements(HOPPER)
    golden = {i: (bytes(48), b"\x01" * 48, values[i]) for i in PRODUCTS[HOPPER].driver_indices}
    assert verify(DEVICE, with_rim(DRIVER_ID, FORGE.rim(HOPPER, driver=True, golden=golden))).level is Level.TRUSTED


def test_two_ways_to_the_same_canonical_bytes() -> None:
    """The forge canonicalises with lxml, the verifier writes SignedInfo down; a changed namespace scope fits neither."""
    signed = parse_signed_rim(DRIVER)
    assert hashlib.sha384(signed.content).digest() == signed.digest_value
    assert parse_rim_content(signed.content).version == "590.12"
    specs = FORGE.rim_specs(HOPPER)
    certificates = [c.public_bytes(Encoding.DER) for c in mint(specs)]
    text = without_signature(DRIVER.decode()).replace('xmlns:ns2="', 'xmlns:extra="urn:x" xmlns:ns2="', 1)
    again = sign_rim(text, key=specs[0].key, certificates=certificates)
    assert check(again).content.version == "590.12"


def test_every_flipped_byte_of_a_document_is_refused() -> None:
    """No bit of a signed document can change without refusal, in steps over all of it."""
    accepted = []
    for offset in range(0, len(DRIVER) - 1, 61):
        changed = DRIVER[:offset] + bytes([DRIVER[offset] ^ 1]) + DRIVER[offset + 1 :]
        try:
            accepted.append((offset, check(changed)))
        except AttestationError:
            continue
    assert accepted == []
