"""Values that cannot hold a wrong value: nonces, digests, secrets, resource paths, closed vocabularies."""

import hmac
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NoReturn

from attestation.errors import Malformed

JsonValue = None | bool | int | float | str | Sequence["JsonValue"] | Mapping[str, "JsonValue"]
JsonObject = Mapping[str, JsonValue]

NONCE_BYTES = 32  # SPDM 1.1 GET_MEASUREMENTS nonce; also what KBS 0.4.0 issues
_PATH_PART = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,127}")  # KBS resource naming rule, bounded


class Level(StrEnum):
    """What was proven about a device: `authentic` is signed by the vendor; `trusted` is also fresh and known good."""

    NONE = "none"
    AUTHENTIC = "authentic"
    TRUSTED = "trusted"

    def at_least(self, floor: "Level") -> bool:
        """Whether this level satisfies `floor`."""
        order = (Level.NONE, Level.AUTHENTIC, Level.TRUSTED)
        return order.index(self) >= order.index(floor)


class Architecture(StrEnum):
    """NVIDIA device architectures that can attest."""

    HOPPER = "hopper"
    BLACKWELL = "blackwell"
    LS10 = "ls10"


class DeviceKind(StrEnum):
    """What an NVIDIA device is."""

    GPU = "gpu"
    NVSWITCH = "nvswitch"


class GpuMode(StrEnum):
    """Confidential mode as far as *signed* facts prove it; `unknown` satisfies no policy."""

    ON = "on"
    PPCIE = "ppcie"
    UNKNOWN = "unknown"


class Tee(StrEnum):
    """CPU TEE kinds, by their KBS protocol names."""

    SNP = "snp"
    TDX = "tdx"
    SAMPLE = "sample"


class BindingProfile(StrEnum):
    """How nonce, TEE key, GPU evidence and CPU report are tied together (docs/protocol.md)."""

    TRUSTEE_RCAR = "trustee-rcar-0.4"
    CGPU_V1 = "cgpu-v1"


@dataclass(frozen=True, slots=True)
class Nonce:
    """Exactly 32 bytes, not all zero."""

    raw: bytes

    def __post_init__(self) -> None:
        if not isinstance(self.raw, bytes):
            raise TypeError("a nonce is bytes")
        if len(self.raw) != NONCE_BYTES:
            raise Malformed("nonce-length", "wrong nonce length", expected=f"{NONCE_BYTES} bytes", got=len(self.raw))
        if not any(self.raw):
            raise Malformed(
                "nonce-zero", "an all-zero nonce proves no freshness", expected="32 random bytes", got="zeros"
            )

    @classmethod
    def from_hex(cls, text: str) -> "Nonce":
        """64 hex digits, with or without 0x. Raises Malformed."""
        try:
            return cls(bytes.fromhex(text.removeprefix("0x")))
        except ValueError as exc:
            raise Malformed(
                "nonce-hex", "nonce is not hexadecimal", expected="64 hex digits", got=repr(text[:80])
            ) from exc

    def hex(self) -> str:
        """Lower-case hexadecimal."""
        return self.raw.hex()

    def matches(self, other: bytes) -> bool:
        """Constant-time comparison."""
        return hmac.compare_digest(self.raw, other)


_DIGEST_BYTES = {"sha256": 32, "sha384": 48, "sha512": 64}


@dataclass(frozen=True, slots=True)
class Digest:
    """A digest that knows its algorithm and has its length."""

    alg: str
    raw: bytes

    def __post_init__(self) -> None:
        want = _DIGEST_BYTES.get(self.alg)
        if want is None:
            raise Malformed("digest-algorithm", "unknown digest", expected="|".join(_DIGEST_BYTES), got=self.alg)
        if len(self.raw) != want:
            raise Malformed("digest-length", f"wrong {self.alg} length", expected=f"{want} bytes", got=len(self.raw))

    def __str__(self) -> str:
        return f"{self.alg}:{self.raw.hex()}"

    @classmethod
    def parse(cls, text: str) -> "Digest":
        """`sha256:<hex>` and its siblings. Raises Malformed."""
        alg, sep, hexed = text.partition(":")
        try:
            raw = bytes.fromhex(hexed) if sep else b""
        except ValueError:
            raw = b""
        if not raw:
            raise Malformed("digest-text", "not a digest", expected="sha256:<hex>", got=repr(text[:140]))
        return cls(alg, raw)


class Secret:
    """Bytes that `repr`, `str`, formatting and pickling do not show; `expose()` is the one way out."""

    __slots__ = ("_raw",)

    def __init__(self, raw: bytes) -> None:
        self._raw = bytes(raw)

    def expose(self) -> bytes:
        """The bytes themselves."""
        return self._raw

    def __repr__(self) -> str:
        return "Secret(***)"

    def __len__(self) -> int:
        return len(self._raw)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and hmac.compare_digest(self._raw, other._raw)

    def __hash__(self) -> NoReturn:
        raise TypeError("secrets are not hashable")

    def __reduce__(self) -> NoReturn:
        raise TypeError("secrets are not picklable")


@dataclass(frozen=True, slots=True, order=True)
class ResourcePath:
    """`repository/type/tag`: the name of a key or resource (KBS naming rule, keybroker.md 2.2)."""

    repository: str
    type: str
    tag: str

    def __post_init__(self) -> None:
        for part in (self.repository, self.type, self.tag):
            if not _PATH_PART.fullmatch(part):
                raise Malformed(
                    "resource-path",
                    "bad resource path part",
                    expected="letters, digits, '_', '-', '.', not leading with '.', at most 128",
                    got=repr(part[:140]),
                )

    @classmethod
    def parse(cls, text: str) -> "ResourcePath":
        """Exactly three parts, with or without the `kbs:///` prefix. Raises Malformed."""
        parts = text.removeprefix("kbs:///").split("/")
        if len(parts) != 3:
            raise Malformed(
                "resource-path", "not a resource path", expected="repository/type/tag", got=repr(text[:420])
            )
        return cls(*parts)

    def __str__(self) -> str:
        return f"{self.repository}/{self.type}/{self.tag}"
