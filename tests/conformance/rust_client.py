"""The guest's Rust client, emulated as strictly as it behaves (keybroker.md 4.1), on nothing but sockets.

It shares no code with the broker: canonical JSON, KDF and decryption are written again here, so that an error on one
side cannot hide on the other.
"""

import base64
import hashlib
import http.client
import json
import os
import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.keywrap import aes_key_unwrap

UA = "attestation-agent-kbs-client/0.1.0"
HASHES = ["sha256", "sha384", "sha512", "sm3"]


@dataclass(frozen=True, kw_only=True)
class Reply:
    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str | None:
        return next((v for k, v in self.headers if k.lower() == name), None)

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Wire:
    """One keep-alive connection; `trace` keeps every exchange for the transcripts."""

    url: str
    trace: list[tuple[str, str, Mapping[str, str], bytes, Reply]] = field(default_factory=list)

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        assert parts.hostname
        self._http = http.client.HTTPConnection(parts.hostname, parts.port, timeout=60)

    def call(self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> Reply:
        sent = {"user-agent": UA, **(headers or {})}
        if isinstance(body, dict | list):
            body = json.dumps(body, separators=(",", ":")).encode()
            sent.setdefault("content-type", "application/json")
        chunked = body is not None and not isinstance(body, bytes)
        self._http.request(method, path, body=body, headers=sent, encode_chunked=chunked)
        answer = self._http.getresponse()
        reply = Reply(status=answer.status, headers=answer.getheaders(), body=answer.read())
        self.trace.append((method, path, sent, body if isinstance(body, bytes) else b"", reply))
        return reply

    def close(self) -> None:
        self._http.close()


class Aborted(Exception):
    """The real client gives up here."""


def error_of(reply: Reply) -> dict[str, str]:
    """ErrorInformation, as serde reads it: both members are strings."""
    body = reply.json()
    if not (isinstance(body, dict) and isinstance(body.get("type"), str) and isinstance(body.get("detail"), str)):
        raise Aborted(f"not ErrorInformation: {reply.body[:200]!r}")
    return body


def jcs(value: Any) -> bytes:
    """RFC 8785 for what occurs here: objects and strings."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def b64u(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def unb64u(text: str) -> bytes:
    """URL_SAFE_NO_PAD: padding and other alphabets are errors."""
    if not re.fullmatch(r"[A-Za-z0-9_-]*", text):
        raise Aborted(f"not base64url without padding: {text[:40]}")
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


@dataclass(frozen=True, kw_only=True)
class TeeKey:
    """The client's key pair; `jwk` in the member order that it sends."""

    private: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
    jwk: dict[str, str]

    @classmethod
    def make(cls, kind: str = "P-256") -> "TeeKey":
        if kind == "RSA":
            secret = rsa.generate_private_key(65537, 2048)
            n = secret.public_key().public_numbers().n
            return cls(
                private=secret, jwk={"kty": "RSA", "alg": "RSA-OAEP-256", "n": b64u(n.to_bytes(256)), "e": "AQAB"}
            )
        curve, size = {"P-256": (ec.SECP256R1(), 32), "P-521": (ec.SECP521R1(), 66)}[kind]
        private = ec.generate_private_key(curve)
        point = private.public_key().public_numbers()
        jwk = {"kty": "EC", "crv": kind, "alg": "ECDH-ES+A256KW"}
        return cls(private=private, jwk=jwk | {"x": b64u(point.x.to_bytes(size)), "y": b64u(point.y.to_bytes(size))})

    def decrypt(self, body: Mapping[str, Any]) -> bytes:
        """kbs-types `Response` to plaintext: the header is re-serialised for the additional data."""
        header = json.loads(unb64u(body["protected"]))
        alg, enc = header.pop("alg"), header.pop("enc")
        aad = b64u(json.dumps({"alg": alg, "enc": enc, **_sorted(header)}, separators=(",", ":")).encode()).encode()
        if isinstance(self.private, rsa.RSAPrivateKey):
            oaep = padding.OAEP(mgf=padding.MGF1(hashes.SHA256()), algorithm=hashes.SHA256(), label=None)
            cek = self.private.decrypt(unb64u(body["encrypted_key"]), oaep)
        else:
            epk = header.get("epk")
            if epk is None:
                raise Aborted("Invalid JWE ProtectedHeader. Without `epk`")
            x, y = (int.from_bytes(unb64u(epk[n])) for n in "xy")
            public = ec.EllipticCurvePublicNumbers(x, y, self.private.curve).public_key()
            z = self.private.exchange(ec.ECDH(), public)
            info = struct.pack(">I", 14) + b"ECDH-ES+A256KW" + struct.pack(">III", 0, 0, 256)
            kek = hashlib.sha256(struct.pack(">I", 1) + z + info).digest()
            cek = aes_key_unwrap(kek, unb64u(body["encrypted_key"]))
        return AESGCM(cek).decrypt(unb64u(body["iv"]), unb64u(body["ciphertext"]) + unb64u(body["tag"]), aad)


def _sorted(header: dict[str, Any]) -> dict[str, Any]:
    return {k: dict(sorted(v.items())) if isinstance(v, dict) else v for k, v in sorted(header.items())}


Evidence = tuple[dict[str, Any], str, str | None]  # primary, additional string, init-data text
Attester = Callable[[str, dict[str, str]], Evidence]


def sample_attester(nonce: str, jwk: dict[str, str]) -> Evidence:
    """What the attestation-agent sends where it finds no TEE."""
    digest = hashlib.sha384(jcs({"additional-evidence": "", "nonce": nonce, "tee-pubkey": jwk})).digest()
    return {"svn": "1", "report_data": base64.b64encode(digest).decode()}, "", None


@dataclass
class RustClient:
    """kbs_protocol: cookie jar, at most three attempts, errors parsed, and every shape checked."""

    wire: Wire
    tee: str = "sample"
    attester: Attester = sample_attester
    key: TeeKey = field(default_factory=TeeKey.make)
    cookie: str | None = None
    token: str | None = None
    nonce: str = ""
    handshakes: int = 0

    def auth(self) -> Reply:
        body = {"version": "0.4.0", "tee": self.tee, "extra-params": {"supported-hash-algorithms": HASHES}}
        reply = self.wire.call("POST", "/kbs/v0/auth", body, self._cookies())
        if reply.status != 200:
            raise Aborted(error_of(reply)["detail"])
        challenge = reply.json()
        if not isinstance(challenge["nonce"], str) or "extra-params" not in challenge:
            raise Aborted("bad challenge")
        extra = challenge["extra-params"]
        if isinstance(extra, dict) and extra.get("selected-hash-algorithm", "sha384") != "sha384":
            raise Aborted("unexpected hash")
        self.nonce = challenge["nonce"]
        self._store_cookie(reply)
        return reply

    def attest_body(self) -> dict[str, Any]:
        primary, additional, init_data = self.attester(self.nonce, self.key.jwk)
        return {
            "init-data": None if init_data is None else {"format": "toml", "body": init_data},
            "runtime-data": {"nonce": self.nonce, "tee-pubkey": self.key.jwk},
            "tee-evidence": {"primary_evidence": primary, "additional_evidence": additional},
        }

    def attest(self, body: dict[str, Any] | None = None) -> Reply:
        reply = self.wire.call("POST", "/kbs/v0/attest", body or self.attest_body(), self._cookies())
        if reply.status == 200:
            self.token = reply.json()["token"]
            claims_of(self.token)
            self._store_cookie(reply)
        return reply

    def handshake(self) -> str:
        """Fresh key pair, as the client makes one per handshake where it is not given one."""
        self.handshakes += 1
        self.auth()
        reply = self.attest()
        if reply.status != 200:
            raise Aborted(error_of(reply)["detail"])
        assert self.token
        return self.token

    def get(self, path: str, *, bearer: bool = False) -> Reply:
        headers = {"authorization": f"Bearer {self.token}"} if bearer else self._cookies()
        return self.wire.call("GET", f"/kbs/v0/{path}", headers=headers)

    def get_resource(self, path: str) -> bytes:
        """Background check: 401 leads to a handshake, three attempts in all; anything else aborts at once."""
        for _ in range(3):
            reply = self.get(path)
            if reply.status == 200:
                return self.key.decrypt(reply.json())
            detail = error_of(reply)["detail"]
            if reply.status != 401:
                raise Aborted(f"{reply.status} {detail}")
            self.handshake()
        raise Aborted("request unauthorized")

    def _cookies(self) -> dict[str, str]:
        return {"cookie": f"kbs-session-id={self.cookie}"} if self.cookie else {}

    def _store_cookie(self, reply: Reply) -> None:
        header = reply.header("set-cookie")
        if header is not None:
            self.cookie = header.partition(";")[0].partition("=")[2]


def claims_of(token: str) -> dict[str, Any]:
    """jwt-simple: three parts, no padding, integer times, string ids; None where a number belongs is an error."""
    parts = token.split(".")
    if len(parts) != 3:
        raise Aborted("not a compact JWS")
    claims = json.loads(unb64u(parts[1]))
    for name in ("iat", "exp", "nbf"):
        if name in claims and (type(claims[name]) is not int or claims[name] < 0):
            raise Aborted(f"{name} is not an unsigned integer")
    for name in ("iss", "sub", "jti", "nonce"):
        if name in claims and not isinstance(claims[name], str):
            raise Aborted(f"{name} is not a string")
    return dict(claims)


def random_cookie() -> str:
    return os.urandom(16).hex()
