"""The handshake client against a broker over real HTTP: both profiles, no downgrade, when it tries again and when not."""

import datetime as dt
import ipaddress
import json
from base64 import b64decode
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from socketserver import BaseRequestHandler, TCPServer
from threading import Thread
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from attestation.crypto import binding
from attestation.crypto.binding import DeviceBytes
from attestation.errors import AttestationError, Denied, ExitCode, Malformed, Misconfigured, Unavailable, Untrusted
from attestation.guest.cdh import CdhClient
from attestation.guest.client import KbsClient
from attestation.guest.evidence import DeviceEvidence, EvidenceProvider
from attestation.guest.http import ATTEMPTS, MAX_BODY_BYTES, MAX_PAUSE_S, Pace, PinnedHttp
from attestation.simulate.vm import SimulatedDevices, SimulatedVm
from attestation.values import Architecture, BindingProfile, DeviceKind, Nonce, ResourcePath, Tee
from tests.attestation.guest.fake_kbs import FakeKbs, problem, reply, serving

PATH = ResourcePath.parse("kbs:///models/llama/key")
RESOURCE = f"/kbs/v0/resource/{PATH}"
INIT_DATA = 'version = "0.1.0"\nalgorithm = "sha256"\n[data]\n"aa.toml" = ""\n'


class Clock:
    """Time that passes only by sleeping."""

    def __init__(self) -> None:
        self.slept: list[float] = []
        self.said: list[str] = []

    def pace(self) -> Pace:
        return Pace(sleep=self.slept.append, jitter=lambda: 1.0, clock=lambda: sum(self.slept), say=self.said.append)


@pytest.fixture
def kbs() -> Iterator[FakeKbs]:
    """A broker that releases its secret to whoever asks properly."""
    with serving(FakeKbs()) as running:
        yield running


@pytest.fixture
def clock() -> Clock:
    return Clock()


def client(
    kbs: FakeKbs, clock: Clock, vm: SimulatedVm | None = None, profiles: tuple[BindingProfile, ...] = ()
) -> KbsClient:
    vm = vm or SimulatedVm(init_data=INIT_DATA)
    http = PinnedHttp(kbs.url, certificate=None, pace=clock.pace())
    options = {"profiles": profiles} if profiles else {}
    return KbsClient(http, vm.provider(), **options)  # type: ignore[arg-type]


def test_the_whole_handshake(kbs: FakeKbs, clock: Clock) -> None:
    """Challenge, evidence, key; three requests and no more."""
    assert client(kbs, clock).fetch(PATH).expose() == kbs.secret
    assert kbs.calls == [("POST", "/kbs/v0/auth"), ("POST", "/kbs/v0/attest"), ("GET", RESOURCE)]
    auth, attest = kbs.bodies
    assert auth == {
        "version": "0.4.0",
        "tee": "snp",
        "extra-params": {
            "supported-hash-algorithms": ["sha256", "sha384", "sha512"],
            "binding-profiles": ["cgpu-v1", "trustee-rcar-0.4"],
        },
    }
    assert sorted(attest) == ["init-data", "runtime-data", "tee-evidence"]
    assert attest["init-data"] == {"format": "toml", "body": INIT_DATA}
    assert clock.slept == []


def test_one_handshake_for_several_keys(kbs: FakeKbs, clock: Clock) -> None:
    """The session is kept as long as it lasts."""
    ours = client(kbs, clock)
    ours.fetch(PATH)
    ours.fetch(ResourcePath.parse("models/llama/other"))
    assert [path for _, path in kbs.calls].count("/kbs/v0/auth") == 1


@pytest.mark.parametrize("devices", [0, 1, 8])
def test_stock_profile_binds_key_nonce_and_the_evidence_string(kbs: FakeKbs, clock: Clock, devices: int) -> None:
    """A server that names no profile is a stock one; recomputed here from what travelled."""
    client(kbs, clock, SimulatedVm(gpus=devices)).fetch(PATH)
    body = kbs.bodies[1]
    nonce, key = body["runtime-data"]["nonce"], body["runtime-data"]["tee-pubkey"]
    additional = body["tee-evidence"]["additional_evidence"]
    assert bytes(body["tee-evidence"]["primary_evidence"]["attestation_report"]["report_data"]) == (
        binding.trustee_report_data(nonce, key, additional)
    )
    assert body["init-data"] is None
    if not devices:
        assert additional == ""
        return
    listed = json.loads(additional)["nvidia"]["device_evidence_list"]
    assert [row["arch"] for row in listed] == ["HOPPER"] * devices
    expected = binding.trustee_device_nonce(nonce, key)
    assert all(expected.matches(b64decode(row["evidence"])[4:36]) for row in listed)


