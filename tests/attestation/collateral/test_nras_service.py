"""NVIDIA-shaped routes: genuine and forged evidence in, tokens out that our own verifier accepts, problems for the rest."""

import asyncio
import base64
import json
from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette

from attestation.appraise.nv_claims import ClaimsVersion, nvidia_claims
from attestation.formats.collateral import Document, Kind
from attestation.formats.nv_evidence import parse_evidence
from attestation.ops.nras import NrasIdentity
from attestation.service.nras import NrasSettings, nras_routes
from attestation.service.workers import Workers
from attestation.simulate.nv_products import PRODUCTS
from attestation.simulate.nvidia import ForgedEvidence, NvidiaForge
from attestation.sources.collateral import Collateral, ocsp_id
from attestation.values import Architecture, GpuMode, Level, Nonce
from attestation.verify.nras_token import TokenRule, parse_jwks, verify_nras_token
from attestation.verify.nv_gpu import Collateral as NvCollateral
from attestation.verify.nv_gpu import NvCache, verify_device
from attestation.verify.nv_policy import NvPolicy
from attestation.verify.revocation import ChainKind, RevocationPolicy, RevocationRule, RevocationStatus
from attestation.verify.roots import NvTrust
from tests.attestation.collateral.conftest import DAY, NOW
from tests.attestation.collateral.test_nras_token import KEY
from tests.attestation.forged_revocation import forge_chain_answers

FORGE = NvidiaForge()
NONCE = Nonce(bytes(range(32)))
ISSUER, AUDIENCE = "https://nras.site.example", "site"
LS10_RIM = "NV_SWITCH_BIOS_5612_0002_890_9610550001"
UNKNOWN_SIGNERS = NvPolicy(
    revocation=RevocationPolicy(
        rim=RevocationRule(kind=ChainKind.RIM, accept=frozenset({RevocationStatus.GOOD, RevocationStatus.UNKNOWN}))
    )
)
ARCH_NAMES = {Architecture.HOPPER: "HOPPER", Architecture.BLACKWELL: "BLACKWELL", Architecture.LS10: "LS10"}


def rim(identifier: str, content: bytes) -> Document:
    return Document(kind=Kind.RIM, id=identifier, content=content, first_seen=NOW, source="test")


def forged_store() -> Collateral:
    """Every document of the forge, and stored answers about its signers: what the default policy wants."""
    documents = [rim(identifier, content) for identifier, content in FORGE.rims().items()]
    for arch in PRODUCTS:
        answers = forge_chain_answers(FORGE.rim_specs(arch), this_update=NOW - DAY, next_update=NOW + 6 * DAY)
        documents += [
            Document(kind=Kind.OCSP, id=ocsp_id(serial), content=der, first_seen=NOW, source="test")
            for serial, der in answers
        ]
    return Collateral.of(documents)


def settings(store: Collateral, trust: NvTrust, policy: NvPolicy) -> NrasSettings:
    ids = iter(range(10**6))
    return NrasSettings(
        store=store,
        verify=NvCollateral(trust=trust, rims=store, revocation=store, policy=policy, now=NOW, cache=NvCache()),
        identity=NrasIdentity(key=KEY, issuer=ISSUER, audience=AUDIENCE, new_id=lambda: f"id-{next(ids)}"),
        clock=lambda: NOW,
    )


class Client:
    """Calls the application without a socket."""

    def __init__(self, app: Starlette) -> None:
        self._app = app

    def _call(self, method: str, path: str, **content: Any) -> httpx.Response:
        async def call() -> httpx.Response:
            transport = httpx.ASGITransport(app=self._app)
            async with httpx.AsyncClient(transport=transport, base_url="http://nras") as client:
                return await client.request(method, path, **content)

        return asyncio.run(call())

    def get(self, path: str) -> httpx.Response:
        return self._call("GET", path)

    def post(self, path: str, **content: Any) -> httpx.Response:
        return self._call("POST", path, **content)


def client_of(made: NrasSettings) -> Iterator[Client]:
    workers = Workers(threads=1, queue=4)
    yield Client(Starlette(routes=nras_routes(made, workers)))
    workers.close()


