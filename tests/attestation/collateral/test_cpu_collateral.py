"""AMD and Intel collateral: URLs, offline copies, and Intel's three shapes brought into one, byte for byte."""

import json
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from attestation.errors import Malformed, Misconfigured
from attestation.formats.collateral import Kind
from attestation.formats.snp_tcb import Product, Tcb
from attestation.sources.amd_kds import (
    KDS,
    fetch_authorities,
    fetch_vcek,
    hwid,
    read_offline_copy,
    vcek_url,
)
from attestation.sources.collateral import Collateral
from attestation.sources.http import Answer, Fetcher
from attestation.sources.intel_pcs import (
    ROOT_CRL_URL,
    fetch_tdx,
    pck_crl_url,
    qe_identity_url,
    read_dcap_json,
    read_platform_collaterals,
    split_signed,
    tcb_url,
)
from attestation.verify.snp_trust import LeafKind
from tests.attestation.collateral.conftest import NOW

CHIP = bytes(range(64))
TURIN_CHIP = bytes(range(1, 9)) + bytes(56)
TCB = Tcb(bootloader=9, tee=0, snp=23, microcode=72)


class Recorded(Fetcher):
    """A fetcher that answers from a table and opens nothing."""

    def __init__(self, answers: dict[str, tuple[bytes, dict[str, str]]]) -> None:
        super().__init__()
        self.answers = answers

    def get(self, url: str, *, max_bytes: int) -> Answer:
        body, headers = self.answers[url]
        assert len(body) <= max_bytes
        return Answer(url=url, body=body, headers=headers)


def test_kds_urls() -> None:
    spls = "blSPL=09&teeSPL=00&snpSPL=23&ucodeSPL=72"
    assert vcek_url(Product.GENOA, CHIP, TCB) == f"{KDS}/vcek/v1/Genoa/{CHIP.hex()}?{spls}"
    turin = Tcb(bootloader=1, tee=1, snp=1, microcode=67, fmc=0)
    assert vcek_url(Product.TURIN, TURIN_CHIP, turin) == (
        f"{KDS}/vcek/v1/Turin/0102030405060708?blSPL=01&teeSPL=01&snpSPL=01&ucodeSPL=67&fmcSPL=00"
    )
    for product, chip in ((Product.TURIN, CHIP), (Product.GENOA, CHIP[:8]), (Product.GENOA, b"")):
        with pytest.raises(Malformed):
            hwid(chip, product)


def test_kds_fetch_and_lookup(vectors: Path) -> None:
    leaf = (vectors / "snp" / "test-vcek.der").read_bytes()
    chain = (vectors / "snp" / "genoa_ask_ark_asvk.pem").read_bytes()
    fetcher = Recorded(
        {
            vcek_url(Product.GENOA, CHIP, TCB): (leaf, {}),
            vcek_url(Product.TURIN, TURIN_CHIP, TCB): (leaf, {}),
            f"{KDS}/vcek/v1/Genoa/cert_chain": (chain, {}),
            f"{KDS}/vcek/v1/Genoa/crl": (b"\x30crl", {}),
        }
    )
    collateral = Collateral.of(
        [
            fetch_vcek(fetcher, Product.GENOA, CHIP, TCB, now=NOW),
            fetch_vcek(fetcher, Product.TURIN, TURIN_CHIP, TCB, now=NOW),
            *fetch_authorities(fetcher, Product.GENOA, LeafKind.VCEK, now=NOW),
        ]
    )
    assert collateral.veks(chip_id=CHIP, reported_tcb=b"", product=Product.GENOA) == (leaf,)
    assert collateral.veks(chip_id=TURIN_CHIP, reported_tcb=b"", product=Product.TURIN) == (leaf,)
    assert collateral.veks(chip_id=TURIN_CHIP, reported_tcb=b"", product=None) == (leaf,)
    assert collateral.veks(chip_id=CHIP[::-1], reported_tcb=b"", product=None) == ()
    assert collateral.authorities(Product.GENOA) == (chain,)
    assert collateral.authorities(Product.TURIN) == ()
    assert collateral.crl(Product.GENOA, LeafKind.VCEK) == b"\x30crl"
    assert collateral.crl(Product.GENOA, LeafKind.VLEK) is None