def test_native_profile_binds_raw_bytes(kbs: FakeKbs, clock: Clock) -> None:
    """Chosen by the server among what was offered."""
    kbs.extra_params = {"binding-profile": "cgpu-v1"}
    vm = SimulatedVm(gpus=8, switches=4, init_data=INIT_DATA)
    client(kbs, clock, vm).fetch(PATH)
    body = kbs.bodies[1]
    nonce, key = body["runtime-data"]["nonce"], body["runtime-data"]["tee-pubkey"]
    rows = json.loads(body["tee-evidence"]["additional_evidence"])["nvidia"]["device_evidence_list"]
    devices = [
        DeviceBytes(
            kind=DeviceKind.NVSWITCH if row["arch"] == "LS10" else DeviceKind.GPU,
            report=b64decode(row["evidence"]),
            chain=b64decode(row["certificate"]),
        )
        for row in rows
    ]
    spki = binding.tee_spki(key)
    assert bytes(body["tee-evidence"]["primary_evidence"]["attestation_report"]["report_data"]) == (
        binding.cgpu_report_data(nonce, spki, devices, INIT_DATA.encode())
    )
    assert all(binding.cgpu_device_nonce(nonce, spki).matches(device.report[4:36]) for device in devices)


@pytest.mark.parametrize(
    ("profiles", "extra", "code"),
    [
        pytest.param((BindingProfile.CGPU_V1,), "", "profile-downgrade", id="stock-server-refused"),
        pytest.param((BindingProfile.CGPU_V1,), {}, "profile-downgrade", id="silent-server-refused"),
        pytest.param(
            (BindingProfile.CGPU_V1,), {"binding-profile": "trustee-rcar-0.4"}, "profile-downgrade", id="downgrade"
        ),
        pytest.param((BindingProfile.TRUSTEE_RCAR,), {"binding-profile": "cgpu-v1"}, "profile-downgrade", id="unasked"),
        pytest.param((), {"binding-profile": "cgpu-v0"}, "profile-downgrade", id="unknown"),
        pytest.param((), {"binding-profile": ["cgpu-v1"]}, "profile-downgrade", id="list"),
        pytest.param((), {"selected-hash-algorithm": "sm3"}, "hash-not-offered", id="hash"),
        pytest.param((), {"selected-hash-algorithm": None}, "hash-not-offered", id="hash-null"),
    ],
)
def test_the_server_chooses_only_what_was_offered(
    kbs: FakeKbs, clock: Clock, profiles: tuple[BindingProfile, ...], extra: Any, code: str
) -> None:
    """No evidence leaves the guest otherwise."""
    kbs.extra_params = extra
    with pytest.raises(Untrusted) as refused:
        client(kbs, clock, profiles=profiles).fetch(PATH)
    assert refused.value.code == code
    assert kbs.calls == [("POST", "/kbs/v0/auth")]


@pytest.mark.parametrize("name", ["sha256", "SHA512", "sha384"])
def test_the_selected_hash_is_used(kbs: FakeKbs, clock: Clock, name: str) -> None:
    """Names are case-insensitive."""
    kbs.extra_params = {"selected-hash-algorithm": name}
    client(kbs, clock).fetch(PATH)
    body = kbs.bodies[1]
    runtime, evidence = body["runtime-data"], body["tee-evidence"]
    assert bytes(evidence["primary_evidence"]["attestation_report"]["report_data"]) == binding.trustee_report_data(
        runtime["nonce"], runtime["tee-pubkey"], evidence["additional_evidence"], name.lower()
    )


