"""Forged NVIDIA evidence under a test PKI: reports, chains and reference documents, byte for byte of the real shape.

For everything that must fail by logic rather than by signature, and for demonstrations without hardware. Nothing made
here verifies under NVIDIA's roots; whoever wants to accept it must name the test roots (`NvTrust.simulated`).
"""

import hashlib
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from attestation.simulate.nv_products import PRODUCTS
from attestation.simulate.nv_rim import render_rim
from attestation.simulate.pki import CERTIFYING, CertSpec, SigningKey, derive_key, mint, sign_raw, spki, to_pem
from attestation.values import Architecture, GpuMode
from attestation.verify.rim import RimShelf
from attestation.verify.roots import NvTrust

GPUS, SWITCHES, LINKS, PORTS = 8, 4, 18, 64
DEVICE_ROOT_FILE, RIM_ROOT_FILE = NvTrust.SIMULATED_FILES

_SPDM_NAME = x509.ObjectIdentifier("1.3.6.1.4.1.412.274.1")
_COMPOSITE_DEVICE_ID = x509.ObjectIdentifier("2.23.133.5.4.1")
_DICE_TCB_INFO = x509.ObjectIdentifier("2.23.133.5.4.1.1")
_FWID = bytes.fromhex("303d0609608648016503040202") + b"\x04\x30"  # SEQUENCE { sha384, OCTET STRING(48) }
_BLANK_DIGEST = bytes(48)


@dataclass(frozen=True, slots=True, kw_only=True)
class ForgedEvidence:
    """What a device would hand over, and the key to sign another version of it."""

    arch: Architecture
    report: bytes
    chain: bytes  # PEM, leaf first
    key: SigningKey

    def resign(self, signed: bytes) -> "ForgedEvidence":
        """The same device signing other bytes."""
        return replace(self, report=signed + sign_raw(self.key, signed))

    @property
    def signed(self) -> bytes:
        """Everything before the signature."""
        return self.report[:-96]


