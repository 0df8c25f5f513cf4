"""The signed bundle: reproducible, exact, pinned key, no way back."""

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import rfc8785
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from attestation.errors import AttestationError, Malformed, Misconfigured, Untrusted
from attestation.findings import Result
from attestation.formats.bundle import MAGIC, parse_bundle
from attestation.formats.collateral import Document, Kind, State
from attestation.sources.bundle import build_bundle, read_signer, write_key_pair
from attestation.verify.bundle import BundleInfo, BundleRule, judge_bundle, load_bundle_key, verify_bundle
from tests.attestation.collateral.conftest import DAY, NOW

KEY = ed25519.Ed25519PrivateKey.from_private_bytes(b"\x07" * 32)
P384 = ec.derive_private_key(7, ec.SECP384R1())


def document(identifier: str = "NV_GPU_DRIVER_GH100_1", content: bytes = b"<rim/>", **changes: object) -> Document:
    values = {"kind": Kind.RIM, "id": identifier, "content": content, "first_seen": NOW - 9 * DAY, "source": "test"}
    return Document(**(values | changes))  # type: ignore[arg-type]


DOCUMENTS = (
    document(),
    document(content=b"<rim version='2'/>", state=State.PINNED),
    document("NV_GPU_DRIVER_GH100_2"),  # same content under another id: stored once
    document("2a", b"crl", kind=Kind.CRL),
)
BUNDLE = build_bundle(DOCUMENTS, KEY, issued_at=NOW)


def resigned(change: Callable[[dict[str, Any]], object], tail: bytes | None = None) -> bytes:
    """The bundle with a changed manifest, signed by the right key: what fails now fails by logic."""
    bundle = parse_bundle(BUNDLE)
    size = int.from_bytes(bundle.signed[8:12], "little")
    manifest = json.loads(bundle.signed[12 : 12 + size])
    changed = change(manifest)
    raw = changed if isinstance(changed, bytes) else rfc8785.dumps(manifest)
    signed = MAGIC + len(raw).to_bytes(4, "little") + raw
    signature = KEY.sign(signed)
    contents = BUNDLE[12 + size + 2 + 64 :] if tail is None else tail
    return signed + len(signature).to_bytes(2, "little") + signature + contents


def test_round_trip_and_reproducible() -> None:
    verified = verify_bundle(BUNDLE, KEY.public_key(), in_use=None, now=NOW)
    assert sorted(DOCUMENTS, key=lambda d: d.name) == list(verified.documents)
    assert build_bundle(reversed(DOCUMENTS), KEY, issued_at=NOW) == BUNDLE
    assert verified.info.digest == parse_bundle(build_bundle(DOCUMENTS, P384, issued_at=NOW)).digest
    assert BUNDLE.count(b"<rim/>") == 1


def test_retired_documents_stay_home() -> None:
    kept = parse_bundle(build_bundle((*DOCUMENTS, document("old", state=State.RETIRED)), KEY, issued_at=NOW))
    assert "old" not in {d.id for d in kept.documents}


def test_p384_signature() -> None:
    raw = build_bundle(DOCUMENTS, P384, issued_at=NOW)
    assert raw == build_bundle(DOCUMENTS, P384, issued_at=NOW)
    assert verify_bundle(raw, P384.public_key(), in_use=None, now=NOW).info.issued_at == NOW
    with pytest.raises(Untrusted, match="did not sign"):
        verify_bundle(raw, KEY.public_key(), in_use=None, now=NOW)
    with pytest.raises(Untrusted, match="did not sign"):
        verify_bundle(BUNDLE, P384.public_key(), in_use=None, now=NOW)