@pytest.fixture(scope="module")
def forged() -> Iterator[Client]:
    yield from client_of(settings(forged_store(), FORGE.trust, NvPolicy()))


@pytest.fixture(scope="module")
def genuine(vectors: Path) -> Iterator[Client]:
    path = vectors / "nvidia" / "rim" / f"switchVBIOSRim_{LS10_RIM}.xml"
    store = Collateral.of([rim(LS10_RIM, path.read_bytes())])
    yield from client_of(settings(store, NvTrust.production(), UNKNOWN_SIGNERS))


def request(*devices: ForgedEvidence, **changes: Any) -> dict[str, Any]:
    body = {
        "nonce": NONCE.hex(),
        "arch": ARCH_NAMES[devices[0].arch],
        "evidence_list": [
            {
                "evidence": base64.b64encode(d.report).decode(),
                "certificate": base64.b64encode(d.chain).decode(),
                "nonce": "00" * 32,  # gpu-153: never read
            }
            for d in devices
        ],
        "claims_version": "3.0",
    }
    return {k: v for k, v in (body | changes).items() if v is not ...}


def hopper(index: int = 0, **changes: Any) -> ForgedEvidence:
    return FORGE.device(index=index, nonce=NONCE.raw, **changes)


def verified(client: Client, content: bytes, audience: str | None) -> Any:
    keys = parse_jwks(client.get("/.well-known/jwks.json").content)
    rule = TokenRule(issuers=frozenset({ISSUER}), audience=audience)
    return verify_nras_token(content, keys, rule=rule, nonce=NONCE, now=NOW)


@pytest.mark.parametrize(
    ("path", "audience"),
    [pytest.param("/v3", None, id="v3-without-audience"), pytest.param("/v4", AUDIENCE, id="v4-with-audience")],
)
@pytest.mark.parametrize("arch", list(PRODUCTS))
def test_forged_devices_succeed(forged: Client, path: str, audience: str | None, arch: Architecture) -> None:
    device = FORGE.device(arch, nonce=NONCE.raw)
    kind = "switch" if arch is Architecture.LS10 else "gpu"
    response = forged.post(f"{path}/attest/{kind}", json=request(device))
    assert response.status_code == 200, response.text
    result = verified(forged, response.content, audience)
    assert (result.successful, result.claims["x-nvidia-ver"]) == (True, "3.0")
    (claims,) = result.submods.values()
    assert (claims["measres"], claims["secboot"], claims["dbgstat"]) == ("success", True, "disabled")
    assert claims["hwmodel"] == f"{PRODUCTS[arch].chip} {PRODUCTS[arch].firmware} BROM"
    slot = "bios" if kind == "switch" else "driver"
    chain = claims[f"x-nvidia-{kind}-{slot}-rim-cert-chain"]
    assert (chain["x-nvidia-cert-status"], chain["x-nvidia-cert-ocsp-status"]) == ("valid", "good")


def test_several_devices_one_verdict(forged: Client) -> None:
    good, bad = hopper(), hopper(1, measurements={22: bytes(48)})
    result = verified(forged, forged.post("/v3/attest/gpu", json=request(good, bad)).content, None)
    assert not result.successful
    assert [result.submods[n]["measres"] for n in ("GPU-0", "GPU-1")] == ["success", "fail"]
    assert result.submods["GPU-1"]["secboot"] is None
    both = verified(forged, forged.post("/v3/attest/gpu", json=request(good, hopper(1))).content, None)
    assert both.successful


@pytest.mark.parametrize(
    ("measurements", "level"),
    [
        pytest.param({}, Level.TRUSTED, id="gpu-151-good"),
        pytest.param({22: bytes(48)}, Level.AUTHENTIC, id="gpu-151-mismatch"),
    ],
)
def test_verdict_does_not_depend_on_tokens(forged: Client, measurements: dict[int, bytes], level: Level) -> None:
    evidence, store = hopper(measurements=measurements), forged_store()

    def verify() -> Any:
        return verify_device(
            evidence.report, evidence.chain, trust=FORGE.trust, nonce=NONCE, rims=store, revocation=store,
            policy=NvPolicy(), now=NOW,
        )  # fmt: skip

    without = verify()
    tokens = verified(forged, forged.post("/v4/attest/gpu", json=request(evidence)).content, AUDIENCE)
    assert without.level is level
    assert tokens.successful is (level is Level.TRUSTED)
    for version in ClaimsVersion:
        nvidia_claims(without, version)
    assert verify() == without, "rendering claims changed nothing"


