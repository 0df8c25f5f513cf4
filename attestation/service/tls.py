"""TLS of a listener: 1.3, or 1.2 with forward secrecy and authenticated ciphers; certificates renewed while it serves.

A new pair is loaded into a context of its own and takes over with the next handshake, so that no connection is dropped
and a half-written pair never serves.
"""

import ssl
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509

from attestation.errors import Misconfigured

# RFC 9325 4.2: only AEAD suites with ephemeral keys remain for 1.2. 1.3 has nothing else.
CIPHERS_1_2 = "ECDHE+AESGCM:ECDHE+CHACHA20"
_Stamp = tuple[tuple[int, int, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """PEM files. With `client_ca` only clients with a certificate under it are let in."""

    certificate: Path
    key: Path
    client_ca: Path | None = None

    @property
    def paths(self) -> tuple[Path, ...]:
        """What is watched."""
        return (self.certificate, self.key, *([self.client_ca] if self.client_ca else []))


class TlsListener:
    """The context that a listener is given once, and what it hands every new handshake to."""

    def __init__(self, files: TlsFiles) -> None:
        """Raises Misconfigured where the files cannot be used."""
        self._files = files
        self._stamp = _stamp(files)
        self._current = _context(files)
        self.not_after = _not_after(files)
        self.context = _context(files)
        self.context.sni_callback = self._hand_over

    def reload(self, *, force: bool = False) -> bool:
        """Take over changed files; False where nothing changed. Misconfigured leaves the old pair in service."""
        stamp = _stamp(self._files)
        if stamp == self._stamp and not force:
            return False
        # Not tried again until the files change once more: a broken pair is reported once.
        self._stamp = stamp
        fresh, not_after = _context(self._files), _not_after(self._files)
        self._current, self.not_after = fresh, not_after
        return True

    def _hand_over(self, connection: ssl.SSLObject, _name: str | None, _first: ssl.SSLContext) -> None:
        # Called for clients that name no server, too. Certificate and client authorities are those of the new context.
        connection.context = self._current


def _context(files: TlsFiles) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS_1_2)
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    context.num_tickets = 0
    try:
        context.load_cert_chain(files.certificate, files.key)
        if files.client_ca is not None:
            context.load_verify_locations(files.client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
            # A resumed session of 1.2 would skip the client's certificate; in 1.3 there is none without tickets.
            context.minimum_version = ssl.TLSVersion.TLSv1_3
    except (OSError, ssl.SSLError) as exc:
        reason = (exc.reason if isinstance(exc, ssl.SSLError) else exc.strerror) or "no PEM in it"
        raise Misconfigured(
            "tls-files",
            f"cannot use certificate and key: {reason}",
            where=str(files.certificate),
            expected="a PEM certificate chain and its private key",
        ) from exc
    return context


def _not_after(files: TlsFiles) -> datetime:
    try:
        return x509.load_pem_x509_certificates(files.certificate.read_bytes())[0].not_valid_after_utc
    except (OSError, ValueError) as exc:
        raise Misconfigured("tls-files", "cannot read the certificate", where=str(files.certificate)) from exc


def _stamp(files: TlsFiles) -> _Stamp:
    """Device, inode and time of each file; secrets mounted by Kubernetes are replaced by moving a link."""
    try:
        found = [path.stat() for path in files.paths]
    except OSError as exc:
        raise Misconfigured("tls-files", f"cannot read: {exc.strerror}", where=str(exc.filename)) from exc
    return tuple((entry.st_dev, entry.st_ino, entry.st_mtime_ns) for entry in found)
