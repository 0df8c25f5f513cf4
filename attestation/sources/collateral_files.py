"""Documents from files that somebody has: reference documents, offline copies of KDS, and Intel's JSON files."""

import re
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from attestation.errors import Misconfigured
from attestation.formats.collateral import MAX_DOCUMENT_BYTES, Document, Kind
from attestation.formats.json_strict import parse_json, require_object
from attestation.sources.atomic import read_bounded
from attestation.sources.intel_pcs import MAX_FILE_BYTES, read_dcap_json, read_platform_collaterals
from attestation.sources.rim_files import RimFile, RimFiles
from attestation.verify.nras_token import parse_jwks

_FULL_ID = re.compile(r"NV_[A-Z]+_[A-Za-z0-9._-]+")
_NAMED_ID = re.compile(r"([0-9A-Z]{4}_[0-9]{4}_[0-9]{3}_[0-9A-F]{10})")  # names from before NVIDIA's service


def rim_id_of(file: RimFile) -> str:
    """The id under which a file is stored: its name where that is one, else from what the document states.

    Raises Misconfigured where project and SKU of a VBIOS document are in neither.
    """
    stem, stated = file.path.name.removesuffix(file.path.suffix), file.stated
    if _FULL_ID.fullmatch(stem):
        return stem
    named = _NAMED_ID.search(stem.upper())
    if named is not None:
        return f"NV_{'SWITCH_BIOS' if stated.edition == 'SWITCH' else 'GPU_VBIOS'}_{named[1]}"
    if stated.version.count(".") < 4 and stated.edition == "GPU":  # 550.144.03; VBIOS versions have five parts
        family = "NV_GPU_CC_DRIVER" if stated.product.startswith("GB") else "NV_GPU_DRIVER"
        return f"{family}_{stated.product}_{stated.version}"
    raise Misconfigured(
        "rim-id-unknown", "the id cannot be told", where=str(file.path), expected="a file name like NV_GPU_VBIOS_...xml"
    )


def read_rim_files(path: Path, *, now: datetime) -> Iterator[Document]:
    """A reference document, or the .xml and .swidtag files of a directory."""
    for file in RimFiles.read([path]).files:
        yield Document(kind=Kind.RIM, id=rim_id_of(file), content=file.document, first_seen=now, source=file.path.name)


def read_tdx_file(path: Path, *, now: datetime) -> list[Document]:
    """Collateral as dcap-qvl or Intel's PcsClientTool write it; told apart by the member `collaterals`."""
    body = read_bounded(path, MAX_FILE_BYTES)
    top = require_object(parse_json(body, max_bytes=MAX_FILE_BYTES, what=path.name), path.name)
    if "collaterals" in top:
        return list(read_platform_collaterals(body, now=now, source=path.name))
    return [read_dcap_json(body, now=now, source=path.name)]


def read_jwks_file(path: Path, issuer_host: str, *, now: datetime) -> Document:
    """A key set for token verification, under the host name of its issuer."""
    body = read_bounded(path, MAX_DOCUMENT_BYTES[Kind.JWKS])
    parse_jwks(body)
    return Document(kind=Kind.JWKS, id=issuer_host, content=body, first_seen=now, source=path.name)
