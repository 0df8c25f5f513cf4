"""Certificate bundles as they arrive: PEM text or DER, bounded before anything is decoded. No certificate is parsed.

The order in which certificates came is kept; who signed whom is `attestation.verify.chain`'s business.
"""

import binascii

from attestation.errors import Malformed

MAX_BUNDLE_BYTES = 16 * 1024  # NVML buffers hold 0x1000 and 0x1400 (gpu-attestation.md 1.8); chains seen: 4.9 kB
MAX_CERTIFICATES = 8  # 5 in every device chain, 4 in every RIM (2.1, 2.5)
MAX_CERTIFICATE_BYTES = 4 * 1024  # largest seen: 0.9 kB

# RFC 7468 strict form with Unix line ends, as NVML and every recorded chain have it.
_BEGIN, _END = b"-----BEGIN CERTIFICATE-----\n", b"\n-----END CERTIFICATE-----"


def parse_bundle(data: bytes) -> tuple[bytes, ...]:
    """DER of every certificate of a PEM bundle (nothing between the blocks) or of one DER certificate.

    Raises Malformed, and TypeError for anything that is not exactly `bytes`.
    """
    if type(data) is not bytes:
        raise TypeError("a certificate bundle is bytes")
    if len(data) > MAX_BUNDLE_BYTES and data.count(_BEGIN, 0, MAX_BUNDLE_BYTES) > MAX_CERTIFICATES:
        raise _too_many()
    if len(data) > MAX_BUNDLE_BYTES:
        raise Malformed(
            "chain-size", "too large", where="chain", expected=f"at most {MAX_BUNDLE_BYTES} bytes", got=len(data)
        )
    if not data:
        raise Malformed("chain-empty", "no certificates", where="chain", expected="PEM or DER")
    if data[0] == 0x30:
        return (data,)
    ders: list[bytes] = []
    position = 0
    while position < len(data):
        end = data.find(_END, position)
        if not data.startswith(_BEGIN, position) or end < 0 or data[end + len(_END) :][:1] not in (b"", b"\n"):
            raise Malformed(
                "pem-syntax",
                "not a PEM certificate block",
                where=f"chain byte {position}",
                expected="RFC 7468 blocks and nothing between them",
                got=repr(data[position : position + 40]),
            )
        if len(ders) == MAX_CERTIFICATES:
            raise _too_many()
        ders.append(decode_base64(data[position + len(_BEGIN) : end], where="chain"))
        position = end + len(_END) + 1
    return tuple(ders)


def decode_base64(text: bytes, *, where: str) -> bytes:
    """Certificate bytes from base64 with line breaks and nothing else around it."""
    try:
        der = binascii.a2b_base64(text.replace(b"\n", b""), strict_mode=True)
    except binascii.Error as exc:
        raise Malformed("base64", "not base64", where=where, got=repr(text[:40])) from exc
    if not 0 < len(der) <= MAX_CERTIFICATE_BYTES:
        raise Malformed(
            "certificate-size", "certificate size", where=where, expected=f"1..{MAX_CERTIFICATE_BYTES}", got=len(der)
        )
    return der


def _too_many() -> Malformed:
    return Malformed(
        "chain-length", "too many certificates", where="chain", expected=f"at most {MAX_CERTIFICATES}", got="more"
    )
