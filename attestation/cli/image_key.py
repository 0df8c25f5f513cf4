"""`kata-gpu-kbs image-key`: sealed secrets and keys of encrypted image layers, for stock guests."""

import json
import os
import secrets
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from attestation.cli.output import output_option
from attestation.errors import Malformed, Misconfigured
from attestation.values import ResourcePath, Secret

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import ec

_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)
_MAX_INPUT_BYTES = 1 << 20  # ocicrypt's options are some hundred bytes


@click.group("image-key")
def image_key() -> None:
    """Sealed secrets and image layer keys that stock guests (CDH, image-rs) accept.

    \b
    Example:
      kata-gpu-kbs image-key signing-key sealing.pem > sealing.jwk
    """


@image_key.command("signing-key")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
def signing_key(file: Path) -> None:
    """Make a signing key for sealed secrets in FILE (mode 0600); print its public JWK, which goes into the broker.

    \b
    Example:
      kata-gpu-kbs image-key signing-key sealing.pem > sealing.jwk
    """
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    from attestation.crypto.jwk import ec_coordinates

    key = ec.generate_private_key(ec.SECP256R1())
    try:
        fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as out:
            out.write(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    except OSError as exc:
        raise Misconfigured("key-file", exc.strerror or "cannot write", where=str(file)) from exc
    click.echo(json.dumps({"kty": "EC", "crv": "P-256", "alg": "ES256", **ec_coordinates(key.public_key())}))


@image_key.command()
@click.argument("resource", metavar="KBS-URI")
@click.option("--signing-key", "key_file", type=_FILE, required=True, help="PEM of `image-key signing-key`.")
@click.option("--kid", required=True, metavar="KBS-URI", help="Resource that holds the public JWK.")
def seal(resource: str, key_file: Path, kid: str) -> None:
    """Print a sealed secret for a Kubernetes Secret: inside the guest it becomes the broker's resource.

    A file or pipe gets no end of line: the guest refuses a sealed secret that has one.

    \b
    Example:
      kata-gpu-kbs image-key seal kbs:///prod/token/hub --signing-key sealing.pem --kid kbs:///prod/jwk/sealing
    """
    from attestation.crypto.sealed_secret import seal_resource

    sealed = seal_resource(ResourcePath.parse(resource), _load(key_file), ResourcePath.parse(kid))
    click.echo(sealed, nl=sys.stdout.isatty())


@image_key.command()
@click.argument("path", metavar="KBS-URI")
@click.option("--kek-file", type=_FILE, required=True, help="The 32 bytes that the broker holds under this name.")
@click.option("--options-file", type=_FILE, help="ocicrypt's private options of the layer; default stdin.")
@output_option
def wrap(path: str, kek_file: Path, options_file: Path | None, output: str) -> None:
    """Print the annotation of an encrypted layer: its key under a key of the broker.

    \b
    Example:
      kata-gpu-kbs image-key wrap kbs:///prod/image/kek --kek-file kek.bin --options-file layer.json
    """
    from attestation.crypto.sealed_secret import ANNOTATION

    options = _read(options_file) if options_file else sys.stdin.buffer.read(_MAX_INPUT_BYTES + 1)
    value = _wrap(path, kek_file, options)
    click.echo(json.dumps({ANNOTATION: value}) if output == "json" else value)


@image_key.command()
@click.argument("path", metavar="KBS-URI")
@click.option("--kek-file", type=_FILE, required=True, help="The 32 bytes that the broker holds under this name.")
def provider(path: str, kek_file: Path) -> None:
    """Key provider of ocicrypt (skopeo, buildah, nerdctl): one JSON request on stdin, one answer on stdout.

    Set it as `cmd` of the provider `attestation-agent` in the file that OCICRYPT_KEYPROVIDER_CONFIG names.

    \b
    Example:
      {"key-providers": {"attestation-agent": {"cmd": {"path": "kata-gpu-kbs",
       "args": ["image-key", "provider", "kbs:///prod/image/kek", "--kek-file", "kek.bin"]}}}}
    """
    from attestation.crypto.b64 import parse_b64
    from attestation.formats.json_strict import parse_json, require_object

    raw = sys.stdin.buffer.read(_MAX_INPUT_BYTES + 1)
    request = require_object(parse_json(raw, max_bytes=_MAX_INPUT_BYTES, what="keyprovider"), "keyprovider")
    if request.get("op") != "keywrap":
        raise Malformed(
            "keyprovider-op",
            "only the guest unwraps",
            where="keyprovider.op",
            expected="keywrap",
            got=request.get("op"),
        )
    params = require_object(request.get("keywrapparams"), "keyprovider.keywrapparams")
    options = parse_b64(params.get("optsdata"), where="keyprovider.keywrapparams.optsdata")
    # Go marshals the provider's bytes as base64, and the layer carries their base64: one and the same text.
    click.echo(json.dumps({"keywrapresults": {"annotation": _wrap(path, kek_file, options)}}))


def _wrap(path: str, kek_file: Path, options: bytes) -> str:
    from attestation.crypto.sealed_secret import IV_BYTES, wrap_layer_key

    kek = Secret(_read(kek_file))
    return wrap_layer_key(options, kek=kek, path=ResourcePath.parse(path), iv=secrets.token_bytes(IV_BYTES))


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        data = file.read(_MAX_INPUT_BYTES + 1)
    if len(data) > _MAX_INPUT_BYTES:
        raise Malformed("file-size", "too large", where=str(path), expected=f"at most {_MAX_INPUT_BYTES} bytes")
    return data


def _load(path: Path) -> "ec.EllipticCurvePrivateKey":
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(_read(path), None)
    except (ValueError, TypeError) as exc:
        raise Malformed("signing-key", "not a PEM private key", where=str(path)) from exc
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name != "secp256r1":
        raise Malformed("signing-key", "wrong kind of key", where=str(path), expected="P-256")
    return key