def test_unknown_signers_fail_by_default_and_say_why(forged: Client) -> None:
    store = Collateral.of([rim(i, c) for i, c in FORGE.rims().items()])
    for client in client_of(settings(store, FORGE.trust, NvPolicy())):
        result = verified(client, client.post("/v3/attest/gpu", json=request(hopper())).content, None)
        assert not result.successful


def test_version_2_claims(forged: Client) -> None:
    body = request(hopper(), claims_version=...)
    result = verified(forged, forged.post("/v3/attest/gpu", json=body).content, None)
    claims = result.submods["GPU-0"]
    assert result.claims["x-nvidia-ver"] == "2.0"
    assert not [name for name, value in claims.items() if isinstance(value, dict | list)]
    expected = {
        "measres", "secboot", "dbgstat", "hwmodel", "ueid", "oemid", "eat_nonce", "iss", "nbf", "exp", "iat", "jti",
        *(f"x-nvidia-gpu-{n}" for n in (
            "arch-check", "driver-version", "vbios-version", "attestation-report-parsed",
            "attestation-report-nonce-match", "attestation-report-signature-verified",
            "attestation-report-cert-chain-validated", "driver-rim-fetched", "driver-rim-signature-verified",
            "driver-rim-measurements-available", "driver-rim-schema-validated", "driver-rim-cert-validated",
            "vbios-rim-fetched", "vbios-rim-signature-verified", "vbios-rim-measurements-available",
            "vbios-rim-schema-validated", "vbios-rim-cert-validated", "vbios-index-no-conflict",
        )),
    }  # fmt: skip
    assert set(claims) == expected
    assert all(v is True for k, v in claims.items() if k.startswith("x-nvidia-gpu-") and not k.endswith("-version"))


def test_version_3_has_every_claim_that_nras_has(forged: Client, vectors: Path) -> None:
    """The names of a genuine NRAS answer are all there, with the same JSON types."""
    for name, kind, submod in (
        ("hopperClaimsv3_detached_eat.json", "gpu", "GPU-0"),
        ("switch_detached_eat.json", "switch", "SWITCH-0"),
    ):
        bundle = json.loads((vectors / "nvidia" / "nras" / name).read_bytes())
        token = bundle[1][submod].split(".")[1]
        theirs = json.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
        device = hopper() if kind == "gpu" else FORGE.device(Architecture.LS10, nonce=NONCE.raw)
        ours = verified(forged, forged.post(f"/v3/attest/{kind}", json=request(device)).content, None).submods[submod]
        assert set(theirs) - set(ours) == set()
        # NVIDIA leaves the switch's oemid null and ours is known; a warning there is null unless there is one.
        differing = {n for n in theirs if type(theirs[n]) is not type(ours[n])}
        allowed = {"oemid", "x-nvidia-attestation-warning", "x-nvidia-switch-attestation-report-cert-chain-fwid-match"}
        assert differing <= allowed


def tampered(device: ForgedEvidence, at: int) -> ForgedEvidence:
    report = device.report[:at] + bytes([device.report[at] ^ 1]) + device.report[at + 1 :]
    return replace(device, report=report)


