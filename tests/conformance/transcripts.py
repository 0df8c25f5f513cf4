"""Transcripts of docs/protocol.md, captured from a real broker. `python -m tests.conformance.transcripts` rewrites them."""

import json
import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from attestation.simulate.amd import MEASUREMENT
from tests.attestation.broker.broker import GPU_POLICY, INIT_DATA
from tests.attestation.tee.world import Guest
from tests.conformance.rust_client import Evidence, Reply, RustClient, TeeKey, Wire
from tests.conformance.target import Target, local_target

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "protocol.md"
PLACEHOLDERS = {
    "nonce": "nonce", "token": "token", "x": "x", "y": "y", "report_data": "report data", "protected": "header",
    "encrypted_key": "wrapped key", "iv": "iv", "ciphertext": "ciphertext", "tag": "tag", "kid": "kid",
    "attestation_report": "SNP report", "cert_chain": "VCEK", "additional_evidence": "GPU evidence, a JSON string",
    "policy": "policy: base64url under /kbs/v0, else TOML", "payload": "base64 of the values", "digest": "digest", "previous": "digest",
    "signature": "signature", "jti": "token id", "chip_id": "chip id", "measurement": "measurement",
    "init_data": "init-data digest", "secret": "base64 of the secret", "annotation": "annotation",
}  # fmt: skip
_TICKET = re.compile(r"ticket [0-9a-f]{16}")
_ANNOTATION = re.compile(r"[A-Za-z0-9+/]{200,}={0,2}")
_SHOWN_HEADERS = ("content-type", "retry-after")


def snp_attester(nonce: str, jwk: dict[str, str]) -> Evidence:
    """A simulated SNP guest with one simulated Hopper GPU."""
    made = Guest(init_data=INIT_DATA).with_(nonce=nonce, jwk=jwk).evidence()
    return dict(made.primary), made.additional, made.init_data


def background_check(kbs: Target) -> list[Wire]:
    """A guest without a token: 401, challenge, evidence, key."""
    client = kbs.client()
    assert client.get_resource("resource/default/test/secret") == b"shhhhhhh"
    return [client.wire]


def passport(kbs: Target) -> list[Wire]:
    """A token from one client, used by another with the same TEE key."""
    client = kbs.client()
    client.handshake()
    other = RustClient(wire=kbs.wire(), key=client.key, token=client.token)
    assert other.key.decrypt(other.get("resource/default/test/secret", bearer=True).json()) == b"shhhhhhh"
    return [other.wire]


def snp_and_gpu(kbs: Target) -> list[Wire]:
    """A GPU key under its own policy, for an SNP guest with one GPU; and its refusal to a guest without."""
    assert kbs.local
    kbs.local.broker.references({"snp_launch_measurement": [MEASUREMENT.hex()]})
    from attestation.values import ResourcePath

    kbs.local.broker.put(ResourcePath.parse("default/model/llama"), b"k" * 32, policy=GPU_POLICY)
    client = RustClient(wire=kbs.wire(), tee="snp", attester=snp_attester, key=TeeKey.make())
    assert client.get_resource("resource/default/model/llama") == b"k" * 32
    without = kbs.client()
    without.handshake()
    without.wire.trace.clear()
    assert without.get("resource/default/model/llama").status == 403
    return [client.wire, without.wire]


