"""Root key in a PKCS#11 token: the HSM encrypts and decrypts data keys; the root key cannot be extracted."""

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attestation.crypto.jwe import RandomBytes
from attestation.errors import Malformed, Misconfigured, Unavailable, Untrusted
from attestation.sources.atomic import read_bounded
from attestation.values import Secret

IV_BYTES, TAG_BYTES, KEY_BITS = 12, 16, 256
MAX_PIN_BYTES = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class HsmKey:
    """Where the key is: PKCS#11 module, token label, key label, and the file with the user PIN."""

    module: Path
    token: str
    label: str
    pin_file: Path

    @property
    def name(self) -> str:
        """As it is stored beside what the key wrapped."""
        return f"pkcs11:{self.token}/{self.label}"[:128]

    def open(self, *, write: bool = False) -> Any:
        """A session that is logged in. Misconfigured or Unavailable."""
        try:
            import pkcs11
        except ImportError as exc:
            raise Misconfigured("pkcs11-client", "python-pkcs11 is not installed", expected="kata-gpu[pkcs11]") from exc
        pin = read_bounded(self.pin_file, MAX_PIN_BYTES).decode("ascii", "replace").strip()
        try:
            token = pkcs11.lib(str(self.module)).get_token(token_label=self.token)
            try:
                return token.open(rw=write, user_pin=pin)
            except pkcs11.UserAlreadyLoggedIn:  # the login is the process's, not the session's
                return token.open(rw=write)
        except (pkcs11.NoSuchToken, pkcs11.PinIncorrect, pkcs11.PinLocked, pkcs11.PinLenRange) as exc:
            kind = type(exc).__name__
            raise Misconfigured("pkcs11-token", "cannot log in", where=self.name, got=kind) from exc
        except (pkcs11.PKCS11Error, RuntimeError) as exc:  # RuntimeError: the module cannot be loaded
            raise _unavailable(self, exc) from exc

    def generate(self) -> None:
        """Make the key inside the token; Misconfigured where the label is taken."""
        import pkcs11
        from pkcs11 import Attribute, KeyType

        with self.open(write=True) as session:
            if _find(self, session) is not None:
                raise Misconfigured("root-key-exists", "the token has a key of this label", where=self.name)
            flags = {Attribute.SENSITIVE: True, Attribute.EXTRACTABLE: False}
            try:
                session.generate_key(KeyType.AES, KEY_BITS, label=self.label, store=True, template=flags)
            except pkcs11.PKCS11Error as exc:
                raise _unavailable(self, exc) from exc


class HsmRootKey:
    """One key, one session at a time: PKCS#11 sessions are not for several threads. A lost session is opened again."""

    def __init__(self, where: HsmKey, random: RandomBytes) -> None:
        self._where, self._random, self.name = where, random, where.name
        self._lock = threading.Lock()
        self._session, self._key = self._connect()

    def wrap(self, key: Secret, context: bytes) -> bytes:
        """C_Encrypt with CKM_AES_GCM; the IV goes in front."""
        iv = self._random(IV_BYTES)
        return iv + self._run("encrypt", key.expose(), iv, context)

    def unwrap(self, wrapped: bytes, context: bytes) -> Secret:
        """C_Decrypt with CKM_AES_GCM. Raises Malformed."""
        if len(wrapped) <= IV_BYTES + TAG_BYTES:
            raise Malformed("envelope", "a wrapped key is too short", where=self.name, got=len(wrapped))
        return Secret(self._run("decrypt", wrapped[IV_BYTES:], wrapped[:IV_BYTES], context))

    def _run(self, verb: str, data: bytes, iv: bytes, context: bytes) -> bytes:
        import pkcs11

        how = {"mechanism": pkcs11.Mechanism.AES_GCM, "mechanism_param": pkcs11.GCMParams(iv, context, TAG_BYTES * 8)}
        with self._lock:
            try:
                try:
                    return bytes(getattr(self._key, verb)(data, **how))
                except (pkcs11.SessionClosed, pkcs11.SessionHandleInvalid, pkcs11.ObjectHandleInvalid):
                    self._session, self._key = self._connect()
                    return bytes(getattr(self._key, verb)(data, **how))
            except (pkcs11.EncryptedDataInvalid, pkcs11.EncryptedDataLenRange) as exc:
                raise Untrusted("envelope", "the root key provider refuses this envelope", where=self.name) from exc
            except pkcs11.GeneralError as exc:
                # SoftHSM reports a tag that does not verify in this way.
                if verb == "decrypt":
                    raise Untrusted("envelope", "the root key provider refuses this envelope", where=self.name) from exc
                raise _unavailable(self._where, exc) from exc
            except pkcs11.PKCS11Error as exc:
                raise _unavailable(self._where, exc) from exc

    def _connect(self) -> tuple[Any, Any]:
        session = self._where.open()
        key = _find(self._where, session)
        if key is None:
            session.close()
            raise Misconfigured(
                "root-key-missing", "the token has no such AES key", where=self.name, expected="root-key create"
            )
        return session, key


def _find(where: HsmKey, session: Any) -> Any | None:
    import pkcs11
    from pkcs11 import KeyType, ObjectClass

    try:
        return session.get_key(object_class=ObjectClass.SECRET_KEY, key_type=KeyType.AES, label=where.label)
    except pkcs11.NoSuchKey:
        return None
    except pkcs11.MultipleObjectsReturned as exc:
        raise Misconfigured("root-key-twice", "several keys have this label", where=where.name) from exc


def _unavailable(where: HsmKey, exc: Exception) -> Unavailable:
    return Unavailable("pkcs11", "the token does not answer", where=where.name, got=type(exc).__name__)
