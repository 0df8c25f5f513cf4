"""Certificates and lists that X.509 libraries choke on: whatever is changed, it is refused, with an error of ours.

`cryptography` decodes lazily and has no common base class for what it raises, so many positions are tried.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from attestation.errors import AttestationError
from attestation.formats.certs import parse_bundle
from attestation.formats.der import SEQUENCE, parse_element, parse_members
from attestation.formats.tdx_collateral import TdxCollateral, parse_tdx_collateral
from attestation.formats.tdx_quote import TdxQuote, parse_tdx_quote
from attestation.simulate.amd import SimulatedChip, simulated_amd_trust
from attestation.simulate.amd_pki import authorities, mint_crl
from attestation.simulate.intel import QuoteForm, simulated_intel_trust
from attestation.simulate.intel_pki import CollateralForm
from attestation.simulate.nvidia import NvidiaForge
from attestation.verify.chain import verify_path
from attestation.verify.roots import Anchors, NvTrust
from attestation.verify.snp_certs import AmdCache, split_pem, verify_vek
from attestation.verify.snp_trust import AmdTrust, ChainRules, CrlMode, LeafKind, StaticAmdCollateral
from attestation.verify.tdx_chain import X509Cache, verify_signatures, verify_windows
from attestation.verify.tdx_trust import IntelTrust

NOW = datetime(2026, 11, 21, tzinfo=UTC)
IN_2025 = datetime(2025, 7, 1, tzinfo=UTC)  # inside the windows of the genuine quote's collateral
STEP = 5  # all positions take minutes and find nothing that these do not
FLIPS = (0x01, 0x80, 0xFF)


def mutations(der: bytes) -> Iterator[bytes]:
    """One octet changed, at every STEP-th position: tags, lengths, identifiers, strings, times and keys.

    But the number of unused bits in front of the signature: no signature covers it, and readers may ignore it.
    """
    *_, signature = parse_members(parse_element(der, SEQUENCE).content)
    for position in set(range(0, len(der), STEP)) - {len(der) - len(signature.content)}:
        for flip in FLIPS:
            yield der[:position] + bytes([der[position] ^ flip]) + der[position + 1 :]


def refuses_all(der: bytes, judge: Callable[[bytes], object]) -> None:
    """The unchanged bytes are accepted; every change raises one of our errors."""
    judge(der)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # cryptography warns about what it is about to refuse
        for changed in mutations(der):
            with pytest.raises(AttestationError):
                judge(changed)


def swapped(ders: Sequence[bytes], position: int, der: bytes) -> tuple[bytes, ...]:
    return (*ders[:position], der, *ders[position + 1 :])


@dataclass(frozen=True)
class Amd:
    """A leaf, its authorities and their list."""

    leaf: bytes
    authorities: tuple[bytes, ...]  # ARK and ASK
    trust: AmdTrust
    crl: bytes | None = None

    def judge(self, leaf: bytes, known: Sequence[bytes], crl: bytes | None) -> object:
        lists = {} if crl is None else {(p, k): crl for p in self.trust.ark_keys for k in LeafKind}
        mode = CrlMode.OFF if crl is None else CrlMode.REQUIRE
        return verify_vek(
            leaf, LeafKind.VCEK, candidates=known, collateral=StaticAmdCollateral(crls=lists), trust=self.trust,
            rules=ChainRules(crl=mode), now=NOW, cache=AmdCache(),
        )  # fmt: skip


def forged_amd() -> Amd:
    chip = SimulatedChip()
    start = datetime(2026, 11, 1, tzinfo=UTC)
    crl = mint_crl(chip.product, this_update=start, next_update=datetime(2026, 12, 1, tzinfo=UTC))
    leaf = next(iter(chip.evidence().certificates.values()))
    return Amd(leaf, authorities(chip.product)[:2], simulated_amd_trust(), crl)


def genuine_amd(vectors: Path) -> Amd:
    leaf, ask, ark = (
        split_pem((vectors / "snp" / name).read_bytes())
        for name in ("genoa_vcek.pem", "genoa_ask.pem", "genoa_ask_ark_asvk.pem")
    )
    return Amd(leaf[0], (*ark, *ask), AmdTrust.production())


@pytest.mark.parametrize("part", ["leaf", "ark", "ask", "crl"])
def test_amd_forged(part: str) -> None:
    """Each part of AMD's chain, changed octet by octet."""
    amd = forged_amd()
    ark, ask = amd.authorities
    judge: dict[str, tuple[bytes, Callable[[bytes], object]]] = {
        "leaf": (amd.leaf, lambda der: amd.judge(der, amd.authorities, None)),
        "ark": (ark, lambda der: amd.judge(amd.leaf, (der, ask), None)),
        "ask": (ask, lambda der: amd.judge(amd.leaf, (ark, der), None)),
        "crl": (amd.crl or b"", lambda der: amd.judge(amd.leaf, amd.authorities, der)),
    }
    refuses_all(*judge[part])


