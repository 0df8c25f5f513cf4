"""Known answers of both binding profiles, and what must change them."""

import hashlib
from collections.abc import Callable
from typing import Any

import pytest
import rfc8785
from hypothesis import example, given, settings
from hypothesis import strategies as st

from attestation.crypto import binding
from attestation.crypto.binding import DeviceBytes
from attestation.errors import Malformed
from attestation.values import DeviceKind

NONCE = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
JWK = {
    "kty": "EC",
    "crv": "P-256",
    "alg": "ECDH-ES+A256KW",
    "x": "G8fAud93NgCg8C_0bY1YqVZ5zNlkb-cNsGTQia7m0is",
    "y": "RK1gonvUKKQOCSHDwz3SiN9EijCqmXS4sDeRbc8RnL0",
}
DEVICE_DIGEST = "d3a274c8bba9e73bbc28ef45ec5f4e6cb1bf51a9542792d94c94d8a34dd3accb2304d26c60dbe86cdde846adcc30655b"
PRIMARY_DIGEST = "230357accf6cf80f20d7006702c5fc43e12e55eae51b064d42c42be62e29c18243916ffc340689de3fe21879c373db52"
UPSTREAM_JCS = "e71ce8e70d814ba6639c3612ebee0ff1f76f650f8dbb5e47157e0f3f525cd22c4597480a186427c813ca941da78870c3"
GPU = DeviceBytes(kind=DeviceKind.GPU, report=b"report", chain=b"chain")
OTHER = DeviceBytes(kind=DeviceKind.GPU, report=b"report2", chain=b"chain")


def test_upstream_canonical_json_vector() -> None:
    canonical = rfc8785.dumps({"b": 1, "a": "test", "c": {"d": "e"}})
    assert hashlib.sha384(canonical).hexdigest() == UPSTREAM_JCS


def test_trustee_known_answers() -> None:
    assert binding.trustee_device_digest(NONCE, JWK).hex() == DEVICE_DIGEST
    assert binding.trustee_device_nonce(NONCE, JWK).hex() == DEVICE_DIGEST[:64]
    assert binding.trustee_primary_digest(NONCE, JWK, "").hex() == PRIMARY_DIGEST
    report_data = binding.trustee_report_data(NONCE, JWK, "")
    assert report_data.hex() == PRIMARY_DIGEST + "00" * 16


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
@example('{"nvidia":{"evidence":"AA=="}}')
@example('\\"\\\\"')
@example('"\n\t\x00\x1f\x7f\u2028\U0001f511')
def test_evidence_string_is_hashed_as_every_peer_hashes_it(evidence: str) -> None:
    """RFC 8785 by an independent library; the Rust and Go peers have the same form."""
    document: dict[str, Any] = {"additional-evidence": evidence, "nonce": NONCE, "tee-pubkey": JWK}
    digest = hashlib.sha384(rfc8785.dumps(document)).digest()
    assert binding.trustee_primary_digest(NONCE, JWK, evidence) == digest
    both = binding.trustee_device_nonce(NONCE, JWK), binding.trustee_report_data(NONCE, JWK, evidence)
    assert binding.trustee_binding(NONCE, JWK, evidence) == both
    assert both[1] == digest + bytes(16)


def test_native_known_answers() -> None:
    """Computed here from the definition, with nothing of the module under test but the key encoding."""
    spki = binding.tee_spki(JWK)
    nonce, key = bytes(range(32)), hashlib.sha384(spki).digest()
    assert binding.cgpu_device_nonce(NONCE, spki).raw == hashlib.sha256(b"cgpu/v1/gpu-nonce\x00" + nonce + key).digest()
    digests = sorted(
        hashlib.sha384(b"cgpu/v1/device\x00\x01" + len(r).to_bytes(4, "big") + r + b"\x00\x00\x00\x05chain").digest()
        for r in (b"report", b"report2")
    )
    init = hashlib.sha384(b"init").digest()
    expected = hashlib.sha512(b"cgpu/v1/cpu\x00" + nonce + key + b"\x00\x00\x00\x02" + b"".join(digests) + init)
    assert binding.cgpu_report_data(NONCE, spki, [OTHER, GPU], b"init") == expected.digest()
    assert binding.cgpu_report_data(NONCE, spki, [GPU, OTHER], b"init") == expected.digest()