@dataclass(frozen=True)
class NvidiaForge:
    """A whole NVIDIA: device PKI, reference-value PKI, devices and documents, all functions of `seed`."""

    seed: str = "kata-gpu"
    _upper: dict[Architecture, tuple[CertSpec, ...]] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def trust(self) -> NvTrust:
        """The test roots, marked as simulated."""
        return NvTrust.simulated_from(self.roots[DEVICE_ROOT_FILE], self.roots[RIM_ROOT_FILE])

    @cached_property
    def roots(self) -> Mapping[str, bytes]:
        """PEM files for a directory that `--unsafe-trust-simulated-roots` takes."""
        device = self.device_specs(Architecture.HOPPER, 0)[-1]
        return {
            DEVICE_ROOT_FILE: to_pem(mint([device])),
            RIM_ROOT_FILE: to_pem(mint([self.rim_specs(Architecture.HOPPER)[-1]])),
        }

    def key(self, label: str) -> SigningKey:
        """A key of this PKI."""
        return derive_key(self.seed, label)

    def chip_id(self, arch: Architecture, index: int) -> str:
        """Chip id of the subject alternative name: 16 hexadecimal digits."""
        return self._bytes(f"chip {arch} {index}", 8).hex().upper()

    def pdi(self, arch: Architecture, index: int) -> bytes:
        """Identifier of the device in the link tables of its peers."""
        return self._bytes(f"pdi {arch} {index}", 8)

    def device_specs(self, arch: Architecture, index: int) -> list[CertSpec]:
        """Specifications of a device chain, leaf first, root last; change one and `mint` them."""
        product = PRODUCTS[arch]
        name = f"{product.chip} {product.firmware}"
        brom_serial = bytes([product.kind]) + self.pdi(arch, index)
        leaf_serial = int.from_bytes(self._bytes(f"serial {arch} {index}", 20), "big") >> 1 | 1 << 150
        upper = self._upper.setdefault(arch, self._upper_specs(arch))
        brom = CertSpec(
            name=f"{name} BROM", key=self.key(f"brom {arch} {index}"), serial=int.from_bytes(brom_serial, "big"),
            name_serial=brom_serial.hex().upper(), ca=True, usage=frozenset({"key_cert_sign"}),
        )  # fmt: skip
        leaf = CertSpec(
            name=f"{name} FMC LF", key=self.key(f"leaf {arch} {index}"), serial=leaf_serial,
            name_serial=f"{leaf_serial:X}",
            extensions=(self.spdm_name(f"NVIDIA:{product.chip}:{self.chip_id(arch, index)}"),
                        self.fwid_extension(arch, brom.key)),
        )  # fmt: skip
        return [leaf, brom, *upper]

    def _upper_specs(self, arch: Architecture) -> tuple[CertSpec, ...]:
        chip = "GB100" if arch is Architecture.BLACKWELL else "GH100"  # LS10 chains run through GH100 Identity (2.3)
        provisioner = f"{PRODUCTS[arch].chip} Provisioner ICA 1"
        return tuple(
            CertSpec(name=f"SIMULATED {name}", key=self.key(name), serial=number, ca=True, usage=CERTIFYING)
            for number, name in enumerate((provisioner, f"{chip} Identity", "Device Identity CA"), start=1001)
        )

    def spdm_name(self, text: str) -> x509.SubjectAlternativeName:
        """The subject alternative name that carries a device's name."""
        encoded = text.encode()
        return x509.SubjectAlternativeName([x509.OtherName(_SPDM_NAME, bytes([0x0C, len(encoded)]) + encoded)])

    def fwid(self, arch: Architecture) -> bytes:
        """Firmware id of every device of an architecture."""
        return self._bytes(f"fwid {arch}", 48)

    def fwid_extension(
        self, arch: Architecture, issuer: SigningKey, *, fwid: bytes | None = None, flags: str = "80000001"
    ) -> x509.UnrecognizedExtension:
        """CompositeDeviceID for Hopper and LS10, DiceTcbInfo for Blackwell (2.2)."""
        value = _FWID + (self.fwid(arch) if fwid is None else fwid)
        if arch is not Architecture.BLACKWELL:
            body = b"\x02\x01\x01" + spki(issuer) + value
            return x509.UnrecognizedExtension(_COMPOSITE_DEVICE_ID, _sequence(body))
        fwids = value + _FWID + _BLANK_DIGEST
        body = (
            b"\x80\x06NVIDIA\x81\x0dGB100 A01 GSP\x82\x0201\x83\x01\x01\x84\x01\x00\x85\x01\x00"
             b"\xa6" + bytes([len(fwids)]) + fwids
            + b"\x87\x05\x00" + bytes.fromhex(flags) + b"\x88\x01\xc0\x89\x01\x00"
        )  # fmt: skip
        return x509.UnrecognizedExtension(_DICE_TCB_INFO, _sequence(body))

    def device(
        self,
        arch: Architecture = Architecture.HOPPER,
        index: int = 0,
        *,
        nonce: bytes,
        mode: GpuMode = GpuMode.ON,
        measurements: Mapping[int, bytes] | None = None,
        tlvs: Mapping[int, bytes | None] | None = None,
        mutate: Callable[[bytes], bytes] | None = None,
        specs: Sequence[CertSpec] | None = None,
    ) -> ForgedEvidence:
        """Evidence of one device. `measurements` replaces values by reference index (block index - 1); `tlvs` replaces
        or, with None, drops opaque elements; `mutate` edits the bytes that are then signed; `specs` the chain.
        """
        product = PRODUCTS[arch]
        values = {**self.measurements(arch), **(measurements or {})}
        record = b"".join(
            struct.pack("<BBHBH48s", i + 1, 1, 51, 1, 48, values.get(i, _BLANK_DIGEST)) for i in range(product.blocks)
        )
        elements: dict[int, bytes | None] = {**self.elements(arch, index, mode), **(tlvs or {})}
        opaque = b"".join(struct.pack("<HH", t, len(v)) + v for t, v in elements.items() if v is not None)
        signed = (
            b"\x11\xe0\x01\xff" + nonce + b"\x00"
            + b"\x11\x60\x00\x00" + bytes([product.blocks]) + len(record).to_bytes(3, "little") + record
            + self._bytes(f"responder {arch} {index}", 32) + len(opaque).to_bytes(2, "little") + opaque
        )  # fmt: skip
        chain = list(specs) if specs is not None else self.device_specs(arch, index)
        evidence = ForgedEvidence(arch=arch, report=b"", chain=to_pem(mint(chain)), key=chain[0].key)
        return evidence.resign(mutate(signed) if mutate is not None else signed)

    def board(self, *, nonce: bytes) -> tuple[ForgedEvidence, ...]:
        """A Protected PCIe board: 8 Hopper GPUs, then 4 switches, over one nonce."""
        gpus = [self.device(index=i, nonce=nonce, mode=GpuMode.PPCIE) for i in range(GPUS)]
        return (*gpus, *(self.device(Architecture.LS10, i, nonce=nonce) for i in range(SWITCHES)))

    def measurements(self, arch: Architecture) -> dict[int, bytes]:
        """Run-time values by reference index, for the indices that documents name."""
        product = PRODUCTS[arch]
        return {i: self._bytes(f"measurement {arch} {i}", 48) for i in product.driver_indices + product.vbios_indices}

    def elements(self, arch: Architecture, index: int, mode: GpuMode) -> dict[int, bytes]:
        """Opaque elements in the order of current firmware (1.3)."""
        product = PRODUCTS[arch]
        if arch is Architecture.LS10:
            table = b"".join(self.pdi(Architecture.HOPPER, gpu) for gpu in range(GPUS))
            ports = bytes(gpu for gpu in range(GPUS) for link in range(LINKS) if link % SWITCHES == index)
            return {
                6: product.vbios.encode(), 22: self.pdi(arch, index), 12: bytes(108),
                26: table + ports.ljust(PORTS, b"\xff"), 23: b"\xec\x00", 24: bytes([index, 0]), 25: b"\x01\x00",
            }  # fmt: skip
        ppcie = mode is GpuMode.PPCIE
        version = bytes.fromhex(product.vbios.replace(".", ""))
        found = {
            6: (b"\x00\x00\x00" + version[4:] + version[:4])[::-1], 14: b"\x37\x04\x00\x00",
            15: product.chip_sku.encode().ljust(9, b"\0"), 16: b"0\0\0\0\0", 17: product.project.encode() + b"\0",
            18: product.project_sku.encode() + b"\0", 19: b"\0\0", 3: product.driver.encode() + b"\0",
            4: bytes.fromhex("8001000000000000"), 12: bytes(256), 13: b"\x00\xc0\x01\x00", 11: b"\x55",
            20: self.fwid(arch),
        }  # fmt: skip
        if arch is Architecture.BLACKWELL:
            found[33] = b"\x07\x07"
            found |= {34: b"\x01\x00", 35: b"GB100\0", 36: b"\x00\x00"}
            return found
        found[21] = b"\xaa" if ppcie else b"\x55"
        if ppcie:
            found[22] = b"".join(self.pdi(Architecture.LS10, link % SWITCHES)[::-1] for link in range(LINKS))
        return found | {34: b"\x01\x00", 36: b"\x02\x00" if ppcie else b"\x00\x00"}

    def rim_specs(self, arch: Architecture) -> list[CertSpec]:
        """Specifications of a reference-value chain, leaf first, root last (2.5)."""
        product = PRODUCTS[arch].rim_product
        names = (f"L4 {product} signer", f"Reference Value L3 {product} 001", f"Reference Value {product} CA",
                 "CoRIM signing Root CA")  # fmt: skip
        leaf, l3, l2, root = (
            CertSpec(name=f"SIMULATED {name}", key=self.key(name), serial=number)
            for number, name in enumerate(names, start=2001)
        )
        return [
            leaf,
            replace(l3, ca=True, path_length=0, usage=CERTIFYING),
            replace(l2, ca=True, usage=CERTIFYING),
            replace(root, ca=True, usage=CERTIFYING),
        ]

    def rim(
        self,
        arch: Architecture,
        *,
        driver: bool,
        version: str | None = None,
        golden: Mapping[int, Sequence[bytes]] | None = None,
        edit: Callable[[str], str] | None = None,
        specs: Sequence[CertSpec] | None = None,
    ) -> bytes:
        """One reference document. `golden` replaces its active indices, `edit` changes the text that is then signed."""
        product = PRODUCTS[arch]
        values = self.measurements(arch)
        active = {i: (values[i],) for i in (product.driver_indices if driver else product.vbios_indices)}
        chain = list(specs) if specs is not None else self.rim_specs(arch)
        return render_rim(
            product=product.rim_product,
            edition="SWITCH" if arch is Architecture.LS10 else "GPU",
            version=version or (product.driver if driver else product.vbios),
            golden=golden if golden is not None else active,
            edit=edit,
            key=chain[0].key,
            certificates=[c.public_bytes(Encoding.DER) for c in mint(chain)],
        )

    def rims(self) -> dict[str, bytes]:
        """Every document that this forge's devices need, by id."""
        found: dict[str, bytes] = {}
        for arch, product in PRODUCTS.items():
            found[product.vbios_rim] = self.rim(arch, driver=False)
            if product.driver:
                found[product.driver_rim] = self.rim(arch, driver=True)
        return found

    def shelf(self) -> RimShelf:
        """The same as a source of documents."""
        return RimShelf({rim_id: (document,) for rim_id, document in self.rims().items()})

    def _bytes(self, label: str, size: int) -> bytes:
        return hashlib.sha512(f"{self.seed}\0{label}".encode()).digest()[:size]


def _sequence(body: bytes) -> bytes:
    length = bytes([len(body)]) if len(body) < 0x80 else bytes([0x81, len(body)])
    return b"\x30" + length + body