def test_sample_tee(kbs: FakeKbs, clock: Clock) -> None:
    """Carries the digest unpadded."""
    client(kbs, clock, SimulatedVm(tee=Tee.SAMPLE, gpus=0)).fetch(PATH)
    assert len(b64decode(kbs.bodies[1]["tee-evidence"]["primary_evidence"]["report_data"])) == 48


# -- trying again ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("path", ["/kbs/v0/auth", "/kbs/v0/attest", RESOURCE])
def test_overload_is_waited_for(kbs: FakeKbs, clock: Clock, status: int, path: str) -> None:
    """With growing pauses, or as long as the server asks for, within a bound."""
    kbs.script[path] = [problem(status, "later"), problem(status, "later", Retry_After="7")]
    kbs.script[path].append(problem(status, "later", Retry_After="999"))
    assert client(kbs, clock).fetch(PATH).expose() == kbs.secret
    assert clock.slept == [0.5, 7.0, MAX_PAUSE_S]


def test_patience_ends(kbs: FakeKbs, clock: Clock) -> None:
    """Then kubelet's turn."""
    kbs.script["/kbs/v0/auth"] = [problem(503, "later")] * 99
    with pytest.raises(Unavailable) as refused:
        client(kbs, clock).fetch(PATH)
    assert refused.value.exit_code is ExitCode.UNAVAILABLE
    assert len(kbs.calls) == ATTEMPTS
    assert clock.slept == [0.5, 1.0, 2.0, 4.0, 8.0]


def test_nobody_answers(clock: Clock) -> None:
    """A broker that is not there yet is waited for as well."""
    with serving(FakeKbs()) as gone:
        pass
    with pytest.raises(Unavailable, match="no answer after 6 attempts"):
        client(gone, clock).fetch(PATH)
    assert len(clock.slept) == ATTEMPTS - 1


@pytest.mark.parametrize(
    ("path", "status", "error", "calls"),
    [
        pytest.param(RESOURCE, 403, Denied, 3, id="denied"),
        pytest.param(RESOURCE, 404, Misconfigured, 3, id="absent"),
        pytest.param("/kbs/v0/attest", 401, Denied, 2, id="evidence-refused"),
        pytest.param("/kbs/v0/attest", 413, Misconfigured, 2, id="evidence-too-large"),
        pytest.param("/kbs/v0/auth", 401, Denied, 1, id="challenge-refused"),
        pytest.param(RESOURCE, 500, Unavailable, 3, id="broken"),
        pytest.param("/kbs/v0/auth", 302, Unavailable, 1, id="redirect-not-followed"),
    ],
)
def test_final_answers_are_final(
    kbs: FakeKbs, clock: Clock, path: str, status: int, error: type[AttestationError], calls: int
) -> None:
    """No second request, no pause, the broker's words in the message."""
    kbs.script[path] = [problem(status, "the  reason\nin words", Location="http://127.0.0.1:1/")]
    with pytest.raises(error, match="the reason in words"):
        client(kbs, clock).fetch(PATH)
    assert len(kbs.calls) == calls
    assert clock.slept == []


def test_an_expired_session_is_renewed_once(kbs: FakeKbs, clock: Clock) -> None:
    """A 401 on a key means a new handshake; a second one is a refusal."""
    kbs.script[RESOURCE] = [problem(401, "expired")]
    assert client(kbs, clock).fetch(PATH).expose() == kbs.secret
    assert [path for _, path in kbs.calls].count("/kbs/v0/attest") == 2
    kbs.script[RESOURCE] = [problem(401, "expired")] * 9
    with pytest.raises(Denied, match="does not accept our session"):
        client(kbs, clock).fetch(PATH)