def test_amd_genuine(vectors: Path) -> None:
    """A leaf that AMD made."""
    amd = genuine_amd(vectors)
    refuses_all(amd.leaf, lambda der: amd.judge(der, amd.authorities, None))


@dataclass(frozen=True)
class Intel:
    """A quote and its collateral."""

    quote: TdxQuote
    collateral: TdxCollateral
    trust: IntelTrust
    now: datetime

    def judge(self, quote: TdxQuote, collateral: TdxCollateral) -> None:
        cache = X509Cache()
        verify_windows(quote, collateral, self.trust, self.now, cache)
        verify_signatures(quote, collateral, self.trust, cache)


def forged_intel() -> Intel:
    quote, known = parse_tdx_quote(QuoteForm().sign()), parse_tdx_collateral(CollateralForm().render())
    return Intel(quote, known, simulated_intel_trust(), NOW)


def genuine_intel(vectors: Path) -> Intel:
    quote = parse_tdx_quote((vectors / "tdx/dcap_tdx_quote").read_bytes())
    known = parse_tdx_collateral((vectors / "tdx/dcap_tdx_quote_collateral.json").read_bytes())
    return Intel(quote, known, IntelTrust.production(), IN_2025)


def pem(der: bytes) -> bytes:
    import base64

    return b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(der) + b"-----END CERTIFICATE-----\n"


def intel_parts(intel: Intel) -> dict[str, tuple[bytes, Callable[[bytes], object]]]:
    quote, known = intel.quote, intel.collateral
    chain = [c.public_bytes(Encoding.DER) for c in x509.load_pem_x509_certificates(known.tcb_info.chain)]

    def quoted(position: int) -> tuple[bytes, Callable[[bytes], object]]:
        return quote.pck_chain[position], lambda der: intel.judge(
            replace(quote, pck_chain=swapped(quote.pck_chain, position, der)), known
        )

    def signer(der: bytes) -> None:
        changed = replace(known.tcb_info, chain=pem(der) + pem(chain[1]))
        intel.judge(quote, replace(known, tcb_info=changed))

    return {
        "pck": quoted(0),
        "pck-ca": quoted(1),
        "root": quoted(2),
        "tcb-signer": (chain[0], signer),
        "root-crl": (known.root_crl, lambda der: intel.judge(quote, replace(known, root_crl=der))),
        "pck-crl": (known.pck_crl, lambda der: intel.judge(quote, replace(known, pck_crl=der))),
    }


@pytest.mark.parametrize("part", ["pck", "pck-ca", "root", "tcb-signer", "root-crl", "pck-crl"])
def test_intel_forged(part: str) -> None:
    """Each part of Intel's chains, changed octet by octet."""
    refuses_all(*intel_parts(forged_intel())[part])


@pytest.mark.parametrize("part", ["pck", "tcb-signer"])
def test_intel_genuine(vectors: Path, part: str) -> None:
    """Certificates that Intel made."""
    refuses_all(*intel_parts(genuine_intel(vectors))[part])


def judge_nvidia(ders: Sequence[bytes], anchors: Anchors) -> object:
    return verify_path(ders, anchors=anchors, where="device chain")


@pytest.mark.parametrize("position", range(5))
def test_nvidia_forged(position: int) -> None:
    """Each certificate of a device chain, changed octet by octet."""
    forge = NvidiaForge(seed="tests")
    ders, anchors = parse_bundle(forge.device(nonce=bytes(range(1, 33))).chain), forge.trust.device_roots
    refuses_all(ders[position], lambda der: judge_nvidia(swapped(ders, position, der), anchors))


def test_nvidia_genuine(vectors: Path) -> None:
    """A leaf that an NVSwitch made."""
    ders = parse_bundle((vectors / "nvidia/switch/switchCertChain.txt").read_bytes())
    anchors = NvTrust.production().device_roots
    refuses_all(ders[0], lambda der: judge_nvidia(swapped(ders, 0, der), anchors))


@pytest.mark.parametrize("serial", [b"\0", b"\x80"], ids=["zero", "negative"])
def test_serial_number_is_positive(serial: bytes) -> None:
    """RFC 5280 4.1.2.2; `cryptography` only warns, and evidence must not write to anybody's standard error."""
    forge = NvidiaForge(seed="tests")
    ders = parse_bundle(forge.device(nonce=bytes(range(1, 33))).chain)
    tbs = parse_members(parse_element(ders[0], SEQUENCE).content)[0]
    number = parse_members(tbs.content)[1]
    size = len(number.content)
    changed = ders[0].replace(number.raw, b"\x02" + bytes([size]) + serial.ljust(size, b"\0"), 1)
    with pytest.raises(AttestationError) as caught:
        judge_nvidia(swapped(ders, 0, changed), forge.trust.device_roots)
    assert caught.value.code == "certificate-serial"
