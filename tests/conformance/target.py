"""The broker under test: ours, served here on loopback, or any other one (`--kbs-url`)."""

import base64
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from joserfc import jws
from joserfc.jwk import OKPKey

from attestation.broker.admin import AdminIssuer
from attestation.broker.roles import Role
from attestation.service.app import Compat, ServiceLimits
from tests.attestation.broker.broker import Served, broker, served
from tests.conformance.rust_client import Reply, RustClient, TeeKey, Wire, b64u

ALLOW_ALL = "package policy\n\ndefault allow := true\n"
DENY_SOME = """package policy

import rego.v1

default allow := false

allow if not "denied" in data["resource-path"]
"""
ADMIN_KEY = OKPKey.import_key(
    {"kty": "OKP", "crv": "Ed25519", "d": b64u(bytes(range(32))), "x": b64u(
        Ed25519PrivateKey.from_private_bytes(bytes(range(32))).public_key().public_bytes_raw())}
)  # fmt: skip


def admin_token(now: float, *, role: str = "tester", lifetime: int = 7200, **changes: Any) -> str:
    """The token shape of upstream's integration tests."""
    claims: dict[str, Any] = {"iss": "issuer", "role": role, "aud": ["audience"], "iat": int(now)}
    claims["exp"] = int(now) + lifetime
    payload = json.dumps(claims | changes).encode()
    return jws.serialize_compact({"alg": "Ed25519", "typ": "JWT"}, payload, ADMIN_KEY, algorithms=["Ed25519"])


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where to send what. `local` is set where the broker is ours: its clock and store can be moved."""

    url: str
    admin_url: str
    token: str
    local: Served | None = None
    wires: list[Wire] = field(default_factory=list, compare=False, repr=False)

    def wire(self) -> Wire:
        self.wires.append(Wire(self.url))
        return self.wires[-1]

    def close(self) -> None:
        """Hang up what tests opened."""
        while self.wires:
            self.wires.pop().close()

    def client(self, kind: str = "P-256", **kwargs: Any) -> RustClient:
        return RustClient(wire=self.wire(), key=TeeKey.make(kind), **kwargs)

    def admin(self, method: str, path: str, body: Any = None, *, token: str | None = None) -> Reply:
        wire = Wire(self.admin_url)
        bearer = self.token if token is None else token
        headers = {"authorization": f"Bearer {bearer}"} if bearer else {}
        try:
            return wire.call(method, path, body, {"content-type": "application/octet-stream", **headers})
        finally:
            wire.close()

    def put(self, path: str, secret: bytes) -> None:
        reply = self.admin("POST", f"/kbs/v0/resource/{path}", secret)
        assert reply.status == 200, reply

    def policy(self, rego: str) -> None:
        reply = self.admin("POST", "/kbs/v0/resource-policy", {"policy": b64u(rego.encode())})
        assert reply.status == 200, reply

    def now(self) -> float:
        return self.local.broker.clock().timestamp() if self.local else time.time()


@contextmanager
def local_target(
    folder: Path,
    *,
    compat: Compat | None = None,
    limits: ServiceLimits | None = None,
    options: Mapping[str, Any] | None = None,
    more_issuers: tuple[AdminIssuer, ...] = (),
) -> Iterator[Target]:
    """Our broker with the sample TEE, the identity provider of upstream's tests and an allowing resource policy."""
    issuer = AdminIssuer(
        key=ADMIN_KEY, issuer="issuer", audience="audience", roles={"tester": Role.ADMIN, "reader": Role.AUDITOR}
    )
    chosen: dict[str, Any] = {"admin_issuers": (issuer, *more_issuers), **(options or {})}
    with ExitStack() as stack:
        made = stack.enter_context(broker(folder, simulated=True, sample=True, **chosen))
        running = stack.enter_context(served(made, compat=compat, limits=limits))
        target = Target(
            url=running.url,
            admin_url=running.admin_url,
            token=admin_token(made.clock().timestamp()),
            local=running,
        )
        if not made.world.deny_all_admins:
            target.policy(DENY_SOME)
            target.put("default/test/secret", b"shhhhhhh")
        try:
            yield target
        finally:
            target.close()


def std_b64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()