# -- hostile answers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "answer", "error"),
    [
        pytest.param("/kbs/v0/auth", reply(200, []), Malformed, id="auth-list"),
        pytest.param("/kbs/v0/auth", reply(200, {"extra-params": ""}), Malformed, id="auth-no-nonce"),
        pytest.param("/kbs/v0/auth", reply(200, {"nonce": "", "extra-params": ""}), Malformed, id="auth-empty-nonce"),
        pytest.param("/kbs/v0/auth", reply(200, {"nonce": "A" * 200}), Malformed, id="auth-long-nonce"),
        pytest.param("/kbs/v0/auth", (200, {}, b"{"), Malformed, id="auth-no-json"),
        pytest.param("/kbs/v0/attest", reply(200, {}), Malformed, id="attest-no-token"),
        pytest.param(RESOURCE, reply(200, {"ciphertext": "x"}), Malformed, id="no-jwe"),
        pytest.param(RESOURCE, (200, {}, b" " * (MAX_BODY_BYTES + 1)), Unavailable, id="endless"),
    ],
)
def test_answers_that_make_no_sense(
    kbs: FakeKbs, clock: Clock, path: str, answer: tuple[int, dict[str, str], bytes], error: type[AttestationError]
) -> None:
    """Bounded, and never a traceback."""
    kbs.script[path] = [answer] * 9
    with pytest.raises(error):
        client(kbs, clock).fetch(PATH)


def test_a_key_for_somebody_else(kbs: FakeKbs, clock: Clock) -> None:
    """A JWE that another guest's key opens is of no use here."""
    other = client(kbs, clock)
    other.fetch(PATH)
    stolen = kbs.answer("GET", RESOURCE, f"kbs-session-id={list(kbs.sessions)[-1]}", b"")
    kbs.script[RESOURCE] = [stolen]
    with pytest.raises(Untrusted):
        client(kbs, clock).fetch(PATH)


# -- evidence --------------------------------------------------------------------------------------------------------


class Fixed:
    """A source that answers with what it was given."""

    def __init__(self, *devices: DeviceEvidence) -> None:
        self.devices = devices

    def collect(self, nonce: Nonce) -> tuple[DeviceEvidence, ...]:
        return self.devices


def broken(provider: EvidenceProvider, case: str) -> EvidenceProvider:
    """One thing wrong with the devices."""
    if case == "count":
        return replace(provider, expected_devices=2)
    recorded = SimulatedDevices(gpus=1).collect(Nonce(bytes(range(32))))
    if case == "nonce":
        return replace(provider, devices=(Fixed(*recorded),))
    return replace(provider, devices=(provider.devices[0], provider.devices[0]), expected_devices=2)


@pytest.mark.parametrize(
    ("case", "code"), [("count", "device-count"), ("nonce", "device-nonce"), ("twice", "device-duplicate")]
)
def test_incomplete_evidence_never_leaves_the_guest(kbs: FakeKbs, clock: Clock, case: str, code: str) -> None:
    """The broker would refuse it; the guest knows earlier, and why."""
    provider = broken(SimulatedVm().provider(), case)
    http = PinnedHttp(kbs.url, certificate=None, pace=clock.pace())
    with pytest.raises(Untrusted) as refused:
        KbsClient(http, provider).fetch(PATH)
    assert refused.value.code == code
    assert kbs.calls == [("POST", "/kbs/v0/auth")]


# -- pinning ---------------------------------------------------------------------------------------------------------


