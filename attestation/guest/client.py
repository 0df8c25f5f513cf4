"""The KBS client: challenge, evidence, token, key. KBS protocol 0.4.0 (keybroker.md 1), both binding profiles.

The TEE's private key is made here, lives in this object and is never written anywhere. The server may choose among the
profiles that were offered and nothing else: a server, or whoever answers in its place, cannot downgrade the binding.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from cryptography.hazmat.primitives.asymmetric import ec

from attestation.crypto.binding import DEFAULT_HASH, HASHES
from attestation.crypto.jwe import parse_sealed, unseal
from attestation.crypto.jwk import tee_key_of
from attestation.errors import AttestationError, Denied, Malformed, Misconfigured, Unavailable, Untrusted
from attestation.formats.json_strict import require_object, require_text
from attestation.guest.evidence import Challenge, Evidence, EvidenceProvider
from attestation.guest.evidence import collect as collect_evidence
from attestation.guest.http import PinnedHttp, Reply
from attestation.values import BindingProfile, ResourcePath, Secret

PROTOCOL_VERSION = "0.4.0"
OFFERED_PROFILES = (BindingProfile.CGPU_V1, BindingProfile.TRUSTEE_RCAR)
HANDSHAKES = 2  # a session can expire between token and key; one more try tells that from a refusal
MAX_NONCE_CHARS = 128  # 44 characters of base64 by the protocol
_MAX_DETAIL_CHARS = 300

Collect = Callable[[EvidenceProvider, Challenge], Evidence]


@dataclass(frozen=True, slots=True, kw_only=True)
class Attested:
    """A finished handshake: what was sent and the token that came back."""

    challenge: Challenge
    evidence: Evidence
    token: str


class KbsClient:
    """One client for one broker; keys are asked for with `fetch`. Not for use from several threads."""

    def __init__(
        self,
        http: PinnedHttp,
        provider: EvidenceProvider,
        *,
        profiles: tuple[BindingProfile, ...] = OFFERED_PROFILES,
        collect: Collect = collect_evidence,
    ) -> None:
        if not profiles:
            raise Misconfigured("binding-profile", "no binding profile offered", expected="at least one")
        self._http, self._provider, self._profiles = http, provider, profiles
        self._collect = collect
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._jwk = tee_key_of(self._key.public_key()).jwk
        self.attested: Attested | None = None

    def fetch(self, path: ResourcePath) -> Secret:
        """The resource, decrypted. Raises Denied for a refusal, Misconfigured when it is not there."""
        for _ in range(HANDSHAKES):
            if self.attested is None:
                self.attest()
            reply = self._http.call("GET", f"/kbs/v0/resource/{path}")
            if reply.status == 200:
                return unseal(parse_sealed(reply.json()), self._key)
            if reply.status != 401:
                _refuse(reply, f"key {path}")
            self.attested = None
        raise Denied("unauthorized", "the broker does not accept our session", where=str(path), got="401 twice")

    def attest(self) -> Attested:
        """A new handshake: a fresh nonce, fresh evidence, a token."""
        self._http.forget()
        challenge = self._challenge()
        evidence = self._collect(self._provider, challenge)
        reply = self._http.call("POST", "/kbs/v0/attest", json=attest_body(challenge, evidence))
        if reply.status != 200:
            _refuse(reply, "attestation")
        token = require_text(require_object(reply.json(), reply.where).get("token"), "attest.token")
        self.attested = Attested(challenge=challenge, evidence=evidence, token=token)
        return self.attested

    def _challenge(self) -> Challenge:
        extra = {
            "supported-hash-algorithms": list(HASHES),
            "binding-profiles": [str(p) for p in self._profiles],
        }
        body = {"version": PROTOCOL_VERSION, "tee": str(self._provider.cpu.tee), "extra-params": extra}
        reply = self._http.call("POST", "/kbs/v0/auth", json=body)
        if reply.status != 200:
            _refuse(reply, "challenge")
        document = require_object(reply.json(), reply.where)
        nonce = require_text(document.get("nonce"), "auth.nonce")
        if not 0 < len(nonce) <= MAX_NONCE_CHARS:
            raise Malformed(
                "nonce-length", "unusable nonce", where="auth.nonce", expected=MAX_NONCE_CHARS, got=len(nonce)
            )
        answer = document.get("extra-params")
        params = answer if isinstance(answer, Mapping) else {}
        return Challenge(
            nonce=nonce,
            profile=self._chosen_profile(params),
            hash_name=_chosen_hash(params),
            tee_key=self._jwk,
        )

    def _chosen_profile(self, params: Mapping[str, Any]) -> BindingProfile:
        """What the server named; a server that names none is a stock one. Only what was offered is accepted."""
        name = params.get("binding-profile", BindingProfile.TRUSTEE_RCAR)
        if name not in self._profiles:
            raise Untrusted(
                "profile-downgrade",
                "the broker chose a binding profile that was not offered",
                where="auth.extra-params.binding-profile",
                expected="|".join(self._profiles),
                got=repr(name)[:80],
            )
        return BindingProfile(name)


def attest_body(challenge: Challenge, evidence: Evidence) -> dict[str, Any]:
    """Body of `POST /kbs/v0/attest` (keybroker.md 1.5); outer names with hyphens, inner ones with underscores."""
    init_data = evidence.init_data
    return {
        "init-data": None if init_data is None else {"format": "toml", "body": init_data},
        "runtime-data": {"nonce": challenge.nonce, "tee-pubkey": dict(challenge.tee_key)},
        "tee-evidence": {"primary_evidence": evidence.primary, "additional_evidence": evidence.additional},
    }


def _chosen_hash(params: Mapping[str, Any]) -> str:
    name = params.get("selected-hash-algorithm", DEFAULT_HASH)
    lowered = name.lower() if isinstance(name, str) else ""
    if lowered not in HASHES:
        raise Untrusted(
            "hash-not-offered",
            "the broker chose a hash that was not offered",
            expected="|".join(HASHES),
            got=repr(name)[:80],
        )
    return lowered


def _refuse(reply: Reply, what: str) -> NoReturn:
    """The one table from status to error. 403 and 404 are final: asking again would only load the broker."""
    detail = _detail(reply)
    if reply.status in {401, 403}:
        said = f"the broker refused the {what} (`kata-gpu-kbs audit tail` there says why)"
        raise Denied("denied", said, where=reply.where, got=f"{reply.status} {detail}")
    if reply.status == 404:
        raise Misconfigured("not-found", f"the broker has no such {what}", where=reply.where, got=f"404 {detail}")
    if 400 <= reply.status < 500:
        raise Misconfigured(
            "refused", f"the broker does not accept the {what}", where=reply.where, got=f"{reply.status} {detail}"
        )
    raise Unavailable(
        "broker-error", f"the broker failed at the {what}", where=reply.where, got=f"{reply.status} {detail}"
    )


def _detail(reply: Reply) -> str:
    """The broker's own words, as one bounded line."""
    try:
        document = require_object(reply.json(), reply.where)
    except AttestationError:
        return ""
    text = document.get("detail")
    return " ".join(text.split())[:_MAX_DETAIL_CHARS] if isinstance(text, str) else ""
