"""Stored OCSP responses and CRLs: what counts, what does not, and what each role of a certificate accepts."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given, settings
from hypothesis import strategies as st

from attestation.errors import Malformed, Misconfigured, Untrusted
from attestation.findings import Result
from attestation.values import Digest
from attestation.verify.ocsp import verify_ocsp
from attestation.verify.revocation import (
    ChainKind,
    NoRevocation,
    Revocation,
    RevocationCache,
    RevocationPolicy,
    RevocationRule,
    RevocationStatus,
    check_revocation,
    judge_revocation,
)
from tests.attestation.collateral.conftest import CRL_URL, DAY, NOW, Pki, certify
from tests.attestation.forged_revocation import Signer, delegate, forge_crl, forge_ocsp

POLICY = RevocationPolicy()
REVOKED, UNKNOWN = ocsp.OCSPCertStatus.REVOKED, ocsp.OCSPCertStatus.UNKNOWN
Flags = x509.ReasonFlags


@dataclass(frozen=True)
class Stored:
    """A source that holds what a case stored."""

    ocsp: tuple[bytes, ...] = ()
    crl: tuple[bytes, ...] = ()

    def ocsp_responses(self, certificate: x509.Certificate, issuer: x509.Certificate) -> tuple[bytes, ...]:
        return self.ocsp

    def crls(self, issuer: x509.Certificate) -> tuple[bytes, ...]:
        return self.crl


def answer(pki: Pki, **changes: object) -> bytes:
    """A good response about the leaf by a delegated signer, a day old and valid for six more, with changes."""
    values: dict[str, object] = {
        "certificate": pki.leaf.certificate,
        "issuer": pki.ca.certificate,
        "signer": delegate(pki.ca, now=NOW - 2 * DAY),
        "this_update": NOW - DAY,
        "next_update": NOW + 6 * DAY,
    }
    return forge_ocsp(**(values | changes))  # type: ignore[arg-type]


def crl(pki: Pki, revoked: dict[int, x509.ReasonFlags | None], *, age: timedelta = DAY, **changes: object) -> bytes:
    """A week-long CRL of the CA."""
    return forge_crl(pki.ca, revoked, last_update=NOW - age, next_update=NOW - age + 7 * DAY, **changes)  # type: ignore[arg-type]


def status(pki: Pki, stored: Stored, *, rule: RevocationRule = POLICY.rim, nonce: bytes | None = None) -> Revocation:
    return check_revocation(pki.leaf.certificate, pki.ca.certificate, stored, rule=rule, now=NOW, nonce=nonce)


def replace_last_byte(der: bytes) -> bytes:
    return der[:-1] + bytes([der[-1] ^ 1])


def renamed(ca: Signer) -> x509.Certificate:
    """A certificate of the same key under another name."""
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "SIMULATED other name")])
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(ca.key.public_key())
        .serial_number(2)
        .not_valid_before(NOW)
        .not_valid_after(NOW + DAY)
        .sign(ca.key, hashes.SHA384())
    )


def namesake(pki: Pki) -> x509.Certificate:
    """The leaf's serial number, of an issuer with the CA's key and another name."""
    other = Signer(renamed(pki.ca), pki.ca.key)
    return certify("SIMULATED leaf", other, ca=False, serial=LEAF).certificate


OCSP_CASES: list[tuple[str, Callable[[Pki], tuple[bytes, ...]], RevocationStatus, str]] = [
    ("gpu-087-absent", lambda p: (), RevocationStatus.UNKNOWN, "absent"),
    (
        "gpu-088-past-next-update",
        lambda p: (answer(p, this_update=NOW - 8 * DAY, next_update=NOW - DAY, signer=p.ca),),
        RevocationStatus.STALE,
        "stale",
    ),
    (
        "gpu-088-past-max-age-without-next-update",
        lambda p: (answer(p, this_update=NOW - 31 * DAY, next_update=None, signer=p.ca),),
        RevocationStatus.STALE,
        "stale",
    ),
    (
        "gpu-088-signer-ended-before-next-update",
        lambda p: (
            answer(
                p,
                this_update=NOW - 5 * DAY,
                next_update=NOW + DAY,
                signer=delegate(p.ca, now=NOW - 6 * DAY, days=2),
            ),
        ),
        RevocationStatus.STALE,
        "stale",
    ),
    (
        "gpu-088-from-the-future",
        lambda p: (answer(p, this_update=NOW + DAY, next_update=NOW + 2 * DAY),),
        RevocationStatus.UNKNOWN,
        "ocsp-future",
    ),
    (
        "gpu-089-other-serial",
        lambda p: (answer(p, certificate=p.other_leaf.certificate),),
        RevocationStatus.UNKNOWN,
        "ocsp-other-certificate",
    ),
    (
        "gpu-089-same-serial-and-name-other-issuer-key",
        lambda p: (answer(p, issuer=p.impostor.certificate, signer=p.ca),),
        RevocationStatus.UNKNOWN,
        "ocsp-other-certificate",
    ),
    (
        "gpu-089-certid-hash-not-allowed",
        lambda p: (answer(p, cert_id_hash=hashes.SHA512()),),
        RevocationStatus.UNKNOWN,
        "ocsp-other-certificate",
    ),
    (
        "gpu-090-not-marked-for-ocsp-signing",
        lambda p: (answer(p, signer=delegate(p.ca, now=NOW - 2 * DAY, ocsp_signing=False)),),
        RevocationStatus.UNKNOWN,
        "ocsp-signer",
    ),
    (
        "gpu-090-delegated-by-another-issuer",
        lambda p: (answer(p, signer=delegate(p.root, now=NOW - 2 * DAY)),),
        RevocationStatus.UNKNOWN,
        "ocsp-signer",
    ),
    (
        "gpu-090-delegated-by-same-named-issuer",
        lambda p: (answer(p, signer=delegate(p.impostor, now=NOW - 2 * DAY)),),
        RevocationStatus.UNKNOWN,
        "ocsp-signer",
    ),
    ("gpu-090-signed-by-a-leaf", lambda p: (answer(p, signer=p.other_leaf),), RevocationStatus.UNKNOWN, "ocsp-signer"),
    (
        "gpu-090-older-than-its-signer",
        lambda p: (answer(p, signer=delegate(p.ca, now=NOW + DAY / 2)),),
        RevocationStatus.UNKNOWN,
        "ocsp-signer",
    ),
    (
        "gpu-090-signature-broken",
        lambda p: (replace_last_byte(answer(p, signer=p.ca)),),
        RevocationStatus.UNKNOWN,
        "ocsp-signature",
    ),
    (
        "gpu-092-key-compromise",
        lambda p: (answer(p, status=REVOKED, reason=Flags.key_compromise),),
        RevocationStatus.REVOKED,
        "keyCompromise",
    ),
    (
        "gpu-092-key-compromise-beats-newer-good",
        lambda p: (
            answer(p, signer=p.ca),
            answer(p, status=REVOKED, reason=Flags.key_compromise, signer=p.ca, this_update=NOW - 90 * DAY),
        ),
        RevocationStatus.REVOKED,
        "keyCompromise",
    ),
    (
        "gpu-092-no-reason",
        lambda p: (answer(p, status=REVOKED),),
        RevocationStatus.REVOKED,
        "unspecified",
    ),
    (
        "gpu-093-hold-is-revoked",
        lambda p: (answer(p, status=REVOKED, reason=Flags.certificate_hold),),
        RevocationStatus.REVOKED,
        "certificateHold",
    ),
    (
        "gpu-093-hold-lifted-by-newer-good",
        lambda p: (
            answer(p, status=REVOKED, reason=Flags.certificate_hold, signer=p.ca, this_update=NOW - 3 * DAY),
            answer(p, signer=p.ca),
        ),
        RevocationStatus.GOOD,
        "not-revoked",
    ),
    (
        "gpu-093-old-hold-is-no-longer-unknown",
        lambda p: (answer(p, status=REVOKED, reason=Flags.certificate_hold, signer=p.ca, this_update=NOW - 99 * DAY),),
        RevocationStatus.REVOKED,
        "certificateHold",
    ),
    ("good-delegated", lambda p: (answer(p),), RevocationStatus.GOOD, "not-revoked"),
    ("good-issuer-itself", lambda p: (answer(p, signer=p.ca),), RevocationStatus.GOOD, "not-revoked"),
    ("good-sha1-certid", lambda p: (answer(p, cert_id_hash=hashes.SHA1()),), RevocationStatus.GOOD, "not-revoked"),
    ("good-sha256-certid", lambda p: (answer(p, cert_id_hash=hashes.SHA256()),), RevocationStatus.GOOD, "not-revoked"),
    ("good-stored-nonce-is-ignored", lambda p: (answer(p, nonce=b"n" * 32),), RevocationStatus.GOOD, "not-revoked"),
    ("good-among-rubbish", lambda p: (b"", b"\x30\x03", answer(p)), RevocationStatus.GOOD, "not-revoked"),
    ("responder-unknown", lambda p: (answer(p, status=UNKNOWN),), RevocationStatus.UNKNOWN, "responder-unknown"),
    (
        "tie-goes-to-the-worse",
        lambda p: (answer(p, signer=p.ca), answer(p, status=UNKNOWN, signer=p.ca)),
        RevocationStatus.UNKNOWN,
        "responder-unknown",
    ),
    (
        "tie-goes-to-the-hold",
        lambda p: (
            answer(p, signer=p.ca, status=UNKNOWN),
            answer(p, signer=p.ca, status=REVOKED, reason=Flags.certificate_hold),
        ),
        RevocationStatus.REVOKED,
        "certificateHold",
    ),
    ("gpu-088-of-this-second", lambda p: (answer(p, this_update=NOW),), RevocationStatus.GOOD, "not-revoked"),
    (
        "gpu-088-ends-this-second",
        lambda p: (answer(p, signer=p.ca, next_update=NOW),),
        RevocationStatus.GOOD,
        "not-revoked",
    ),
    (
        "gpu-088-max-age-to-the-second",
        lambda p: (answer(p, signer=p.ca, this_update=NOW - 30 * DAY, next_update=None),),
        RevocationStatus.GOOD,
        "not-revoked",
    ),
    (
        "gpu-088-signer-ended-and-no-next-update",
        lambda p: (
            answer(p, this_update=NOW - 5 * DAY, next_update=None, signer=delegate(p.ca, now=NOW - 6 * DAY, days=2)),
        ),
        RevocationStatus.STALE,
        "stale",
    ),
    (
        "gpu-089-same-key-other-issuer-name",
        lambda p: (answer(p, certificate=namesake(p), signer=p.ca),),
        RevocationStatus.UNKNOWN,
        "ocsp-other-certificate",
    ),
    (
        "gpu-088-older-than-its-issuer",
        lambda p: (answer(p, signer=p.ca, this_update=NOW - 500 * DAY),),
        RevocationStatus.STALE,
        "stale",
    ),
    (
        "gpu-090-as-old-as-its-signer",
        lambda p: (answer(p, signer=delegate(p.ca, now=NOW)),),
        RevocationStatus.GOOD,
        "not-revoked",
    ),
    (
        "gpu-090-delegated-by-sha-224",
        lambda p: (answer(p, signer=delegate(p.ca, now=NOW - 2 * DAY, digest=hashes.SHA224())),),
        RevocationStatus.UNKNOWN,
        "ocsp-algorithm",
    ),
    (
        "gpu-090-signed-by-sha-224",
        lambda p: (answer(p, signer=p.ca, digest=hashes.SHA224()),),
        RevocationStatus.UNKNOWN,
        "ocsp-algorithm",
    ),
    (
        "gpu-090-issuers-key-under-another-name",
        lambda p: (answer(p, signer=Signer(renamed(p.ca), p.ca.key), by_name=True),),
        RevocationStatus.UNKNOWN,
        "ocsp-signer",
    ),
    (
        "gpu-090-five-signers",
        lambda p: (answer(p, before=[p.other_leaf.certificate] * 4),),
        RevocationStatus.UNKNOWN,
        "ocsp-signers",
    ),
    (
        "good-fourth-signer",
        lambda p: (answer(p, before=[p.other_leaf.certificate] * 3),),
        RevocationStatus.GOOD,
        "not-revoked",
    ),
    (
        "good-issuer-by-name",
        lambda p: (answer(p, signer=p.ca, by_name=True),),
        RevocationStatus.GOOD,
        "not-revoked",
    ),
    ("good-64th", lambda p: (*(b"",) * 63, answer(p)), RevocationStatus.GOOD, "not-revoked"),
    ("65th-is-not-looked-at", lambda p: (*(b"",) * 64, answer(p)), RevocationStatus.UNKNOWN, "ocsp-der"),
    ("largest", lambda p: (b"\x30" * 64 * 1024,), RevocationStatus.UNKNOWN, "ocsp-der"),
    ("not-der", lambda p: (b"\x30\x80rubbish",), RevocationStatus.UNKNOWN, "ocsp-der"),
    ("too-large", lambda p: (b"\x30" * (64 * 1024 + 1),), RevocationStatus.UNKNOWN, "ocsp-size"),
    (
        "responder-refuses",
        lambda p: (
            ocsp.OCSPResponseBuilder.build_unsuccessful(ocsp.OCSPResponseStatus.UNAUTHORIZED).public_bytes(
                Encoding.DER
            ),
        ),
        RevocationStatus.UNKNOWN,
        "ocsp-refused",
    ),
]


@pytest.mark.parametrize(
    ("stored", "expected", "reason"), [pytest.param(build, want, why, id=name) for name, build, want, why in OCSP_CASES]
)
def test_ocsp(pki: Pki, stored: Callable[[Pki], tuple[bytes, ...]], expected: RevocationStatus, reason: str) -> None:
    result = status(pki, Stored(ocsp=stored(pki)))
    assert (expected, reason) == (result.status, result.reason)
    assert (result.document is None) == (result.since is None)


ALLOWED = [hashes.SHA256(), hashes.SHA384(), hashes.SHA512()]


@pytest.mark.parametrize("digest", ALLOWED, ids=[d.name for d in ALLOWED])
@pytest.mark.parametrize(
    "key", [ec.generate_private_key(ec.SECP256R1()), rsa.generate_private_key(65537, 2048)], ids=["ec", "rsa"]
)
def test_every_allowed_signature(
    pki: Pki, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey, digest: hashes.HashAlgorithm
) -> None:
    stored = answer(pki, signer=delegate(pki.ca, now=NOW - 2 * DAY, key=key), digest=digest)
    assert status(pki, Stored(ocsp=(stored,))).status is RevocationStatus.GOOD


def test_the_document_that_says_so_is_named(pki: Pki) -> None:
    """By SHA-256 of its bytes; where nothing speaks, nothing is named."""
    spoken, listed = answer(pki, signer=pki.ca), crl(pki, {})
    for stored, source, document in ((Stored(ocsp=(spoken,)), "ocsp", spoken), (Stored(crl=(listed,)), "crl", listed)):
        said = status(pki, stored)
        assert said.document == Digest("sha256", hashlib.sha256(document).digest())
        assert (said.to_json()["source"], said.to_json()["document"]) == (source, str(said.document))
    absent = status(pki, Stored()).to_json()
    assert (absent["source"], absent["document"], absent["this-update"]) == (None, None, None)


@pytest.mark.parametrize(
    ("sent", "answered", "expected"),
    [
        pytest.param(b"a" * 32, b"b" * 32, (RevocationStatus.UNKNOWN, "ocsp-nonce"), id="gpu-091-wrong"),
        pytest.param(b"a" * 32, None, (RevocationStatus.UNKNOWN, "ocsp-nonce"), id="gpu-091-missing"),
        pytest.param(b"a" * 32, b"a" * 32, (RevocationStatus.GOOD, "not-revoked"), id="gpu-091-right"),
    ],
)
def test_nonce_of_a_fresh_answer(
    pki: Pki, sent: bytes, answered: bytes | None, expected: tuple[RevocationStatus, str]
) -> None:
    stored = Stored(ocsp=(answer(pki, nonce=answered),), crl=(crl(pki, {}),))
    result = status(pki, stored, nonce=sent)
    assert expected == (result.status, result.reason)


def unrelated_crl(pki: Pki) -> bytes:
    return forge_crl(pki.root, {}, last_update=NOW - DAY, next_update=NOW + DAY)


def impostor_crl(pki: Pki) -> bytes:
    return forge_crl(pki.impostor, {}, last_update=NOW - DAY, next_update=NOW + DAY)


def scope(**changes: object) -> tuple[tuple[x509.ExtensionType, bool], ...]:
    values: dict[str, object] = {
        "full_name": [x509.UniformResourceIdentifier(CRL_URL)],
        "relative_name": None,
        "only_contains_user_certs": False,
        "only_contains_ca_certs": False,
        "only_some_reasons": None,
        "indirect_crl": False,
        "only_contains_attribute_certs": False,
    }
    return ((x509.IssuingDistributionPoint(**(values | changes)), True),)  # type: ignore[arg-type]


LEAF = 0x1001
POINT = x509.UniformResourceIdentifier(CRL_URL)
RELATIVE = x509.RelativeDistinguishedName([x509.NameAttribute(x509.NameOID.COMMON_NAME, "here")])
CRL_CASES: list[tuple[str, Callable[[Pki], bytes], RevocationStatus, str]] = [
    ("gpu-088-crl-stale", lambda p: crl(p, {}, age=8 * DAY), RevocationStatus.STALE, "stale"),
    ("gpu-088-crl-future", lambda p: crl(p, {}, age=-DAY), RevocationStatus.UNKNOWN, "crl-future"),
    ("gpu-090-crl-other-issuer", unrelated_crl, RevocationStatus.UNKNOWN, "crl-issuer"),
    ("gpu-090-crl-same-name-other-key", impostor_crl, RevocationStatus.UNKNOWN, "crl-signature"),
    (
        "gpu-092-crl-listed",
        lambda p: crl(p, {LEAF: Flags.key_compromise}),
        RevocationStatus.REVOKED,
        "keyCompromise",
    ),
    ("gpu-092-crl-listed-without-reason", lambda p: crl(p, {LEAF: None}), RevocationStatus.REVOKED, "unspecified"),
    (
        "gpu-092-crl-listed-and-stale",
        lambda p: crl(p, {LEAF: Flags.superseded}, age=300 * DAY),
        RevocationStatus.REVOKED,
        "superseded",
    ),
    (
        "gpu-093-crl-hold",
        lambda p: crl(p, {LEAF: Flags.certificate_hold}),
        RevocationStatus.REVOKED,
        "certificateHold",
    ),
    ("crl-good", lambda p: crl(p, {0x1002: None}), RevocationStatus.GOOD, "not-revoked"),
    ("crl-good-scoped", lambda p: crl(p, {}, extensions=scope()), RevocationStatus.GOOD, "not-revoked"),
    (
        "crl-of-ca-certificates-only",
        lambda p: crl(p, {}, extensions=scope(only_contains_ca_certs=True)),
        RevocationStatus.UNKNOWN,
        "crl-scope",
    ),
    (
        "crl-of-another-point",
        lambda p: crl(p, {}, extensions=scope(full_name=[x509.UniformResourceIdentifier("http://crl.example/x")])),
        RevocationStatus.UNKNOWN,
        "crl-scope",
    ),
    (
        "crl-for-some-reasons",
        lambda p: crl(p, {}, extensions=scope(only_some_reasons=frozenset({Flags.superseded}))),
        RevocationStatus.UNKNOWN,
        "crl-scope",
    ),
    ("crl-indirect", lambda p: crl(p, {}, extensions=scope(indirect_crl=True)), RevocationStatus.UNKNOWN, "crl-scope"),
    (
        "crl-delta",
        lambda p: crl(p, {}, extensions=((x509.DeltaCRLIndicator(1), True),)),
        RevocationStatus.UNKNOWN,
        "crl-extension",
    ),
    (
        "crl-of-attribute-certificates-only",
        lambda p: crl(p, {}, extensions=scope(only_contains_attribute_certs=True)),
        RevocationStatus.UNKNOWN,
        "crl-scope",
    ),
    (
        "crl-of-a-relative-point",
        lambda p: crl(p, {}, extensions=scope(full_name=None, relative_name=RELATIVE)),
        RevocationStatus.UNKNOWN,
        "crl-scope",
    ),
    (
        "crl-of-leaves-only",
        lambda p: crl(p, {}, extensions=scope(only_contains_user_certs=True)),
        RevocationStatus.GOOD,
        "not-revoked",
    ),
    (
        "crl-of-no-named-point",
        lambda p: crl(p, {}, extensions=scope(full_name=None, only_contains_user_certs=True)),
        RevocationStatus.GOOD,
        "not-revoked",
    ),
    ("gpu-088-crl-of-this-second", lambda p: crl(p, {}, age=timedelta(0)), RevocationStatus.GOOD, "not-revoked"),
    ("crl-sha-256", lambda p: crl(p, {}, digest=hashes.SHA256()), RevocationStatus.GOOD, "not-revoked"),
    (
        "crl-extension-that-may-be-ignored",
        lambda p: crl(
            p, {}, extensions=((x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3"), b"\x05\0"), False),)
        ),
        RevocationStatus.GOOD,
        "not-revoked",
    ),
    ("crl-sha-512", lambda p: crl(p, {}, digest=hashes.SHA512()), RevocationStatus.UNKNOWN, "crl-algorithm"),
    (
        "crl-of-two-points",
        lambda p: crl(p, {}, extensions=scope(full_name=[x509.DNSName("crl.example"), POINT])),
        RevocationStatus.GOOD,
        "not-revoked",
    ),
    ("crl-largest", lambda p: bytes(4 * 1024 * 1024), RevocationStatus.UNKNOWN, "crl-der"),
    ("crl-too-large", lambda p: bytes(4 * 1024 * 1024 + 1), RevocationStatus.UNKNOWN, "crl-size"),
    ("crl-not-der", lambda p: b"\x30\x00", RevocationStatus.UNKNOWN, "crl-der"),
]


@pytest.mark.parametrize(
    ("stored", "expected", "reason"), [pytest.param(build, want, why, id=name) for name, build, want, why in CRL_CASES]
)
def test_crl(pki: Pki, stored: Callable[[Pki], bytes], expected: RevocationStatus, reason: str) -> None:
    result = status(pki, Stored(crl=(stored(pki),)))
    assert (expected, reason) == (result.status, result.reason)


@pytest.mark.parametrize(
    ("only", "expected", "reason"),
    [
        pytest.param("only_contains_ca_certs", RevocationStatus.GOOD, "not-revoked", id="of-authorities"),
        pytest.param("only_contains_user_certs", RevocationStatus.UNKNOWN, "crl-scope", id="of-leaves"),
    ],
)
def test_a_list_for_one_kind_of_certificates(pki: Pki, only: str, expected: RevocationStatus, reason: str) -> None:
    """About an authority: what holds for leaves holds the other way round."""
    listed = forge_crl(pki.root, {}, last_update=NOW - DAY, next_update=NOW + DAY, extensions=scope(**{only: True}))
    result = check_revocation(
        pki.ca.certificate, pki.root.certificate, Stored(crl=(listed,)), rule=POLICY.device_ca, now=NOW
    )
    assert (expected, reason) == (result.status, result.reason)


def test_a_certificate_that_names_its_list_relative_to_its_issuer(pki: Pki) -> None:
    """Such a name is not resolved, and not a reason to fail: the list of another point is not for it."""
    leaf = (
        x509.CertificateBuilder()
        .subject_name(pki.leaf.certificate.subject)
        .issuer_name(pki.ca.certificate.subject)
        .public_key(pki.leaf.key.public_key())
        .serial_number(LEAF)
        .not_valid_before(NOW)
        .not_valid_after(NOW + DAY)
        .add_extension(x509.CRLDistributionPoints([x509.DistributionPoint(None, RELATIVE, None, None)]), critical=False)
        .sign(pki.ca.key, hashes.SHA384())
    )
    unnamed = crl(pki, {}, extensions=scope(full_name=None, only_contains_user_certs=True))
    for stored, code in (
        (crl(pki, {}, extensions=scope()), "crl-scope"),
        (crl(pki, {}), "not-revoked"),
        (unnamed, "not-revoked"),
    ):
        result = check_revocation(leaf, pki.ca.certificate, Stored(crl=(stored,)), rule=POLICY.rim, now=NOW)
        assert result.reason == code


def test_a_crl_issuer_needs_the_key_usage(pki: Pki) -> None:
    ca = certify("SIMULATED no CRLs", pki.root, ca=True, serial=3, crl_sign=False)
    leaf = certify("SIMULATED leaf", ca, ca=False, serial=4)
    stored = Stored(crl=(forge_crl(ca, {}, last_update=NOW - DAY, next_update=NOW + DAY),))
    result = check_revocation(leaf.certificate, ca.certificate, stored, rule=POLICY.rim, now=NOW)
    assert (result.status, result.reason) == (RevocationStatus.UNKNOWN, "crl-issuer")


def test_a_listed_responder_has_no_voice(pki: Pki) -> None:
    signer = delegate(pki.ca, now=NOW - 2 * DAY)
    listed = crl(pki, {signer.certificate.serial_number: Flags.key_compromise}, age=20 * DAY)
    alone = status(pki, Stored(ocsp=(answer(pki, signer=signer),), crl=(crl(pki, {}, age=20 * DAY), b"rubbish")))
    assert alone.status is RevocationStatus.GOOD
    silenced = status(pki, Stored(ocsp=(answer(pki, signer=signer),), crl=(listed,)))
    assert silenced.status is RevocationStatus.STALE, "only the old CRL speaks"
    assert silenced.source == "crl"


@pytest.mark.parametrize("year", [pytest.param(9999, id="gpu-088-ends-9999")])
def test_far_ends_do_not_overflow(pki: Pki, year: int) -> None:
    far = NOW.replace(year=year, month=12, day=31)
    result = status(pki, Stored(ocsp=(answer(pki, signer=pki.ca, next_update=far),)))
    assert (RevocationStatus.GOOD, far) == (result.status, result.until)


def test_grace_extends_next_update_and_nothing_else(pki: Pki) -> None:
    rule = RevocationRule(kind=ChainKind.RIM, accept=frozenset({RevocationStatus.GOOD}), grace=5 * DAY)
    late = Stored(ocsp=(answer(pki, signer=pki.ca, this_update=NOW - 8 * DAY, next_update=NOW - 4 * DAY),))
    assert status(pki, late, rule=rule).status is RevocationStatus.GOOD
    last = Stored(ocsp=(answer(pki, signer=pki.ca, this_update=NOW - 8 * DAY, next_update=NOW - 5 * DAY),))
    assert status(pki, last, rule=rule).status is RevocationStatus.GOOD
    over = Stored(ocsp=(answer(pki, signer=pki.ca, this_update=NOW - 8 * DAY, next_update=NOW - 5 * DAY - SECOND),))
    assert status(pki, over, rule=rule).status is RevocationStatus.STALE
    old = Stored(ocsp=(answer(pki, signer=pki.ca, this_update=NOW - 31 * DAY, next_update=NOW + DAY),))
    assert status(pki, old, rule=rule).status is RevocationStatus.STALE


SECOND = timedelta(seconds=1)
HOLD = RevocationRule(kind=ChainKind.RIM, accept=frozenset({RevocationStatus.GOOD}), allow_hold=True)


@pytest.mark.parametrize(
    ("revoked", "rule", "result", "code"),
    [
        pytest.param({}, POLICY.rim, Result.PASS, "", id="rim-good"),
        pytest.param(None, POLICY.rim, Result.FAIL, "revocation-unknown", id="gpu-087-rim-unknown-fails"),
        pytest.param(None, POLICY.device_leaf, Result.WARN, "revocation-unknown", id="gpu-087-leaf-unknown-reported"),
        pytest.param({LEAF: Flags.key_compromise}, POLICY.device_leaf, Result.FAIL, "revocation-revoked", id="gpu-092"),
        pytest.param({LEAF: Flags.certificate_hold}, HOLD, Result.WARN, "revocation-hold", id="gpu-093-rim-excused"),
        pytest.param({LEAF: Flags.certificate_hold}, POLICY.rim, Result.FAIL, "revocation-hold", id="gpu-093-rim"),
        pytest.param(
            {LEAF: Flags.certificate_hold}, POLICY.device_leaf, Result.FAIL, "revocation-hold", id="gpu-093-device"
        ),
        pytest.param({LEAF: Flags.key_compromise}, HOLD, Result.FAIL, "revocation-revoked", id="gpu-093-not-a-hold"),
    ],
)
def test_rules(
    pki: Pki, revoked: dict[int, x509.ReasonFlags | None] | None, rule: RevocationRule, result: Result, code: str
) -> None:
    stored = NoRevocation() if revoked is None else Stored(crl=(crl(pki, revoked),))
    outcome = check_revocation(pki.leaf.certificate, pki.ca.certificate, stored, rule=rule, now=NOW)
    finding = judge_revocation(outcome, rule, subject="leaf")
    assert (result, code) == (finding.result, finding.code)
    assert str(outcome.to_json()["status"]) in finding.got


def test_stale_is_refused_by_default(pki: Pki) -> None:
    outcome = status(pki, Stored(crl=(crl(pki, {}, age=8 * DAY),)))
    for rule in (POLICY.rim, POLICY.device_ca, POLICY.device_leaf):
        assert judge_revocation(outcome, rule, subject="x").code == "revocation-stale"
        assert judge_revocation(outcome, rule, subject="x").result is Result.FAIL


@pytest.mark.parametrize(
    ("build", "code"),
    [
        pytest.param(
            lambda: RevocationRule(kind=ChainKind.DEVICE, accept=frozenset({RevocationStatus.GOOD}), allow_hold=True),
            "revocation-hold",
            id="gpu-093-no-rule-excuses-a-device-hold",
        ),
        pytest.param(
            lambda: RevocationRule(kind=ChainKind.RIM, accept=frozenset({RevocationStatus.REVOKED})),
            "revocation-accept",
            id="revoked-accepted",
        ),
        pytest.param(
            lambda: RevocationRule(kind=ChainKind.RIM, accept=frozenset()), "revocation-accept", id="nothing-accepted"
        ),
        pytest.param(
            lambda: RevocationRule(kind=ChainKind.RIM, accept=frozenset({RevocationStatus.GOOD}), max_age=timedelta(0)),
            "revocation-age",
            id="no-age",
        ),
        pytest.param(
            lambda: RevocationRule(kind=ChainKind.RIM, accept=frozenset({RevocationStatus.GOOD}), grace=-SECOND),
            "revocation-age",
            id="negative-grace",
        ),
        pytest.param(lambda: RevocationPolicy(rim=POLICY.device_ca), "revocation-kind", id="device-rule-for-rim"),
        pytest.param(lambda: RevocationPolicy(device_leaf=HOLD), "revocation-kind", id="gpu-093-rim-rule-for-device"),
        pytest.param(lambda: RevocationPolicy(device_ca=HOLD), "revocation-kind", id="rim-rule-for-device-ca"),
    ],
)
def test_rules_that_cannot_be_written(build: Callable[[], object], code: str) -> None:
    with pytest.raises(Misconfigured) as caught:
        build()
    assert caught.value.code == code


def test_only_our_errors_leave(pki: Pki) -> None:
    """Every prefix and every flipped byte of a genuine answer is Malformed or Untrusted, or still the same answer."""
    good = answer(pki, signer=pki.ca)
    for cut in range(len(good)):
        with pytest.raises((Malformed, Untrusted)):
            verify_ocsp(good[:cut], pki.ca.certificate)
    accepted = 0
    for position in range(len(good)):
        try:
            verify_ocsp(good[:position] + bytes([good[position] ^ 0x40]) + good[position + 1 :], pki.ca.certificate)
            accepted += 1
        except (Malformed, Untrusted):
            continue
    assert accepted == 0


def test_signer_pairs(pki: Pki) -> None:
    """The forge itself: a delegate carries its issuer's name and its own key."""
    made: Signer = delegate(pki.ca, now=NOW)
    assert made.certificate.issuer == pki.ca.certificate.subject
    assert made.certificate.public_key() == made.key.public_key()