def certificate(folder: Path, name: str, host: str = "127.0.0.1") -> tuple[Path, str]:
    """Key and self-signed certificate as one PEM file, and the certificate alone."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    start = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + dt.timedelta(days=36500))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(host))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = made.public_bytes(Encoding.PEM)
    path = folder / f"{name}.pem"
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()) + pem)
    return path, pem.decode()


def test_plain_http_to_a_tls_port_is_guessed(tmp_path: Path, clock: Clock) -> None:
    """Each attempt is said before the wait, and the last word asks what people forget."""

    class HangUp(BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(1 << 16)  # no greeting of TLS

    with TCPServer(("127.0.0.1", 0), HangUp) as server:
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        with pytest.raises(Unavailable, match=r"Remote end closed connection \(plain http: does it want https\?\)"):
            PinnedHttp(url, certificate=None, pace=clock.pace()).call("GET", RESOURCE)
        server.shutdown()
    assert clock.said == [
        f"no answer of {url} yet (Remote end closed connection): attempt {n} of {ATTEMPTS} follows"
        for n in range(2, ATTEMPTS + 1)
    ]


def test_a_connection_cut_in_the_tls_handshake_is_tried_again(tmp_path: Path, clock: Clock) -> None:
    """A balancer hangs up where its server is gone. That says nothing about who the server is."""
    _, pem = certificate(tmp_path, "ours")

    class HangUp(BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(1 << 16)  # the whole greeting: closing before would be a reset, which is another error

    with TCPServer(("127.0.0.1", 0), HangUp) as balancer:
        Thread(target=balancer.serve_forever, args=(0.01,), daemon=True).start()
        http = PinnedHttp(f"https://127.0.0.1:{balancer.server_address[1]}", certificate=pem, pace=clock.pace())
        with pytest.raises(Unavailable) as caught:
            http.call("GET", RESOURCE)
        balancer.shutdown()
    assert (caught.value.code, len(clock.slept)) == ("broker-unavailable", ATTEMPTS - 1)
    assert "SSL" in caught.value.got


def test_the_pinned_certificate_is_the_only_one(tmp_path: Path, clock: Clock) -> None:
    """The server's own certificate works; any other, the system's roots and another host name do not."""
    ours, pem = certificate(tmp_path, "ours")
    _, other = certificate(tmp_path, "other")
    elsewhere, elsewhere_pem = certificate(tmp_path, "elsewhere", host="127.0.0.9")
    with serving(FakeKbs(), ours) as kbs:
        for _ in range(2):  # a second request must not have gathered the system's roots
            http = PinnedHttp(kbs.url, certificate=pem, pace=clock.pace())
            assert KbsClient(http, SimulatedVm().provider()).fetch(PATH).expose() == kbs.secret
            adapter: Any = http._session.get_adapter("https://127.0.0.1")
            assert len(adapter._context.get_ca_certs()) <= 1
        with pytest.raises(Denied) as refused:
            PinnedHttp(kbs.url, certificate=other, pace=clock.pace()).call("GET", RESOURCE)
        assert refused.value.code == "broker-tls"
    with serving(FakeKbs(), elsewhere) as kbs, pytest.raises(Denied, match="not the pinned one"):
        PinnedHttp(kbs.url, certificate=elsewhere_pem, pace=clock.pace()).call("GET", RESOURCE)
    assert clock.slept == []


@pytest.mark.parametrize(
    ("url", "pem", "code"),
    [
        ("http://broker.example", None, "broker-http"),
        ("https://broker.example", None, "broker-cert"),
        ("https://broker.example", "no pem", "broker-cert"),
        ("ftp://broker.example", None, "broker-url"),
        ("https://user:pass@broker.example", "x", "broker-url"),
        ("broker", None, "broker-url"),
    ],
)
def test_servers_that_are_not_asked(url: str, pem: str | None, code: str) -> None:
    """Plain http never leaves the machine; https needs something to pin."""
    with pytest.raises(Misconfigured) as refused:
        PinnedHttp(url, certificate=pem)
    assert refused.value.code == code


def test_the_environment_of_the_guest_is_not_asked(kbs: FakeKbs, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Proxies come from the host in Kata: they are ignored."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
    assert client(kbs, clock).fetch(PATH).expose() == kbs.secret


# -- data hub --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        pytest.param((200, {}, b"\x00plain"), None, id="plain"),
        pytest.param(problem(403, ""), Denied, id="denied"),
        pytest.param(problem(404, ""), Misconfigured, id="absent"),
        pytest.param(problem(500, ""), Unavailable, id="failed"),
    ],
)
def test_data_hub(
    kbs: FakeKbs, clock: Clock, answer: tuple[int, dict[str, str], bytes], error: type[AttestationError] | None
) -> None:
    """Plain bytes from the pod's own hub; its refusals in our terms."""
    kbs.script["/cdh/resource/models/llama/key"] = [answer]
    hub = CdhClient(PinnedHttp(kbs.url, certificate=None, pace=clock.pace()))
    if error is None:
        assert hub.fetch(PATH).expose() == b"\x00plain"
    else:
        with pytest.raises(error):
            hub.fetch(PATH)
    assert kbs.calls == [("GET", "/cdh/resource/models/llama/key")]


def test_arch_names_cover_every_architecture() -> None:
    """A new architecture needs a name on the wire."""
    from attestation.guest.evidence import _ARCH_NAMES

    assert set(_ARCH_NAMES) == set(Architecture)
