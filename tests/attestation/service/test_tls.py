"""TLS: versions, renewal without a dropped connection, client certificates of administrators."""

import json
import signal
import socket
import ssl
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from attestation.errors import Misconfigured
from attestation.service.tls import TlsFiles, TlsListener
from tests.attestation.broker.broker import Served, broker, served
from tests.attestation.broker.test_serve import process
from tests.attestation.service.certificates import Pair, make, pair


@pytest.fixture
def files(tmp_path: Path) -> Pair:
    return pair(tmp_path, "first")


@contextmanager
def running(tmp_path: Path, guest: TlsListener, admin: TlsListener | None = None) -> Iterator[Served]:
    with broker(tmp_path) as made, served(made, guest_tls=guest, admin_tls=admin) as kbs:
        yield kbs


def tls_of(files: Pair, client_ca: Path | None = None) -> TlsListener:
    return TlsListener(TlsFiles(certificate=files.certificate, key=files.key, client_ca=client_ca))


def client(*, trusted: bytes, version: ssl.TLSVersion | None = None, own: Pair | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=trusted.decode())
    if version is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of asking for a version below the floor
            context.minimum_version = context.maximum_version = version
    if own is not None:
        context.load_cert_chain(own.certificate, own.key)
    return context


def connect(url: str, context: ssl.SSLContext, *, name: str | None = "127.0.0.1") -> ssl.SSLSocket:
    host, _, port = url.removeprefix("https://").partition(":")
    plain = socket.create_connection((host, int(port)), timeout=10)
    try:
        return context.wrap_socket(plain, server_hostname=name)
    except BaseException:
        plain.close()
        raise


def ask(wire: ssl.SSLSocket) -> bytes:
    """One request on an open connection; the first line of the answer."""
    wire.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
    got = wire.recv(65536)
    while got and b"\r\n\r\n" not in got:
        more = wire.recv(65536)
        got = got + more if more else b""
    return got.split(b"\r\n")[0]


@pytest.mark.parametrize(
    ("version", "agreed"),
    [
        pytest.param(None, "TLSv1.3", id="default"),
        pytest.param(ssl.TLSVersion.TLSv1_2, "TLSv1.2", id="floor"),
    ],
)
def test_versions(tmp_path: Path, files: Pair, version: ssl.TLSVersion | None, agreed: str) -> None:
    """1.3 by default; 1.2 only with ephemeral keys and authenticated encryption."""
    with running(tmp_path, tls_of(files)) as kbs:
        context = client(trusted=files.certificate.read_bytes(), version=version)
        with connect(kbs.url, context) as wire:
            assert wire.version() == agreed
            cipher = wire.cipher()
            assert cipher is not None
            assert agreed == "TLSv1.3" or cipher[0].startswith("ECDHE-")
            assert ask(wire) == b"HTTP/1.1 200 OK"
            assert wire.session is None or not wire.session.has_ticket


def test_nothing_below_the_floor(tmp_path: Path, files: Pair) -> None:
    """TLS 1.1 and plain HTTP get no answer."""
    with running(tmp_path, tls_of(files)) as kbs:
        context = client(trusted=files.certificate.read_bytes(), version=ssl.TLSVersion.TLSv1_1)
        with pytest.raises((ssl.SSLError, ConnectionError)):
            connect(kbs.url, context)
        host, _, port = kbs.url.removeprefix("https://").partition(":")
        with socket.create_connection((host, int(port)), timeout=10) as plain:
            plain.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
            assert not plain.recv(100).startswith(b"HTTP")


def test_renewal_drops_no_connection(tmp_path: Path, files: Pair) -> None:
    """An open connection goes on under the old certificate while new ones get the new one, with and without SNI."""
    tls = tls_of(files)
    old = files.certificate.read_bytes()
    with running(tmp_path, tls) as kbs, connect(kbs.url, client(trusted=old)) as before:
        assert ask(before) == b"HTTP/1.1 200 OK"
        assert not tls.reload()
        files.write(make("second"))
        assert tls.reload()
        new = files.certificate.read_bytes()
        assert ask(before) == b"HTTP/1.1 200 OK"
        for name in ("127.0.0.1", None):
            context = client(trusted=new)
            context.check_hostname = name is not None
            with connect(kbs.url, context, name=name) as after:
                assert ask(after) == b"HTTP/1.1 200 OK"
                assert after.getpeercert(binary_form=True) == ssl.PEM_cert_to_DER_cert(new.decode())
        with pytest.raises(ssl.SSLCertVerificationError):
            connect(kbs.url, client(trusted=old))
        assert ask(before) == b"HTTP/1.1 200 OK"


