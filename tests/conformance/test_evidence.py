"""Items 23 to 28 and 72 of keybroker.md 4.2 on the wire, with evidence of a simulated SNP guest and its GPU.

Digests are computed here, from the specification: the broker's own functions make nothing that these tests send.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from attestation.broker.endorsement import TokenTrust
from attestation.values import Architecture, ResourcePath
from tests.attestation.broker.broker import GPU_POLICY, INIT_DATA
from tests.attestation.broker.issuer import Signer, foreign_claims
from tests.attestation.tee.world import FORGE, Guest, render_additional
from tests.conformance.rust_client import Evidence, RustClient, TeeKey, error_of, jcs
from tests.conformance.target import ALLOW_ALL, DENY_SOME, Target, local_target

pytestmark = pytest.mark.usefixtures("own")
Document = dict[str, Any]


def device_document(nonce: str, jwk: dict[str, str], _additional: str) -> Document:
    return {"nonce": nonce, "tee-pubkey": jwk}


def primary_document(nonce: str, jwk: dict[str, str], additional: str) -> Document:
    return {"additional-evidence": additional, "nonce": nonce, "tee-pubkey": jwk}


@dataclass(frozen=True, kw_only=True)
class Attester:
    """What the guest does, step by step; each test changes one step."""

    device: Callable[[str, dict[str, str], str], Document] = device_document
    primary: Callable[[str, dict[str, str], str], Document] = primary_document
    device_hash: Callable[[bytes], bytes] = lambda raw: hashlib.sha384(raw).digest()
    primary_hash: Callable[[bytes], bytes] = lambda raw: hashlib.sha384(raw).digest()
    cut: Callable[[bytes], bytes] = lambda digest: digest[:32]
    pad: Callable[[bytes], bytes] = lambda digest: digest.ljust(64, b"\0")
    canonical: Callable[[Document], bytes] = jcs
    sent: Callable[[str], str] = lambda additional: additional
    gpus: int = 1

    def __call__(self, nonce: str, jwk: dict[str, str]) -> Evidence:
        spdm = self.cut(self.device_hash(self.canonical(self.device(nonce, jwk, ""))))
        additional = render_additional([FORGE.device(Architecture.HOPPER, i, nonce=spdm) for i in range(self.gpus)])
        digest = self.primary_hash(self.canonical(self.primary(nonce, jwk, additional)))
        guest = Guest(init_data=INIT_DATA).with_(nonce=nonce, jwk=jwk, gpus=0)
        made = guest.evidence([], report_data=self.pad(digest))
        return dict(made.primary), self.sent(additional), INIT_DATA


def attest(kbs: Target, attester: Attester) -> int:
    client = RustClient(wire=kbs.wire(), tee="snp", attester=attester, key=TeeKey.make())
    client.auth()
    reply = client.attest()
    if reply.status != 200:
        assert error_of(reply)["type"].endswith("/AttestationError")
    return reply.status


@pytest.mark.parametrize(
    ("gpus", "kind"),
    [
        pytest.param(0, "P-256", id="kbs-024-no-device"),
        pytest.param(1, "P-256", id="kbs-024-one-device"),
        pytest.param(2, "P-521", id="kbs-028-two-devices-one-nonce"),
        pytest.param(1, "RSA", id="kbs-025-rsa-members"),
    ],
)
def test_what_the_specification_says_is_accepted(kbs: Target, gpus: int, kind: str) -> None:
    """Over the wire, for every kind of TEE key."""
    client = RustClient(wire=kbs.wire(), tee="snp", attester=Attester(gpus=gpus), key=TeeKey.make(kind))
    client.handshake()


def _with_evidence(nonce: str, jwk: dict[str, str], additional: str) -> Document:
    return primary_document(nonce, jwk, additional or "x")


def _spaced(document: Document) -> bytes:
    return json.dumps(document, sort_keys=True).encode()


@pytest.mark.parametrize(
    "attester",
    [
        pytest.param(Attester(sent=lambda text: text + " "), id="kbs-023-string-is-hashed-verbatim"),
        pytest.param(Attester(sent=lambda text: text.replace('"unknown"', '"other"')), id="kbs-023-one-word-changed"),
        pytest.param(Attester(sent=lambda _: ""), id="kbs-024-devices-left-out"),
        pytest.param(Attester(primary=device_document), id="kbs-024-primary-without-devices"),
        pytest.param(Attester(primary=device_document, gpus=0), id="kbs-024-primary-without-the-empty-string"),
        pytest.param(Attester(device=_with_evidence), id="kbs-024-device-with-evidence"),
        pytest.param(Attester(canonical=_spaced), id="kbs-025-other-json"),
        pytest.param(Attester(primary_hash=lambda raw: hashlib.sha256(raw).digest()), id="kbs-026-sha256"),
        pytest.param(Attester(primary_hash=lambda raw: hashlib.sha512(raw).digest()), id="kbs-026-sha512"),
        pytest.param(Attester(device_hash=lambda raw: hashlib.sha256(raw).digest()), id="kbs-026-device-sha256"),
        pytest.param(Attester(pad=lambda digest: digest.rjust(64, b"\0")), id="kbs-027-padded-left"),
        pytest.param(Attester(pad=lambda digest: digest.ljust(64, b"\1")), id="kbs-027-padded-with-ones"),
        pytest.param(Attester(cut=lambda digest: digest[16:]), id="kbs-028-last-bytes"),
        pytest.param(Attester(cut=lambda digest: hashlib.sha256(digest).digest()), id="kbs-028-hashed-again"),
    ],
)
def test_anything_else_is_refused(kbs: Target, attester: Attester) -> None:
    """401, whichever step the guest did otherwise."""
    assert attest(kbs, attester) == 401


@pytest.fixture
def trusting(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A broker that takes tokens of one other service, with a GPU key and a plain secret."""
    signer = Signer(name="other service")
    trust = TokenTrust.of(certificates=[signer.pem])
    with local_target(tmp_path_factory.mktemp("trusting"), options={"external": trust}) as target:
        assert target.local
        target.local.broker.put(ResourcePath.parse("default/model/llama"), b"k" * 32, policy=GPU_POLICY)
        yield target, signer


