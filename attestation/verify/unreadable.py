"""What `cryptography` raises for X.509 structures that it cannot read; it has no common base class for these.

Decoding is lazy, so any of them may come from an attribute long after loading.
"""

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

from attestation.errors import Malformed
from attestation.formats.der import SEQUENCE, parse_element, parse_members

UNREADABLE = (
    ValueError,
    TypeError,  # names whose string type does not fit their attribute
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
    UserWarning,  # an attribute of a wrong length, where warnings are errors
)


def negative_or_zero_serial(der: bytes) -> bool:
    """Whether a certificate's serial number is not positive (RFC 5280 4.1.2.2). `cryptography` warns and goes on.

    What is not DER is left to the library, which refuses it with a reason.
    """
    try:
        fields = parse_members(parse_members(parse_element(der, SEQUENCE).content)[0].content)
        serial = fields[1].content
    except (Malformed, IndexError):
        return False
    return not any(serial) or bool(serial[0] & 0x80)
