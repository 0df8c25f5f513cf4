"""Reference documents from files and directories that somebody named, without a store.

A SWID tag does not contain its own id, so a file is offered for every id that fits the product and version it states,
and its name, where it spells a full VBIOS id, must agree. Being offered proves nothing: the verifier checks all of it.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from attestation.errors import Malformed, Misconfigured
from attestation.formats.rim import RimContent, parse_rim_content
from attestation.formats.rim_signature import parse_signed_rim
from attestation.formats.rim_xml import MAX_RIM_BYTES
from attestation.sources.atomic import read_bounded

MAX_FILES = 1024  # NVIDIA's service listed a few hundred documents
_SUFFIXES = frozenset({".xml", ".swidtag"})
_NAMED_ID = re.compile(r"[0-9A-Z]{4}_[0-9]{4}_[0-9]{3}_[0-9A-F]{10}")  # PROJECT_SKU_CHIP_VERSION


@dataclass(frozen=True, slots=True, kw_only=True)
class RimFile:
    """One file that has the shape of a reference document; nothing in `stated` is proven."""

    path: Path
    document: bytes
    stated: RimContent

    def fits(self, rim_id: str) -> bool:
        """Whether this could be the document of that id."""
        packed = self.stated.version.replace(".", "").upper()
        if rim_id.startswith("NV_GPU_VBIOS_"):
            fits = self.stated.edition == "GPU" and rim_id.endswith(f"_{packed}")
        elif rim_id.startswith("NV_SWITCH_BIOS_"):
            fits = self.stated.edition == "SWITCH" and rim_id.endswith(f"_{packed}")
        else:
            fits = rim_id.endswith(f"DRIVER_{self.stated.product}_{self.stated.version}")
        named = _NAMED_ID.search(self.path.name.upper())
        return fits and (named is None or rim_id.endswith(named[0]) or "DRIVER" in rim_id)


class RimFiles:
    """A source of documents over files that were read once."""

    __slots__ = ("files",)

    def __init__(self, files: Sequence[RimFile]) -> None:
        self.files = tuple(files)

    def rims(self, rim_id: str) -> Sequence[bytes]:
        """Documents that may be the one asked for."""
        return [file.document for file in self.files if file.fits(rim_id)]

    @classmethod
    def read(cls, paths: Sequence[Path]) -> "RimFiles":
        """Read files as named, and the .xml and .swidtag files of directories.

        Raises Malformed for a named file that is no reference document; in directories such files are passed over.
        """
        files: list[RimFile] = []
        for path in paths:
            if not path.is_dir():
                files.append(_named(path))
                continue
            before = len(files)
            for entry in sorted(path.iterdir()):
                if entry.suffix in _SUFFIXES and entry.is_file():
                    try:
                        files.append(_read(entry))
                    except Malformed:
                        continue
                if len(files) > MAX_FILES:
                    raise Misconfigured("rim-files", "too many files", where=str(path), expected=f"at most {MAX_FILES}")
            if len(files) == before:
                raise Misconfigured("rim-files", "no reference documents", where=str(path), expected=".xml or .swidtag")
        return cls(files)


def _named(path: Path) -> RimFile:
    try:
        return _read(path)
    except Malformed as exc:
        raise Malformed(exc.code, exc.what, where=f"{path} {exc.where}", expected=exc.expected, got=exc.got) from exc


def _read(path: Path) -> RimFile:
    document = read_bounded(path, MAX_RIM_BYTES)
    return RimFile(path=path, document=document, stated=parse_rim_content(parse_signed_rim(document).content))