def entry(index: int, **changes: object) -> Callable[[dict[str, Any]], None]:
    def change(manifest: dict[str, Any]) -> None:
        manifest["documents"][index].update(changes)

    return change


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        pytest.param(b"", "truncated", id="empty"),
        pytest.param(b"X" + BUNDLE[1:], "bundle-magic", id="magic"),
        pytest.param(BUNDLE + b"\x00", "trailing-bytes", id="trailing"),
        pytest.param(BUNDLE[:-1] + b"X", "bundle-digest", id="content-changed"),
        pytest.param(MAGIC + b"\xff\xff\xff\xff", "bundle-size", id="manifest-size"),
        pytest.param(resigned(lambda m: m.update(extra=1)), "bundle-manifest", id="unknown-member"),
        pytest.param(resigned(lambda m: rfc8785.dumps(m) + b" "), "bundle-manifest", id="not-canonical"),
        pytest.param(resigned(lambda m: b"[" * 100_000), "bundle-manifest", id="deep"),
        pytest.param(resigned(lambda m: m.update(documents=[])), "bundle-count", id="no-documents"),
        pytest.param(resigned(lambda m: m["documents"].reverse()), "bundle-order", id="not-sorted"),
        pytest.param(
            resigned(lambda m: m["documents"].insert(0, m["documents"][0])),
            "bundle-order",
            id="listed-twice",
        ),
        pytest.param(resigned(entry(0, id="../../etc/passwd")), "collateral-id", id="path-in-id"),
        pytest.param(resigned(entry(0, id=".hidden")), "collateral-id", id="dot-id"),
        pytest.param(resigned(entry(0, kind="axx")), "bundle-kind", id="unknown-kind"),
        pytest.param(resigned(entry(0, state="maybe")), "bundle-kind", id="unknown-state"),
        pytest.param(resigned(entry(0, bytes=True)), "bundle-manifest", id="bool-size"),
        pytest.param(resigned(entry(0, bytes=-1)), "truncated", id="negative-size"),
        pytest.param(resigned(entry(0, bytes=2**40)), "truncated", id="huge-size"),
        pytest.param(resigned(entry(0, source="x" * 513)), "bundle-manifest", id="long-source"),
        pytest.param(resigned(entry(0, first_seen="2026-11-21")), "bundle-time", id="first-seen"),
        pytest.param(resigned(lambda m: m.update(issued_at="yesterday")), "bundle-time", id="issued-at"),
    ],
)
def test_malformed(raw: bytes, code: str) -> None:
    with pytest.raises(Malformed) as caught:
        verify_bundle(raw, KEY.public_key(), in_use=None, now=NOW)
    assert caught.value.code == code


def test_every_signed_byte_counts() -> None:
    signed = len(parse_bundle(BUNDLE).signed)
    for position in range(signed + 2 + 64):
        raw = BUNDLE[:position] + bytes([BUNDLE[position] ^ 1]) + BUNDLE[position + 1 :]
        with pytest.raises((Malformed, Untrusted)):
            verify_bundle(raw, KEY.public_key(), in_use=None, now=NOW)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=300), st.integers(0, len(BUNDLE)))
def test_any_bytes_are_refused_by_our_errors(noise: bytes, at: int) -> None:
    for raw in (noise, MAGIC + noise, BUNDLE[:at] + noise, BUNDLE[:at]):
        if raw == BUNDLE:
            continue
        with pytest.raises((Malformed, Untrusted)):
            verify_bundle(raw, KEY.public_key(), in_use=None, now=NOW)


def info(age: timedelta, mark: int = 1) -> BundleInfo:
    digest = parse_bundle(BUNDLE).digest
    return BundleInfo(digest=replace(digest, raw=bytes([mark]) * 32), issued_at=NOW - age)