def test_native_fixed_vector() -> None:
    """Pinned bytes, so that a change of the definition cannot pass unnoticed."""
    spki = binding.tee_spki(JWK)
    assert spki.hex() == (
        "3059301306072a8648ce3d020106082a8648ce3d03010703420004"
        "1bc7c0b9df773600a0f02ff46d8d58a95679ccd9646fe70db064d089aee6d22b"
        "44ad60a27bd428a40e0921c3c33dd288df448a30aa9974b8b037916dcf119cbd"
    )
    assert binding.cgpu_device_nonce(NONCE, spki).hex() == NATIVE_NONCE
    assert binding.cgpu_report_data(NONCE, spki, [GPU], None).hex() == NATIVE_REPORT_DATA


NATIVE_NONCE = "80447915049eb057449453c9fe08819776551f0cdbf5ef592f930c623f5f53ff"
NATIVE_REPORT_DATA = (
    "44592b88cd885a319abbd7b2b6173ef2bc0cf29a1428dc200473667f173f39b8"
    "9c8fa6d6175754d52b65bc1ea93975d1cf760301002863a700b777fb8998fe47"
)


@pytest.mark.parametrize(
    "other",
    [
        pytest.param([], id="dropped"),
        pytest.param([GPU, OTHER], id="added"),
        pytest.param([OTHER], id="swapped"),
        pytest.param([DeviceBytes(kind=DeviceKind.NVSWITCH, report=b"report", chain=b"chain")], id="class"),
        pytest.param([DeviceBytes(kind=DeviceKind.GPU, report=b"reportc", chain=b"hain")], id="split-moved"),
    ],
)
def test_native_report_data_fixes_the_device_set(other: list[DeviceBytes]) -> None:
    spki = binding.tee_spki(JWK)
    assert binding.cgpu_report_data(NONCE, spki, other, None) != binding.cgpu_report_data(NONCE, spki, [GPU], None)


_BAD: list[tuple[str, Callable[[], object], str]] = [
    ("unknown-member", lambda: binding.trustee_device_nonce(NONCE, JWK | {"kid": "1"}), "tee-pubkey-members"),
    ("missing-member", lambda: binding.trustee_device_nonce(NONCE, {"kty": "EC"}), "tee-pubkey-members"),
    ("value-a-number", lambda: binding.trustee_device_nonce(NONCE, JWK | {"x": 1}), "tee-pubkey-members"),  # type: ignore[arg-type]
    ("no-kty", lambda: binding.trustee_device_nonce(NONCE, {}), "tee-pubkey-members"),
    ("hash", lambda: binding.trustee_device_nonce(NONCE, JWK, "md5"), "binding-hash"),
    ("surrogate", lambda: binding.trustee_report_data(NONCE, JWK, "\ud800"), "binding-jcs"),
    ("not-base64", lambda: binding.cgpu_device_nonce("*", b"k"), "nonce-base64"),
    ("short-nonce", lambda: binding.cgpu_device_nonce("AAAA", b"k"), "nonce-length"),
    ("off-curve", lambda: binding.tee_spki(JWK | {"x": JWK["y"]}), "tee-key-point"),
    ("curve", lambda: binding.tee_spki(JWK | {"crv": "P-224"}), "tee-key-curve"),
    ("duplicate", lambda: binding.cgpu_report_data(NONCE, b"k", [GPU, GPU], None), "device-duplicate"),
    (
        "too-many",
        lambda: binding.cgpu_report_data(
            NONCE, b"k", [DeviceBytes(kind=DeviceKind.GPU, report=bytes([i]), chain=b"") for i in range(65)], None
        ),
        "device-count",
    ),
]


@pytest.mark.parametrize(("call", "code"), [pytest.param(c, code, id=i) for i, c, code in _BAD])
def test_refusals(call: Callable[[], object], code: str) -> None:
    with pytest.raises(Malformed) as caught:
        call()
    assert caught.value.code == code


def test_as_many_devices_as_fit() -> None:
    devices = [DeviceBytes(kind=DeviceKind.GPU, report=bytes([i]), chain=b"") for i in range(64)]
    assert len(binding.cgpu_report_data(NONCE, b"k", devices, None)) == 64


@pytest.mark.parametrize("name", ["sha256", "sha384", "sha512"])
def test_every_hash_that_a_session_may_agree_on(name: str) -> None:
    document: dict[str, Any] = {"nonce": NONCE, "tee-pubkey": JWK}
    assert binding.trustee_device_digest(NONCE, JWK, name) == hashlib.new(name, rfc8785.dumps(document)).digest()
