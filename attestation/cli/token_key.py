"""`kata-gpu-kbs token-key`: the key that signs tokens, for authorities that certify it."""

from pathlib import Path

import click

from attestation.cli.store import opened, show, store_options


@click.group()
def token_key() -> None:
    """The key that signs attestation tokens. It never leaves the store.

    \b
    Example:
      kata-gpu-kbs token-key csr --store kbs > token.csr
    """


@token_key.command()
@click.option("--subject", default="kata-gpu-kbs token signer", show_default=True, help="Common name to ask for.")
@store_options
def csr(subject: str, store: str, root_key: Path | None, output: str) -> None:
    """A certificate request for the current key. Give the issued chain to `serve --token-cert`.

    \b
    Example:
      kata-gpu-kbs token-key csr --store kbs > token.csr
    """
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.serialization import Encoding
    from cryptography.x509.oid import NameOID

    with opened(store, root_key) as world:
        current = world.authority.current
        key = current.key.private_key
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)])
        request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, SHA256())
    pem = request.public_bytes(Encoding.PEM).decode()
    show({"kid": current.kid, "csr": pem}, output, [pem.rstrip()])