@pytest.mark.parametrize(
    ("in_use", "code"),
    [
        pytest.param(None, "", id="first"),
        pytest.param(info(DAY), "", id="newer-than-in-use"),
        pytest.param(BundleInfo(digest=parse_bundle(BUNDLE).digest, issued_at=NOW), "", id="same-again"),
        pytest.param(info(-DAY), "bundle-rollback", id="older-than-in-use"),
        pytest.param(info(timedelta(0)), "bundle-rollback", id="same-age-other-content"),
    ],
)
def test_rollback(in_use: BundleInfo | None, code: str) -> None:
    if not code:
        assert verify_bundle(BUNDLE, KEY.public_key(), in_use=in_use, now=NOW).info.issued_at == NOW
        return
    with pytest.raises(Untrusted) as caught:
        verify_bundle(BUNDLE, KEY.public_key(), in_use=in_use, now=NOW)
    assert caught.value.code == code
    assert verify_bundle(BUNDLE, KEY.public_key(), in_use=in_use, now=NOW, allow_rollback=True).documents


def test_future_bundle() -> None:
    with pytest.raises(Untrusted) as caught:
        verify_bundle(BUNDLE, KEY.public_key(), in_use=None, now=NOW - DAY, allow_rollback=True)
    assert caught.value.code == "bundle-future"


@pytest.mark.parametrize(
    ("found", "required", "result", "code"),
    [
        pytest.param(info(DAY), True, Result.PASS, "", id="recent"),
        pytest.param(info(31 * DAY), False, Result.FAIL, "bundle-expired", id="old"),
        pytest.param(None, False, Result.SKIPPED, "bundle-absent", id="none"),
        pytest.param(None, True, Result.FAIL, "bundle-absent", id="none-but-required"),
    ],
)
def test_age_rule(found: BundleInfo | None, required: bool, result: Result, code: str) -> None:
    finding = judge_bundle(found, BundleRule(max_age=30 * DAY, required=required), now=NOW)
    assert (finding.result, finding.code) == (result, code)


def test_age_is_reported() -> None:
    assert info(DAY).to_json(NOW) == {
        "id": "sha256:" + "01" * 32,
        "issued-at": "2026-11-20T00:00:00+00:00",
        "age-seconds": 86400,
    }
    with pytest.raises(Misconfigured):
        BundleRule(max_age=timedelta(0))


def test_keys(tmp_path: Path) -> None:
    private, public = tmp_path / "k" / "key.pem", tmp_path / "k" / "key.pub"
    write_key_pair(private, public)
    assert private.stat().st_mode & 0o777 == 0o600
    raw = build_bundle(DOCUMENTS, read_signer(private), issued_at=NOW)
    assert verify_bundle(raw, load_bundle_key(public.read_bytes()), in_use=None, now=NOW).documents
    with pytest.raises(Misconfigured) as caught:
        write_key_pair(private, public)
    assert caught.value.code == "file-exists"


def pem(key: ec.EllipticCurvePrivateKey) -> tuple[bytes, bytes]:
    return (
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
    )


def test_key_types(tmp_path: Path) -> None:
    private, public = pem(P384)
    (tmp_path / "key.pem").write_bytes(private)
    assert isinstance(read_signer(tmp_path / "key.pem"), ec.EllipticCurvePrivateKey)
    assert isinstance(load_bundle_key(public), ec.EllipticCurvePublicKey)
    weak_private, weak_public = pem(ec.derive_private_key(7, ec.SECP256R1()))
    for content in (weak_private, b"rubbish"):
        (tmp_path / "key.pem").write_bytes(content)
        with pytest.raises(Misconfigured):
            read_signer(tmp_path / "key.pem")
    for content in (weak_public, private, b""):
        with pytest.raises(AttestationError) as caught:
            load_bundle_key(content)
        assert caught.value.code == "bundle-key"


def test_document_names() -> None:
    assert document().name == ("rim", "NV_GPU_DRIVER_GH100_1", sha256(b"<rim/>").hexdigest())
    for changes, code in (
        ({"content": b""}, "collateral-size"),
        ({"content": b"x" * (256 * 1024 + 1)}, "collateral-size"),
        ({"identifier": "a/b"}, "collateral-id"),
        ({"identifier": "a" * 129}, "collateral-id"),
        ({"first_seen": NOW.replace(tzinfo=None)}, "collateral-time"),
    ):
        with pytest.raises(Malformed) as caught:
            document(**changes)
        assert caught.value.code == code