def test_half_a_renewal_serves_the_old_pair(tmp_path: Path, files: Pair) -> None:
    """A certificate whose key is not there yet is reported and not used; the complete pair is."""
    tls = tls_of(files)
    old = files.certificate.read_bytes()
    second = make("second")
    with running(tmp_path, tls) as kbs:
        files.write((second[0], files.key.read_bytes()))
        with pytest.raises(Misconfigured) as caught:
            tls.reload()
        assert caught.value.code == "tls-files"
        with connect(kbs.url, client(trusted=old)) as wire:
            assert ask(wire) == b"HTTP/1.1 200 OK"
        assert not tls.reload()
        files.write(second)
        assert tls.reload()
        with connect(kbs.url, client(trusted=second[0])) as wire:
            assert ask(wire) == b"HTTP/1.1 200 OK"


def test_administrators_with_client_certificates(tmp_path: Path, files: Pair) -> None:
    """No certificate, or one of another authority, gets no answer; guests need none; a new authority takes over."""
    authority, other = make("authority"), make("authority")
    known = pair(tmp_path, "known", make("operator", issuer=authority))
    stranger = pair(tmp_path, "stranger", make("operator", issuer=other))
    ca = tmp_path / "ca.crt"
    ca.write_bytes(authority[0])
    admin = tls_of(files, ca)
    trusted = files.certificate.read_bytes()

    def answers(own: Pair | None) -> bool:
        try:
            with connect(kbs.admin_url, client(trusted=trusted, own=own)) as wire:
                return ask(wire) == b"HTTP/1.1 200 OK"
        except (ssl.SSLError, ConnectionError, IndexError):
            return False

    with running(tmp_path, tls_of(files), admin) as kbs:
        assert [answers(None), answers(known), answers(stranger)] == [False, True, False]
        with connect(kbs.url, client(trusted=trusted)) as wire:
            assert ask(wire) == b"HTTP/1.1 200 OK"
        with pytest.raises(ssl.SSLError):
            connect(kbs.admin_url, client(trusted=trusted, version=ssl.TLSVersion.TLSv1_2, own=known))
        ca.write_bytes(other[0])
        assert admin.reload(force=True)
        assert [answers(None), answers(known), answers(stranger)] == [False, False, True]


@pytest.mark.parametrize(
    ("certificate", "key"),
    [
        pytest.param(b"", None, id="empty"),
        pytest.param(b"no certificate", None, id="text"),
        pytest.param(None, b"no key", id="key"),
        pytest.param(None, make("other")[1], id="key-of-another"),
    ],
)
def test_files_that_cannot_be_used(files: Pair, certificate: bytes | None, key: bytes | None) -> None:
    """Refused at start, with the file's name."""
    files.write(
        (certificate if certificate is not None else files.certificate.read_bytes(), key or files.key.read_bytes())
    )
    with pytest.raises(Misconfigured) as caught:
        tls_of(files)
    assert caught.value.where == str(files.certificate)


def test_missing_file(files: Pair) -> None:
    """Named."""
    files.key.unlink()
    with pytest.raises(Misconfigured) as caught:
        tls_of(files)
    assert caught.value.where == str(files.key)


def test_the_command_renews_on_hangup(tmp_path: Path, files: Pair) -> None:
    """`serve` as a process: JSON log, TLS, SIGHUP, and no connection lost."""
    old = files.certificate.read_bytes()
    options = ("--tls-cert", str(files.certificate), "--tls-key", str(files.key), "--log-format", "json")
    with process(tmp_path / "store", *options) as (child, url, admin):
        assert admin.startswith("https://")
        with connect(url, client(trusted=old)) as before:
            assert ask(before) == b"HTTP/1.1 200 OK"
            files.write(make("second"))
            child.send_signal(signal.SIGHUP)
            assert child.stderr is not None
            events = [json.loads(child.stderr.readline()) for _ in range(2)]
            assert {(e["event"], e["listener"]) for e in events} == {
                ("tls.renewed", "guests"),
                ("tls.renewed", "administrators"),
            }
            with connect(url, client(trusted=files.certificate.read_bytes())) as after:
                assert ask(after) == b"HTTP/1.1 200 OK"
            assert ask(before) == b"HTTP/1.1 200 OK"