def test_offline_copy(vectors: Path, tmp_path: Path) -> None:
    leaf = (vectors / "snp" / "test-vcek.der").read_bytes()
    chip = tmp_path / "vcek" / CHIP.hex()
    chip.mkdir(parents=True)
    (chip / "bl09_tee00_snp23_ucode72_vcek.der").write_bytes(leaf)
    (chip / "notes.txt").write_bytes(b"ignored")
    (found,) = read_offline_copy(tmp_path, now=NOW)
    assert (found.kind, found.id, found.content) == (Kind.VCEK, CHIP.hex(), leaf)
    (chip / "vcek.der").write_bytes(b"not a certificate")
    with pytest.raises(Malformed):
        list(read_offline_copy(tmp_path, now=NOW))
    with pytest.raises(Misconfigured) as caught:
        list(read_offline_copy(tmp_path / "vcek", now=NOW))
    assert caught.value.code == "kds-layout"


@pytest.fixture
def dcap(vectors: Path) -> dict[str, str]:
    value = json.loads((vectors / "tdx" / "dcap_tdx_quote_collateral.json").read_bytes())
    assert isinstance(value, dict)
    return value


def envelope(member: str, inner: str, signature: str) -> bytes:
    return f'{{"{member}":{inner},"signature":"{signature}"}}'.encode()


def pcs_answers(dcap: dict[str, str]) -> dict[str, tuple[bytes, dict[str, str]]]:
    return {
        tcb_url("b0c06f000000"): (
            envelope("tcbInfo", dcap["tcb_info"], dcap["tcb_info_signature"]),
            {"tcb-info-issuer-chain": quote(dcap["tcb_info_issuer_chain"])},
        ),
        qe_identity_url(): (
            envelope("enclaveIdentity", dcap["qe_identity"], dcap["qe_identity_signature"]),
            {"sgx-enclave-identity-issuer-chain": quote(dcap["qe_identity_issuer_chain"])},
        ),
        pck_crl_url("platform"): (
            bytes.fromhex(dcap["pck_crl"]),
            {"sgx-pck-crl-issuer-chain": quote(dcap["pck_crl_issuer_chain"])},
        ),
        ROOT_CRL_URL: (bytes.fromhex(dcap["root_ca_crl"]), {}),
    }


def platform_file(dcap: dict[str, str], **changes: Any) -> bytes:
    collaterals: dict[str, Any] = {
        "version": 4,
        "tcbinfos": [
            {"fmspc": "00906ED50000", "sgx_tcbinfo": {}},
            {
                "fmspc": "B0C06F000000",
                "tdx_tcbinfo": {"tcbInfo": json.loads(dcap["tcb_info"]), "signature": dcap["tcb_info_signature"]},
            },
        ],
        "pckcacrl": {"platformCrl": dcap["pck_crl"], "processorCrl": ""},
        "tdqeidentity": envelope("enclaveIdentity", dcap["qe_identity"], dcap["qe_identity_signature"]).decode(),
        "certificates": {
            "SGX-PCK-Certificate-Issuer-Chain": {"PLATFORM": quote(dcap["pck_crl_issuer_chain"])},
            "TCB-Info-Issuer-Chain": dcap["tcb_info_issuer_chain"],
            "SGX-Enclave-Identity-Issuer-Chain": dcap["qe_identity_issuer_chain"],
        },
        "rootcacrl": dcap["root_ca_crl"],
    }
    return json.dumps({"platforms": [], "collaterals": collaterals | changes}, indent=2).encode()


def test_three_shapes_give_one_document(dcap: dict[str, str]) -> None:
    direct = read_dcap_json(json.dumps(dcap).encode(), now=NOW, source="dcap")
    fetched = fetch_tdx(Recorded(pcs_answers(dcap)), "B0C06F000000", "platform", now=NOW)
    (from_file,) = read_platform_collaterals(platform_file(dcap), now=NOW, source="file")
    assert direct.id == "b0c06f000000"
    assert direct.content == fetched.content == from_file.content
    assert json.loads(direct.content) == dcap
    collateral = Collateral.of([direct, fetched, from_file])
    assert set(collateral.tdx("B0C06F000000")) == {direct.content}


