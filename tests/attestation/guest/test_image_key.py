"""Sealed secrets and layer annotations: what stock guests parse, checked field by field and by an outside JOSE library."""

import json
from base64 import b64decode, b64encode
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from joserfc import jws
from joserfc.jwk import ECKey

from attestation.cli.main import cli
from attestation.crypto.sealed_secret import seal_resource, unwrap_layer_key, wrap_layer_key
from attestation.errors import AttestationError, Malformed, Untrusted
from attestation.values import ResourcePath, Secret

RESOURCE, KID = ResourcePath.parse("prod/token/hub"), ResourcePath.parse("prod/jwk/sealing")
KEY = ec.derive_private_key(12345, ec.SECP256R1())
PUBLIC = ECKey.import_key(KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
KEK = Secret(bytes(range(32)))
OPTIONS = b'{"symkey":"c2VjcmV0","digest":"sha256:00","cipheroptions":{"nonce":"AAAA"}}'


def flip(text: str, at: int) -> str:
    return text[:at] + ("A" if text[at] != "A" else "B") + text[at + 1 :]


def test_sealed_secret_is_what_the_data_hub_parses() -> None:
    """Four parts; a JWS by any library; the payload of type vault, members as the hub's structure has them."""
    text = seal_resource(RESOURCE, KEY, KID)
    prefix, _, compact = text.partition(".")
    assert prefix == "sealed"
    parsed = jws.deserialize_compact(compact, PUBLIC, algorithms=["ES256"])
    assert json.loads(parsed.payload) == {
        "version": "0.1.0",
        "type": "vault",
        "name": "kbs:///prod/token/hub",
        "provider": "kbs",
        "provider_settings": {},
        "annotations": {},
    }
    assert parsed.headers() == {"alg": "ES256", "kid": "kbs:///prod/jwk/sealing"}
    assert "=" not in text


def test_sealed_in_a_file_has_no_end_of_line(tmp_path: Path) -> None:
    """The data hub decodes the last part as it is: a newline after it is not base64."""
    made = CliRunner().invoke(cli, ["image-key", "signing-key", str(tmp_path / "pem")])
    assert made.exit_code == 0
    done = CliRunner().invoke(
        cli,
        ["image-key", "seal", f"kbs:///{RESOURCE}", "--signing-key", str(tmp_path / "pem"), "--kid", f"kbs:///{KID}"],
    )
    assert done.exit_code == 0
    assert done.output.startswith("sealed.")
    assert done.output.split() == [done.output]


def test_layer_annotation_is_what_the_data_hub_parses() -> None:
    """Annotation packet version 0.1.0; opened here as the hub does it."""
    annotation = wrap_layer_key(OPTIONS, kek=KEK, path=RESOURCE, iv=bytes(range(12)))
    packet = json.loads(b64decode(annotation, validate=True))
    assert packet | {"wrapped_data": ""} == {
        "version": "0.1.0",
        "kid": "kbs:///prod/token/hub",
        "wrapped_data": "",
        "provider": "kbs",
        "iv": b64encode(bytes(range(12))).decode(),
        "wrap_type": "A256GCM",
        "provider_settings": {},
        "annotations": {},
    }
    opened = AESGCM(KEK.expose()).decrypt(b64decode(packet["iv"]), b64decode(packet["wrapped_data"]), None)
    assert opened == OPTIONS == unwrap_layer_key(annotation, kek=KEK)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        pytest.param({"wrap_type": "A256CTR"}, Malformed, id="wrapping"),
        pytest.param({"iv": b64encode(bytes(16)).decode()}, Malformed, id="iv-length"),
        pytest.param({"iv": b64encode(bytes(12)).decode()}, Untrusted, id="iv"),
        pytest.param({"wrapped_data": b64encode(bytes(40)).decode()}, Untrusted, id="data"),
    ],
)
def test_a_changed_annotation_is_refused(change: dict[str, str], error: type[AttestationError]) -> None:
    """As the hub would."""
    packet = json.loads(b64decode(wrap_layer_key(OPTIONS, kek=KEK, path=RESOURCE, iv=bytes(range(12)))))
    with pytest.raises(error):
        unwrap_layer_key(b64encode(json.dumps(packet | change).encode()).decode(), kek=KEK)


@pytest.mark.parametrize(("options", "size", "iv"), [(b"", 32, 12), (OPTIONS, 31, 12), (OPTIONS, 32, 11)])
def test_keys_and_options_of_impossible_sizes(options: bytes, size: int, iv: int) -> None:
    """Refused before anything is wrapped."""
    with pytest.raises(Malformed):
        wrap_layer_key(options, kek=Secret(bytes(size)), path=RESOURCE, iv=bytes(iv))


# -- command line ----------------------------------------------------------------------------------------------------


def invoke(*arguments: str, stdin: bytes = b"") -> Any:
    result = CliRunner().invoke(cli, ["image-key", *arguments], input=stdin, catch_exceptions=True)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.stdout.strip()


def test_signing_key_and_seal(tmp_path: Path) -> None:
    """The printed JWK verifies what the key file signs; the key file is private."""
    key = tmp_path / "sealing.pem"
    public = json.loads(invoke("signing-key", str(key)))
    assert key.stat().st_mode & 0o777 == 0o600
    text = invoke("seal", "kbs:///prod/token/hub", "--signing-key", str(key), "--kid", "kbs:///prod/jwk/sealing")
    jws.deserialize_compact(text.partition(".")[2], ECKey.import_key(public), algorithms=["ES256"])
    with pytest.raises(AttestationError):
        invoke("signing-key", str(key))


def test_wrap_reads_stdin_or_a_file(tmp_path: Path) -> None:
    """Two ways in, one answer."""
    kek, options = tmp_path / "kek", tmp_path / "options"
    kek.write_bytes(KEK.expose())
    options.write_bytes(OPTIONS)
    assert unwrap_layer_key(invoke("wrap", str(RESOURCE), "--kek-file", str(kek), stdin=OPTIONS), kek=KEK) == OPTIONS
    answer = json.loads(
        invoke("wrap", str(RESOURCE), "--kek-file", str(kek), "--options-file", str(options), "--output", "json")
    )
    assert unwrap_layer_key(answer["org.opencontainers.image.enc.keys.provider.attestation-agent"], kek=KEK) == OPTIONS


def test_ocicrypt_provider(tmp_path: Path) -> None:
    """The `cmd` protocol: keywrap is answered, keyunwrap belongs to the guest."""
    kek = tmp_path / "kek"
    kek.write_bytes(KEK.expose())
    arguments = ("provider", str(RESOURCE), "--kek-file", str(kek))
    optsdata = b64encode(OPTIONS).decode()
    request = {"op": "keywrap", "keywrapparams": {"ec": {"Parameters": {}}, "optsdata": optsdata}}
    answer = json.loads(invoke(*arguments, stdin=json.dumps(request).encode()))
    assert unwrap_layer_key(answer["keywrapresults"]["annotation"], kek=KEK) == OPTIONS
    with pytest.raises(Malformed) as refused:
        invoke(*arguments, stdin=b'{"op":"keyunwrap","keyunwrapparams":{}}')
    assert refused.value.code == "keyprovider-op"


def test_wrong_kinds_of_signing_keys(tmp_path: Path) -> None:
    """Not PEM, and not P-256."""
    bad = tmp_path / "bad.pem"
    bad.write_text("nothing")
    with pytest.raises(Malformed):
        invoke("seal", str(RESOURCE), "--signing-key", str(bad), "--kid", str(KID))