PROBLEMS: list[tuple[str, str, dict[str, Any], int, str]] = [
    ("tampered", "/v3/attest/gpu", request(tampered(hopper(), 60)), 422, "report-signature"),
    ("other-nonce", "/v3/attest/gpu", request(hopper(), nonce="11" * 32), 422, "nonce-mismatch"),
    ("duplicate", "/v3/attest/gpu", request(hopper(), hopper()), 422, "device-duplicate"),
    ("foreign-chain", "/v3/attest/gpu", request(replace(hopper(), chain=hopper(1).chain)), 422, "report-signature"),
    ("switch-at-gpu", "/v3/attest/gpu", request(FORGE.device(Architecture.LS10, nonce=NONCE.raw)), 400, "nras-arch"),
    ("gpu-at-switch", "/v4/attest/switch", request(hopper()), 400, "nras-arch"),
    ("arch-lie", "/v3/attest/gpu", request(hopper(), arch="BLACKWELL"), 422, "arch-mismatch"),
    ("no-devices", "/v3/attest/gpu", request(hopper(), evidence_list=[]), 400, "evidence-empty"),
    ("no-nonce", "/v3/attest/gpu", request(hopper(), nonce=...), 400, "nras-request"),
    ("short-nonce", "/v3/attest/gpu", request(hopper(), nonce="11"), 400, "nonce-length"),
    ("zero-nonce", "/v3/attest/gpu", request(hopper(), nonce="00" * 32), 400, "nonce-zero"),
    ("version", "/v3/attest/gpu", request(hopper(), claims_version="1.0"), 400, "nras-version"),
    ("version-number", "/v3/attest/gpu", request(hopper(), claims_version=3), 400, "json-type"),
]


@pytest.mark.parametrize(
    ("path", "body", "status", "code"), [pytest.param(p, b, s, c, id=i) for i, p, b, s, c in PROBLEMS]
)
def test_problems(forged: Client, path: str, body: dict[str, Any], status: int, code: str) -> None:
    response = forged.post(path, json=body)
    assert (response.status_code, response.json()["type"]) == (status, f"urn:kata-gpu:error:{code}"), response.text
    assert response.headers["content-type"] == "application/problem+json"


def test_bodies_are_bounded(forged: Client) -> None:
    assert forged.post("/v3/attest/gpu", content=b" " * (3 * 1024 * 1024)).status_code == 413
    assert forged.post("/v3/attest/gpu", content=b"{").status_code == 400
    assert forged.get("/v3/attest/gpu").status_code == 405


def genuine_switch(vectors: Path) -> dict[str, Any]:
    evidence = json.loads((vectors / "nvidia" / "switch_evidence_ls10.json").read_bytes())
    nonce = parse_evidence(json.dumps(evidence).encode())[0].report[4:36].hex()
    return {"nonce": nonce, "arch": "LS10", "evidence_list": evidence, "claims_version": "3.0"}


@pytest.mark.parametrize("path", ["/v3/attest/switch", "/v4/attest/switch"])
def test_genuine_switch(genuine: Client, vectors: Path, path: str) -> None:
    """The one complete genuine set: LS10 report, chain and reference document, 31 of 31."""
    body = genuine_switch(vectors)
    response = genuine.post(path, json=body)
    assert response.status_code == 200, response.text
    overall = json.loads(base64.urlsafe_b64decode(response.json()[0][1].split(".")[1] + "=="))
    assert overall["x-nvidia-overall-att-result"] is True
    report = bytearray(base64.b64decode(body["evidence_list"][0]["evidence"]))
    report[60] ^= 1
    body["evidence_list"][0]["evidence"] = base64.b64encode(report).decode()
    assert genuine.post(path, json=body).status_code == 422


def test_rim_mirror(genuine: Client, vectors: Path) -> None:
    content = (vectors / "nvidia" / "rim" / f"switchVBIOSRim_{LS10_RIM}.xml").read_bytes()
    assert genuine.get("/v1/rim/ids").json()["ids"] == [LS10_RIM]
    answer = genuine.get(f"/v1/rim/{LS10_RIM}").json()
    assert base64.b64decode(answer["rim"]) == content
    assert (answer["id"], answer["sha256"], answer["rim_format"]) == (LS10_RIM, sha256(content).hexdigest(), "TCG")
    assert genuine.get("/v1/rim/NV_UNKNOWN").status_code == 404
    assert genuine.get("/v1/rim/..%2fx").status_code in {400, 404}
    assert genuine.get("/v1/rim/.hidden").status_code == 400


def test_mode_of_a_protected_board_needs_no_board_here(forged: Client) -> None:
    """GPUs of a Protected PCIe board come without their switches, as NVIDIA's clients send them."""
    gpus = [hopper(i, mode=GpuMode.PPCIE) for i in range(2)]
    response = forged.post("/v3/attest/gpu", json=request(*gpus))
    assert verified(forged, response.content, None).successful, response.text