@pytest.mark.parametrize("_case", [pytest.param(None, id="kbs-072-accepted-where-configured")])
def test_a_token_of_another_service(trusting: tuple[Target, Signer], _case: None) -> None:
    """Bearer, no cookie: a JWE for the key in its claims where the resource policy allows, never a GPU key."""
    kbs, signer = trusting
    key = TeeKey.make()
    assert isinstance(key.private, ec.EllipticCurvePrivateKey)
    claims = foreign_claims(key.private)
    token = signer.token(claims, jwk=signer.jwk | {"x5c": [signer.x5c]})
    client = RustClient(wire=kbs.wire(), key=key, token=token)
    reply = client.get("resource/default/test/secret", bearer=True)
    assert (reply.status, key.decrypt(reply.json())) == (200, b"shhhhhhh")
    kbs.policy(ALLOW_ALL)
    assert client.get("resource/default/model/llama", bearer=True).status == 403
    kbs.policy(DENY_SOME)
    assert client.get("resource/default/test/denied", bearer=True).status == 403
    assert client.get("resource/default/test/absent", bearer=True).status == 404
    stranger = replace(client, wire=kbs.wire(), token=Signer(name="x").token(claims, jwk=signer.jwk))
    reply = stranger.get("resource/default/test/secret", bearer=True)
    assert reply.status == 401
    error_of(reply)


@pytest.mark.parametrize("_case", [pytest.param(None, id="kbs-056-foreign-token-of-170-KiB")])
def test_a_large_foreign_token_fits_the_head(trusting: tuple[Target, Signer], _case: None) -> None:
    """Verbose claims of 8 GPUs in the Authorization header."""
    kbs, signer = trusting
    key = TeeKey.make()
    assert isinstance(key.private, ec.EllipticCurvePrivateKey)
    claims = foreign_claims(key.private) | {"evidence": "x" * 125_000}
    token = signer.token(claims, jwk=signer.jwk | {"x5c": [signer.x5c]})
    assert len(token) > 165_000
    client = RustClient(wire=kbs.wire(), key=key, token=token)
    assert client.get("resource/default/test/secret", bearer=True).status == 200
