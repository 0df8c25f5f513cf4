"""Reference documents: which ones a device needs, and proof that NVIDIA signed what they say (gpu-attestation.md 3).

A document is verified once, without a clock; who may still sign today, revocation, retirement and pins are judged on
every use. Several documents may exist under one id, because NVIDIA re-issues them with other values (3.5).
"""

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from operator import itemgetter
from types import MappingProxyType
from typing import Protocol

from attestation.errors import Untrusted
from attestation.formats.nv_report import GpuFacts, SwitchFacts
from attestation.formats.rim import RimContent, parse_rim_content
from attestation.formats.rim_signature import parse_signed_rim
from attestation.values import Architecture
from attestation.verify.cache import BoundedCache
from attestation.verify.chain import ChainCache, VerifiedPath, require_valid, verify_path
from attestation.verify.identity import DeviceCertificate
from attestation.verify.nv_policy import ExpiryMode, SignerExpiry
from attestation.verify.roots import Anchors
from attestation.verify.signature import verify_raw_p384

MAX_DOCUMENTS = 16  # per id; two are known for one id
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")  # ids become file names and URL parts (3.1)
_EDITION = {Architecture.HOPPER: "GPU", Architecture.BLACKWELL: "GPU", Architecture.LS10: "SWITCH"}
_LS10_PROJECT = "5612_0002_890"  # LS10 reports state none; constant of every LS10 id (3.1)


class Slot(StrEnum):
    """What a document holds reference values for."""

    DRIVER = "driver"
    VBIOS = "vbios"
    BIOS = "bios"


@dataclass(frozen=True, slots=True, kw_only=True)
class RimNeed:
    """One document that a device requires: its id, and what it must say about itself."""

    slot: Slot
    rim_id: str
    version: str
    product: str
    edition: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedRim:
    """A document that NVIDIA signed, at some time. `sha256` is over the document as it came.

    `pick` takes the active indices out of measurements, `usual` is what it gives for every first alternative.
    """

    sha256: str
    path: VerifiedPath
    content: RimContent
    pick: Callable[[Sequence[bytes] | Mapping[int, bytes]], object]
    usual: object


class RimSource(Protocol):
    """Where reference documents come from."""

    def rims(self, rim_id: str) -> Sequence[bytes]:
        """Every document stored under `rim_id`, in any order; empty when there is none."""


class RimShelf:
    """Reference documents in memory."""

    __slots__ = ("_documents",)

    def __init__(self, documents: Mapping[str, Sequence[bytes]]) -> None:
        self._documents = MappingProxyType({k: tuple(v) for k, v in documents.items()})

    def rims(self, rim_id: str) -> Sequence[bytes]:
        """The documents of that id."""
        return self._documents.get(rim_id, ())


RimCache = BoundedCache[VerifiedRim]


def gpu_needs(device: DeviceCertificate, facts: GpuFacts) -> tuple[RimNeed, RimNeed]:
    """Driver and VBIOS documents of a GPU (3.1). Raises Untrusted where an id would hold other characters."""
    product = device.chip
    if device.arch is Architecture.BLACKWELL:
        product = facts.chip_info.upper() or device.chip
        driver = f"NV_GPU_CC_DRIVER_{product}_{facts.driver}"
    else:
        driver = f"NV_GPU_DRIVER_{product}_{facts.driver}"
    vbios = "_".join(
        ("NV_GPU_VBIOS", facts.project, facts.project_sku, facts.chip_sku, facts.vbios.replace(".", ""))
    ).upper()
    edition = _EDITION[device.arch]
    return (
        RimNeed(slot=Slot.DRIVER, rim_id=check_id(driver), version=facts.driver, product=product, edition=edition),
        RimNeed(slot=Slot.VBIOS, rim_id=check_id(vbios), version=facts.vbios, product=product, edition=edition),
    )


def switch_needs(facts: SwitchFacts) -> tuple[RimNeed]:
    """The BIOS document of an LS10 switch (3.1)."""
    rim_id = f"NV_SWITCH_BIOS_{_LS10_PROJECT}_{facts.bios.replace('.', '')}"
    return (
        RimNeed(
            slot=Slot.BIOS,
            rim_id=check_id(rim_id),
            version=facts.bios,
            product="LS10",
            edition=_EDITION[Architecture.LS10],
        ),
    )


def check_id(rim_id: str) -> str:
    """The id itself, when it is safe as a file name and as a part of a URL. Raises Untrusted."""
    if not _ID.fullmatch(rim_id) or ".." in rim_id:
        raise Untrusted("rim-id", "not a document id", where="rim", expected=_ID.pattern, got=repr(rim_id[:140]))
    return rim_id


def verify_rim(
    document: bytes,
    *,
    anchors: Anchors,
    chains: ChainCache | None = None,
    cache: RimCache | None = None,
) -> VerifiedRim:
    """Prove that a signer under a pinned root made this document. Raises Malformed and Untrusted.

    Order: shape, path of the signer, signature with the leaf's key and no other, digest, and only then values, from
    the bytes that were hashed.
    """
    key = (anchors, document)
    if cache is not None and (known := cache.get(key)):
        return known
    signed = parse_signed_rim(document)
    path = verify_path(signed.certificates, anchors=anchors, where="RIM chain", cache=chains, keep_leaf=True)
    if hashlib.sha384(signed.content).digest() != signed.digest_value:
        raise Untrusted("rim-digest", "the document was changed after it was signed", where="rim")
    verify_raw_p384(
        path.leaf.key, signed.signature, hashlib.sha384(signed.signed_info).digest(), code="rim-signature", where="rim"
    )
    content = parse_rim_content(signed.content)
    if not content.golden:
        raise Untrusted("rim-no-active", "no active measurement", where="rim", expected="at least one")
    pick = itemgetter(*content.golden)
    rim = VerifiedRim(
        sha256=hashlib.sha256(document).hexdigest(),
        path=path,
        content=content,
        pick=pick,
        usual=pick({index: golden.alternatives[0] for index, golden in content.golden.items()}),
    )
    if cache is not None:
        cache.put(key, rim)
    return rim


def require_signer_time(rim: VerifiedRim, expiry: SignerExpiry, now: datetime) -> None:
    """Apply the signer-expiry policy (9, feature 5). Raises Untrusted `rim-signer-expired` or `-not-yet-valid`."""
    moment = now
    if expiry.mode is ExpiryMode.FIRST_SEEN:
        moment = min(now, expiry.first_seen.get(rim.sha256, now))
    require_valid(rim.path, moment, where="RIM chain", code="rim-signer", grace=expiry.grace)


def require_fit(rim: VerifiedRim, need: RimNeed, *, known_versions: frozenset[str]) -> None:
    """The document speaks of this product, slot and version (10 step 9). Raises Untrusted."""
    content = rim.content
    if (content.product, content.edition) != (need.product, need.edition):
        raise Untrusted(
            "rim-product",
            "reference document of another product",
            where=need.rim_id,
            expected=f"{need.product} {need.edition}",
            got=f"{content.product} {content.edition}",
        )
    if content.version.upper() != need.version.upper():
        raise Untrusted(
            "rim-slot" if content.version.upper() in known_versions else "rim-version",
            f"not this device's {need.slot} document",
            where=need.rim_id,
            expected=need.version,
            got=content.version,
        )