def test_pcs_answers_keep_signed_bytes(vectors: Path, dcap: dict[str, str]) -> None:
    """Genuine PCS files: Intel's TCB signing key verifies exactly the slice that is kept."""
    certificate = x509.load_pem_x509_certificates(dcap["tcb_info_issuer_chain"].encode())[0]
    key = certificate.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    for name, member in (("tcbInfo.json", "tcbInfo"), ("enclaveIdentity.json", "enclaveIdentity")):
        inner, signature = split_signed((vectors / "tdx" / name).read_bytes(), member)
        raw = bytes.fromhex(signature)
        der = encode_dss_signature(int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:], "big"))
        key.verify(der, inner.encode(), ec.ECDSA(hashes.SHA256()))
        assert sha256(inner.encode()).digest()


@pytest.mark.parametrize(
    ("body", "code"),
    [
        pytest.param(b'{"signature":"%s","tcbInfo":{}}' % (b"0" * 128), "tdx-envelope", id="order"),
        pytest.param(b'{"tcbInfo":{},"signature":"00"}', "tdx-envelope", id="short-signature"),
        pytest.param(b'{"tcbInfo":{},"x":1,"signature":"%s"}' % (b"0" * 128), "tdx-envelope", id="extra-member"),
        pytest.param(
            b'{"tcbInfo":{"a":1,"a":2},"signature":"%s"}' % (b"0" * 128), "json-duplicate-key", id="duplicate"
        ),
        pytest.param(b"[]", "json-type", id="list"),
        pytest.param(b"\xff", "json", id="not-utf8"),
        pytest.param(b" " * 2_000_000, "json-size", id="large"),
    ],
)
def test_pcs_answers_refused(body: bytes, code: str) -> None:
    with pytest.raises(Malformed) as caught:
        split_signed(body, "tcbInfo")
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        pytest.param({"tcbinfos": {}}, "tdx-members", id="tcbinfos"),
        pytest.param({"rootcacrl": "xyz"}, "tdx-hex", id="root-crl"),
        pytest.param({"pckcacrl": {"platformCrl": "abc"}}, "tdx-hex", id="odd-crl"),
        pytest.param({"tdqeidentity": None}, "json-type", id="identity"),
        pytest.param({"certificates": []}, "json-type", id="certificates"),
        pytest.param(
            {"certificates": {"SGX-PCK-Certificate-Issuer-Chain": {"PLATFORM": "x"}, "TCB-Info-Issuer-Chain": "y"}},
            "tdx-chain",
            id="chains",
        ),
    ],
)
def test_platform_files_refused(dcap: dict[str, str], changes: dict[str, Any], code: str) -> None:
    with pytest.raises(Malformed) as caught:
        list(read_platform_collaterals(platform_file(dcap, **changes), now=NOW, source="file"))
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        pytest.param({"extra": ""}, "tdx-members", id="extra"),
        pytest.param({"pck_crl": "zz"}, "tdx-hex", id="hex"),
        pytest.param({"tcb_info_signature": "00"}, "tdx-signature", id="signature"),
        pytest.param({"tcb_info": "{}"}, "json-type", id="no-fmspc"),
        pytest.param({"tcb_info": '{"fmspc":"../x"}'}, "tdx-fmspc", id="fmspc"),
        pytest.param({"qe_identity": 7}, "json-type", id="type"),
    ],
)
def test_dcap_json_refused(dcap: dict[str, str], changes: dict[str, Any], code: str) -> None:
    with pytest.raises(Malformed) as caught:
        read_dcap_json(json.dumps(dcap | changes).encode(), now=NOW, source="dcap")
    assert caught.value.code == code


def test_another_family_is_refused(dcap: dict[str, str]) -> None:
    answers = pcs_answers(dcap)
    answers[tcb_url("00806f050000")] = answers[tcb_url("b0c06f000000")]
    with pytest.raises(Malformed) as caught:
        fetch_tdx(Recorded(answers), "00806f050000", "platform", now=NOW)
    assert caught.value.code == "tdx-fmspc"