def test_cache_spares_signatures_and_nothing_else(pki: Pki) -> None:
    cache = RevocationCache()
    stored = Stored(ocsp=(answer(pki, signer=pki.ca),), crl=(crl(pki, {}),))

    def ask(issuer: Signer, days: int) -> RevocationStatus:
        return check_revocation(
            pki.leaf.certificate, issuer.certificate, stored, rule=POLICY.rim, now=NOW + days * DAY, cache=cache
        ).status

    assert [ask(pki.ca, 0), ask(pki.ca, 0)] == [RevocationStatus.GOOD] * 2
    assert (len(cache.ocsp), len(cache.crl)) == (1, 1)
    assert ask(pki.ca, 30) is RevocationStatus.STALE, "time is judged again"
    assert ask(pki.impostor, 0) is RevocationStatus.UNKNOWN, "an issuer of the same name has entries of its own"


@pytest.fixture(scope="module")
def documents(pki: Pki) -> tuple[bytes, bytes]:
    return answer(pki, signer=pki.ca), crl(pki, {})


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_any_stored_bytes_give_a_status(pki: Pki, documents: tuple[bytes, bytes], data: st.DataObject) -> None:
    """Whatever lies in a store, the outcome is a status: unknown, or exactly what the signed document says.

    A few bits outside of what is signed, such as the count of unused bits of the signature, change nothing.
    """
    genuine = documents[data.draw(st.integers(0, 1))]
    changed = bytearray(genuine)
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, 10_000)) % len(changed)] = data.draw(st.integers(0, 255))
    for raw in (bytes(changed), data.draw(st.binary(max_size=80))):
        result = status(pki, Stored(ocsp=(raw,), crl=(raw,)))
        said = (result.status, result.since, result.until)
        assert result.status is RevocationStatus.UNKNOWN or said == (RevocationStatus.GOOD, NOW - DAY, NOW + 6 * DAY)


