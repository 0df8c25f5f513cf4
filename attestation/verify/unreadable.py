"""What `cryptography` raises for X.509 structures that it cannot read; it has no common base class for these.

Decoding is lazy, so any of them may come from an attribute long after loading.
"""

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

UNREADABLE = (
    ValueError,
    TypeError,  # names whose string type does not fit their attribute
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)