def administration(kbs: Target) -> list[Wire]:
    """What `kbs-client` and `kata-gpu-kbs` send."""
    wire = Wire(kbs.admin_url)
    kbs.wires.append(wire)
    headers = {"authorization": f"Bearer {kbs.token}"}

    def call(method: str, path: str, body: Any = None, kind: str | None = None) -> Reply:
        return wire.call(method, path, body, headers | ({"content-type": kind} if kind else {}))

    octets = "application/octet-stream"
    call("POST", "/kbs/v0/resource/default/model/kek", b"<32 bytes>", octets)
    call("PUT", "/api/v1/policies/default/model/kek", GPU_POLICY.encode(), "application/toml")
    call("POST", "/api/v1/keys/default/model/made-here")
    call("PUT", "/api/v1/keys/default/model/owned", {"secret": "c2VjcmV0", "labels": ["test"], "policy": GPU_POLICY})
    wrapped = call("POST", "/api/v1/wrap/default/model/made-here", b"<data key>", octets).json()["annotation"]
    call("POST", "/api/v1/unwrap/default/model/made-here", wrapped.encode(), octets)
    call("GET", "/api/v1/keys?repository=default")
    call("GET", "/api/v1/keys/default/model/made-here")
    call("DELETE", "/kbs/v0/resource/default/model/kek")
    call("POST", "/kbs/v0/resource-policy", {"policy": "cGFja2FnZSBwb2xpY3kKZGVmYXVsdCBhbGxvdyA9IHRydWUK"})
    call("GET", "/kbs/v0/resource-policy")
    call(
        "POST", "/kbs/v0/attestation-policy", {"type": "rego", "policy_id": "unused", "policy": "cGFja2FnZSBwb2xpY3kK"}
    )
    call("POST", "/kbs/v0/reference-value", {"version": "0.1.0", "type": "sample", "payload": "eyJzdm4iOlsiMSJdfQ=="})
    call("GET", "/kbs/v0/reference-value/svn")
    call("GET", "/api/v1/policies/default/model/owned")
    call("PUT", "/api/v1/tenants/acme", {"max_keys": 100, "releases_per_hour": 1000})
    call("GET", "/api/v1/tenants")
    call("POST", "/api/v1/revocations", {"kind": "gpu", "value": "4f1c", "reason": "stolen in transit"})
    call("GET", "/api/v1/revocations")
    call("DELETE", "/api/v1/revocations?kind=gpu&value=4f1c")
    call("GET", "/api/v1/leases?path=default/model/owned")
    call("GET", "/api/v1/audit?last=1")
    call("GET", "/api/v1/attestations")
    return [wire]


def service(kbs: Target) -> list[Wire]:
    """Endpoints of both listeners, without credentials."""
    wire = kbs.wire()
    for path in ("/healthz", "/readyz", "/.well-known/jwks.json"):
        wire.call("GET", path)
    return [wire]


FLOWS: Mapping[str, Callable[[Target], list[Wire]]] = {
    "background-check": background_check,
    "passport": passport,
    "snp-and-gpu": snp_and_gpu,
    "administration": administration,
    "service": service,
}


def render(wires: list[Wire]) -> str:
    """Requests and responses with everything random replaced by what it is."""
    out: list[str] = []
    for wire in wires:
        for method, path, headers, body, reply in wire.trace:
            out.append(f"> {method} {path}")
            if "cookie" in headers:
                out.append("> cookie: kbs-session-id=<session>")
            if "authorization" in headers:
                out.append("> authorization: Bearer <token>")
            out += [f"> {line}" for line in _body(body).splitlines()]
            out.append(f"< {reply.status}")
            if reply.header("set-cookie"):
                out.append("< set-cookie: kbs-session-id=<session>; " + _attributes(reply.header("set-cookie") or ""))
            out += [f"< {name}: {value}" for name in _SHOWN_HEADERS if (value := reply.header(name))]
            out += [f"< {line}" for line in _body(reply.body).splitlines()]
            out.append("")
    return "\n".join(out).rstrip() + "\n"


def _attributes(header: str) -> str:
    return "; ".join(part.strip() for part in header.split(";")[1:])


def _body(raw: bytes) -> str:
    try:
        return json.dumps(_plain(json.loads(raw)))
    except ValueError:
        return _ANNOTATION.sub("<annotation>", raw.decode(errors="replace"))


def _plain(value: Any, name: str = "") -> Any:
    if name in PLACEHOLDERS and value not in (None, "", []):
        return f"<{PLACEHOLDERS[name]}>"
    if isinstance(value, dict):
        return {key: _plain(inner, key) for key, inner in value.items()}
    if isinstance(value, list):
        return ["<chip id>"] * len(value) if name == "devices" else [_plain(inner) for inner in value]
    return _TICKET.sub("ticket <ticket>", value) if isinstance(value, str) else value


def captured() -> dict[str, str]:
    """Every transcript, from a fresh broker."""
    found: dict[str, str] = {}
    for name, flow in FLOWS.items():
        with tempfile.TemporaryDirectory() as folder, local_target(Path(folder)) as kbs:
            found[name] = render(flow(kbs))
    return found


def fill(text: str, transcripts: Mapping[str, str]) -> str:
    """The document with its transcripts replaced."""
    for name, transcript in transcripts.items():
        pattern = re.compile(rf"(<!-- transcript: {name} -->\n```text\n).*?(```\n)", re.DOTALL)
        text, count = pattern.subn(lambda match, t=transcript: match[1] + t + match[2], text)  # type: ignore[misc]
        if count != 1:
            raise ValueError(f"docs/protocol.md has {count} places for {name}")
    return text


if __name__ == "__main__":
    DOCUMENT.write_text(fill(DOCUMENT.read_text(), captured()))