_STRANGE = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00")


@pytest.mark.parametrize(
    ("extension", "critical", "reason"),
    [
        pytest.param(_STRANGE, True, "ocsp-extension", id="critical"),
        pytest.param(_STRANGE, False, "not-revoked", id="may-be-ignored"),
        pytest.param(x509.OCSPNonce(b"n" * 32), True, "not-revoked", id="known"),
    ],
)
def test_extensions_of_an_answer(pki: Pki, extension: x509.ExtensionType, critical: bool, reason: str) -> None:
    builder = (
        ocsp.OCSPResponseBuilder()
        .add_response(
            pki.leaf.certificate, pki.ca.certificate, hashes.SHA384(), ocsp.OCSPCertStatus.GOOD,
            NOW - DAY, NOW + DAY, None, None,
        )
        .responder_id(ocsp.OCSPResponderEncoding.NAME, pki.ca.certificate)
        .add_extension(extension, critical=critical)
    )  # fmt: skip
    der = builder.sign(pki.ca.key, hashes.SHA384()).public_bytes(Encoding.DER)
    assert status(pki, Stored(ocsp=(der,))).reason == reason


def test_weak_responder_keys_are_refused(pki: Pki) -> None:
    """RSA of 1024 bits signs nothing here, whoever delegated it."""
    weak = delegate(pki.ca, now=NOW - 2 * DAY)
    assert status(pki, Stored(ocsp=(answer(pki, signer=weak),))).status is RevocationStatus.GOOD
    rsa_key = rsa.generate_private_key(public_exponent=65537, key_size=1024)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(weak.certificate.subject)
        .issuer_name(pki.ca.certificate.subject)
        .public_key(rsa_key.public_key())
        .serial_number(77)
        .not_valid_before(NOW - 2 * DAY)
        .not_valid_after(NOW + 9 * DAY)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.OCSP_SIGNING]), critical=False)
        .sign(pki.ca.key, hashes.SHA384())
    )
    small = answer(pki, signer=Signer(certificate, rsa_key))
    assert status(pki, Stored(ocsp=(small,))).reason == "ocsp-algorithm"
    enough = delegate(pki.ca, now=NOW - 2 * DAY, key=rsa.generate_private_key(public_exponent=65537, key_size=2048))
    assert status(pki, Stored(ocsp=(answer(pki, signer=enough),))).status is RevocationStatus.GOOD
    other = answer(pki, signer=enough, digest=hashes.SHA224())
    assert status(pki, Stored(ocsp=(other,))).reason == "ocsp-algorithm"
    good = answer(pki, signer=enough)
    signature = ocsp.load_der_ocsp_response(good).signature
    assert status(pki, Stored(ocsp=(good.replace(signature, replace_last_byte(signature)),))).reason == "ocsp-signature"


@pytest.mark.parametrize(
    ("digest", "expected"),
    [(hashes.SHA384(), "not-revoked"), (hashes.SHA256(), "not-revoked"), (hashes.SHA512(), "crl-algorithm")],
    ids=["sha384", "sha256", "sha512"],
)
def test_lists_under_pss(digest: hashes.HashAlgorithm, expected: str) -> None:
    """As AMD's are; the digest is named beside the algorithm."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "SIMULATED RSA CA")])
    ca, leaf = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(serial)
        .not_valid_before(NOW)
        .not_valid_after(NOW + DAY)
        .sign(key, hashes.SHA384())
        for serial in (1, 2)
    )
    builder = x509.CertificateRevocationListBuilder().issuer_name(name).last_update(NOW).next_update(NOW + DAY)
    pss = padding.PSS(padding.MGF1(digest), digest.digest_size)
    stored = builder.sign(key, digest, rsa_padding=pss).public_bytes(Encoding.DER)  # type: ignore[arg-type]
    assert check_revocation(leaf, ca, Stored(crl=(stored,)), rule=POLICY.rim, now=NOW).reason == expected
