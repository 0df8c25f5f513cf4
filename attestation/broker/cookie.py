"""The cookie of a handshake: the challenge itself, authenticated under a key that every replica has.

Nothing is stored for a challenge, so that asking for one costs the broker no more than answering. What a challenge was
spent on is stored, once (`sources/sessions.py`). Its MAC makes a cookie a bearer secret: the nonce in it is public once
evidence was sent.
"""

import hmac
import struct
from datetime import UTC, datetime

from attestation.broker.session import Challenged
from attestation.crypto.b64 import b64, parse_b64
from attestation.errors import Untrusted
from attestation.values import NONCE_BYTES, BindingProfile, Tee

_BODY = struct.Struct(f">BBQ{NONCE_BYTES}s")  # TEE, binding profile, end in ms since 1970, nonce
_MAC_BYTES = 32
COOKIE_CHARS = 2 * (_BODY.size + _MAC_BYTES)  # hexadecimal: clients take no other cookie values (keybroker.md 4.2, 6)
_LABEL = b"kata-gpu challenge 1\0"
# Numbers of a cookie that is minutes old: a new value gets a new number, and none is used again.
_TEES = {Tee.SNP: 1, Tee.TDX: 2, Tee.SAMPLE: 3}
_PROFILES = {BindingProfile.TRUSTEE_RCAR: 1, BindingProfile.CGPU_V1: 2}
_TEE_OF = {number: tee for tee, number in _TEES.items()}
_PROFILE_OF = {number: profile for profile, number in _PROFILES.items()}


class ChallengeCookies:
    """Challenges to cookies and back. `key` has 32 bytes and is used for nothing else."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def seal(self, challenged: Challenged) -> str:
        """The cookie of a challenge, in lower-case hexadecimal."""
        body = _BODY.pack(
            _TEES[challenged.tee],
            _PROFILES[challenged.profile],
            round(challenged.expires.timestamp() * 1000),
            parse_b64(challenged.nonce, where="nonce"),
        )
        return (body + self._mac(body)).hex()

    def open(self, cookie: str, *, now: datetime) -> Challenged:
        """The challenge of a cookie, exactly as `seal` wrote it. Untrusted for every other text, and once it ended."""
        raw = bytes.fromhex(cookie) if len(cookie) == COOKIE_CHARS and _is_hex(cookie) else b""
        body, mac = raw[: _BODY.size], raw[_BODY.size :]
        if not hmac.compare_digest(mac, self._mac(body)):
            raise _unknown()
        tee, profile, end, nonce = _BODY.unpack(body)
        challenged = Challenged(
            tee=_TEE_OF[tee],
            nonce=b64(nonce),
            expires=datetime.fromtimestamp(end / 1000, UTC),
            profile=_PROFILE_OF[profile],
        )
        if challenged.expires <= now:
            raise _unknown()
        return challenged

    def _mac(self, body: bytes) -> bytes:
        return hmac.digest(self._key, _LABEL + body, "sha256")


def _is_hex(text: str) -> bool:
    return not text.strip("0123456789abcdef")


def _unknown() -> Untrusted:
    return Untrusted("session-unknown", "no such session, or it has expired")
