"""Revocation, leases, quotas and the webhook: who is refused, who is told, and what is left when it does not work."""

import hmac
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from attestation.appraise.facts import CpuFacts, DeviceFacts, PlatformFacts
from attestation.appraise.native import tee_claim
from attestation.broker.revocation import FirmwareRange, RevocationKind, normal_value
from attestation.broker.roles import Principal, Role
from attestation.cli.main import cli, run
from attestation.crypto.jwk import tee_key_of, thumbprint
from attestation.errors import AttestationError, Denied, Malformed, Misconfigured, Untrusted
from attestation.ops.release import Credentials, authenticate
from attestation.ops.revocations import list_leases, revoke, set_quota, unrevoke
from attestation.sources.tenants import Quota
from attestation.sources.webhook import ATTEMPTS, SIGNATURE, Webhook, signature
from attestation.values import Architecture, DeviceKind, GpuMode, Level, ResourcePath, Secret, Tee
from tests.attestation.broker.broker import ADMIN, GPU_POLICY, INIT_DATA, NOW, PATH, Broker, Visit, ready_broker
from tests.attestation.tee.world import Guest

SECRET = Secret(b"sixteen bytes or more")


@pytest.fixture
def kbs(tmp_path: Path) -> Iterator[Broker]:
    with ready_broker(tmp_path) as made:
        yield made


def _facts(visit: Visit) -> Any:
    return authenticate(visit.broker.world, Credentials(cookie=None, bearer=visit.token), now=NOW)


IDENTITIES: dict[str, Callable[[Any], str]] = {
    "token": lambda a: str(a.jti),
    "tee-key": lambda a: thumbprint(a.tee_key),
    "chip": lambda a: str(a.facts.cpu.chip_id).upper(),
    "gpu": lambda a: str(a.facts.devices[0].chip_id).upper(),
    "gpu-serial": lambda a: str(a.facts.devices[0].leaf_serial),
}


@pytest.mark.parametrize("name", IDENTITIES)
def test_a_revoked_identity_gets_nothing(kbs: Broker, name: str) -> None:
    """Neither with the token that it has, nor by attesting again, unless it is the token that was revoked."""
    visit = kbs.handshake()
    visit.get()
    kind = RevocationKind(name.removesuffix("-serial"))
    ended = revoke(kbs.world, ADMIN, kind, IDENTITIES[name](_facts(visit)), "test", now=NOW)
    assert [str(lease.path) for lease in ended] == [str(PATH)]
    for bearer in (True, False):
        with pytest.raises(Untrusted) as caught:
            visit.get(bearer=bearer)
        assert caught.value.code == "revoked"
    if kind in (RevocationKind.CHIP, RevocationKind.GPU):
        with pytest.raises(Untrusted) as caught:
            kbs.handshake()
        assert caught.value.code == "revoked"
        assert kbs.world.audit.tail(1)[0].body["code"] == "revoked"
    else:
        assert kbs.handshake().get() == b"k" * 32
    assert kbs.world.leases.live(NOW + timedelta(minutes=1)) == () or kind not in (
        RevocationKind.CHIP,
        RevocationKind.GPU,
    )


def test_a_revocation_can_be_taken_back(kbs: Broker) -> None:
    """Once; and both are in the log."""
    visit = kbs.handshake()
    chip = IDENTITIES["chip"](_facts(visit))
    revoke(kbs.world, ADMIN, RevocationKind.CHIP, chip, "test", now=NOW)
    assert unrevoke(kbs.world, ADMIN, RevocationKind.CHIP, chip, now=NOW)
    assert not unrevoke(kbs.world, ADMIN, RevocationKind.CHIP, chip, now=NOW)
    assert visit.get() == b"k" * 32
    events = [entry.event for entry in kbs.world.audit.about(f"chip {chip.lower()}")]
    assert events == ["revoked", "unrevoked"]


# The simulated guest has driver and VBIOS versions of the forged reference documents.
def _versions(kbs: Broker) -> dict[str, str]:
    attested = _facts(kbs.handshake())
    device = attested.facts.devices[0]
    return {
        "driver": device.driver_version,
        "vbios": device.vbios_version.lower(),
        "microcode": str(tee_claim(attested.facts.cpu, "reported_tcb_microcode")),
    }


@pytest.mark.parametrize("part", ["driver", "vbios", "microcode"])
def test_firmware_ranges(kbs: Broker, part: str) -> None:
    """A range up to the version in use refuses it, with the lease it had; one that ends below or starts above does not."""
    version = _versions(kbs)[part]
    platform = "snp" if part == "microcode" else "hopper"
    head, _, last = version.rpartition(".")
    base = 16 if part == "vbios" else 10
    width = len(last)

    def moved(by: int) -> str:
        number = int(last, base) + by
        return f"{head}.{number:0{width}{'x' if base == 16 else 'd'}}".lstrip(".")

    kbs.handshake().get()
    for harmless in (f"..{moved(-1)}", f"{moved(1)}.."):
        assert revoke(kbs.world, ADMIN, RevocationKind.FIRMWARE, f"{platform} {part} {harmless}", "no", now=NOW) == ()
    visit = kbs.handshake()
    assert visit.get() == b"k" * 32
    ended = revoke(kbs.world, ADMIN, RevocationKind.FIRMWARE, f"{platform} {part} ..{version}", "bulletin", now=NOW)
    assert len(ended) == 2
    with pytest.raises(Untrusted) as caught:
        visit.get()
    assert caught.value.got == f"firmware {platform} {part} ..{version}"


@pytest.mark.parametrize(
    ("version", "text", "covered"),
    [
        ((550, 54, 14), "..550.54", True),
        ((550, 54, 15), "..550.54.14", False),
        ((550, 54, 14), "550.54.14..", True),
        ((550, 54), "550.54.14..", False),
        ((600,), "550..580", False),
        ((), "..1", True),
        ((), "9999..", True),
    ],
)
def test_range_arithmetic(version: tuple[int, ...], text: str, covered: bool) -> None:
    """Both ends belong to the range, as far as they are written; what names no version is covered."""
    assert FirmwareRange.parse(f"hopper driver {text}")._holds(version) is covered


def _device(kind: DeviceKind, arch: Architecture, driver: str = "", vbios: str = "") -> DeviceFacts:
    return DeviceFacts(
        kind=kind, arch=arch, chip_id="00", leaf_serial="1", level=Level.TRUSTED, mode=GpuMode.ON,
        driver_version=driver, vbios_version=vbios, evidence="", claims={},
    )  # fmt: skip


def _platform(tee: Tee, *devices: DeviceFacts) -> PlatformFacts:
    claims = {"reported_tcb_microcode": 84, "reported_tcb_snp": 23}
    cpu = CpuFacts(tee=tee, product="", chip_id="", measurement="", init_data="", claims=claims)
    return PlatformFacts(cpu=cpu, devices=devices, init_data_digest=None, init_data_claims=None, binding={})


_HOPPERS = [
    _device(DeviceKind.GPU, Architecture.HOPPER, driver, "96.00.5E.00.01") for driver in ("550.54.14", "570.1", "580.2")
]
_SWITCH = _device(DeviceKind.NVSWITCH, Architecture.LS10, vbios="96.10.73.00.01")
_BLACKWELL = _device(DeviceKind.GPU, Architecture.BLACKWELL, "570.1", "97.00.5E.00.01")


@pytest.mark.parametrize(
    ("text", "platform", "covered"),
    [
        pytest.param("hopper driver ..550.54.14", _platform(Tee.SNP, *_HOPPERS), True, id="first-of-three"),
        pytest.param("hopper driver 580..", _platform(Tee.SNP, *_HOPPERS), True, id="last-of-three"),
        pytest.param("hopper driver ..540", _platform(Tee.SNP, *_HOPPERS), False, id="none-of-three"),
        pytest.param("blackwell driver ..999", _platform(Tee.SNP, *_HOPPERS), False, id="another-architecture"),
        pytest.param("blackwell driver ..999", _platform(Tee.SNP, *_HOPPERS, _BLACKWELL), True, id="the-fourth"),
        pytest.param("ls10 vbios ..99", _platform(Tee.SNP, _SWITCH), False, id="a-switch-is-no-gpu"),
        pytest.param("hopper vbios ..96.00.5E", _platform(Tee.SNP, *_HOPPERS), True, id="vbios-is-hexadecimal"),
        pytest.param("hopper vbios ..96.00.5D", _platform(Tee.SNP, *_HOPPERS), False, id="vbios-above"),
        pytest.param("hopper driver ..1", _platform(Tee.SNP), False, id="no-device"),
        pytest.param("hopper driver ..1", _platform(Tee.SNP, _device(DeviceKind.GPU, Architecture.HOPPER)), True,
                     id="a-device-that-names-none"),
        pytest.param("snp microcode ..84", _platform(Tee.SNP), True, id="cpu"),
        pytest.param("snp microcode ..83", _platform(Tee.SNP), False, id="cpu-above"),
        pytest.param("snp snp 23..23", _platform(Tee.SNP), True, id="cpu-another-part"),
        pytest.param("snp fmc ..1", _platform(Tee.SNP), True, id="cpu-that-names-none"),
        pytest.param("snp microcode ..84", _platform(Tee.TDX), False, id="another-cpu"),
    ],
)  # fmt: skip
def test_whom_a_range_covers(text: str, platform: PlatformFacts, covered: bool) -> None:
    assert FirmwareRange.parse(text).covers(platform) is covered


@pytest.mark.parametrize(
    ("value", "stored"),
    [("x" * 200, "x" * 200), (" token ", "token"), ("Token", "Token")],
    ids=["longest", "spaces-around", "case-kept"],
)
def test_values_as_they_are_stored(value: str, stored: str) -> None:
    assert normal_value(RevocationKind.TOKEN, value) == stored


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        pytest.param("firmware", "driver ..1", id="two-words"),
        pytest.param("firmware", "hopper driver ..1 more", id="four-words"),
        pytest.param("firmware", "tdx microcode ..1", id="cpu-without-parts"),
        pytest.param("firmware", "snp colour ..1", id="cpu-part"),
        pytest.param("firmware", "hopper microcode ..1", id="gpu-with-a-part-of-a-cpu"),
        pytest.param("token", "x" * 201, id="token-long"),
        pytest.param("token", "a\x01b", id="not-printable"),
        pytest.param("firmware", "hopper driver 550", id="no-range"),
        pytest.param("firmware", "hopper driver ..", id="no-end"),
        pytest.param("firmware", "hopper colour ..1", id="part"),
        pytest.param("firmware", "maxwell driver ..1", id="platform"),
        pytest.param("firmware", "hopper driver ..x", id="number"),
        pytest.param("chip", "", id="empty"),
        pytest.param("chip", "a b", id="space"),
        pytest.param("chip", "6b184e7d36d4...", id="chip-of-a-list"),
        pytest.param("chip", "6b184e7d36d4", id="chip-cut"),
        pytest.param("chip", "zz" * 64, id="chip-not-hex"),
        pytest.param("gpu", "GPU-35D49223", id="gpu-not-hex"),
        pytest.param("gpu", "x" * 201, id="long"),
        pytest.param("token", "\u00e9", id="not-ascii"),
    ],
)
def test_what_could_never_match_is_refused(kbs: Broker, kind: str, value: str) -> None:
    """A typing error must not look like a revocation."""
    with pytest.raises(Malformed):
        revoke(kbs.world, ADMIN, RevocationKind(kind), value, "test", now=NOW)
    with pytest.raises(Malformed):
        revoke(kbs.world, ADMIN, RevocationKind.CHIP, "aa" * 64, "", now=NOW)
    assert kbs.world.revocations.all() == ()


def test_leases_renew_only_by_a_new_attestation(kbs: Broker) -> None:
    """A token of five minutes cannot hold a lease of ten for longer than fifteen."""
    kbs.put(policy=GPU_POLICY + "[release]\nlease_s = 600\n")
    key = ec.generate_private_key(ec.SECP256R1())
    kbs.handshake(key=key).get()
    (first,) = list_leases(kbs.world, ADMIN, PATH, now=NOW)
    assert first.expires == NOW + timedelta(minutes=10)
    assert first.holder == thumbprint(tee_key_of(key.public_key()).jwk)
    kbs.clock.now = NOW + timedelta(minutes=9)
    kbs.handshake(key=key).get()
    (second,) = list_leases(kbs.world, ADMIN, None, now=kbs.clock.now)
    assert (second.granted, second.expires) == (NOW, NOW + timedelta(minutes=19))
    assert second.jti != first.jti
    assert list_leases(kbs.world, ADMIN, None, now=NOW + timedelta(minutes=19)) == ()


def test_only_so_many_guests_hold_a_key(kbs: Broker) -> None:
    """A third guest waits until a lease ends; a holder may always ask again."""
    kbs.put(policy=GPU_POLICY + "[release]\nmax_leases = 2\nlease_s = 60\n")
    first, second, third = (kbs.handshake() for _ in range(3))
    assert first.get() == second.get() == first.get() == b"k" * 32
    with pytest.raises(Denied):
        third.get()
    assert "leases-exhausted" in str(kbs.world.audit.about(str(PATH), "release-denied")[-1].body)
    assert len(kbs.world.audit.about(str(PATH), "released")) == 3
    kbs.clock.now = NOW + timedelta(seconds=61)
    assert third.get() == b"k" * 32


def _code(call: Callable[[], object]) -> str:
    with pytest.raises(AttestationError) as caught:
        call()
    return caught.value.code


def test_quotas_of_a_tenant(kbs: Broker) -> None:
    """Keys, releases an hour, attestations a minute: of this repository alone, and again in the next window."""
    mine = ResourcePath.parse("acme/model/llama")
    kbs.put(mine, policy=GPU_POLICY)
    set_quota(kbs.world, ADMIN, "acme", Quota(max_keys=1, releases_per_hour=3, attestations_per_minute=2), now=NOW)
    assert _code(lambda: kbs.put(ResourcePath.parse("acme/model/other"))) == "quota-keys"
    kbs.put(mine)  # a new version is no new key
    first, second, third = (kbs.handshake() for _ in range(3))
    assert first.get(mine) == first.get(mine) == b"k" * 32
    assert second.get(mine) == b"k" * 32
    assert _code(lambda: second.get(mine)) == "policy-denied"
    assert "quota-releases" in str(kbs.world.audit.about(str(mine), "release-denied")[-1].body)
    assert third.get() == b"k" * 32
    set_quota(kbs.world, ADMIN, "acme", Quota(attestations_per_minute=2), now=NOW)
    assert _code(lambda: third.get(mine)) == "policy-denied"
    assert "quota-attestations" in str(kbs.world.audit.about(str(mine), "release-denied")[-1].body)
    assert kbs.world.tenants.used("acme", NOW) == {"releases": 3, "attestations": 2}
    kbs.clock.now = NOW + timedelta(minutes=1)
    assert third.get(mine) == b"k" * 32
    assert kbs.world.audit.verify() > 0


def test_tenants_see_and_administer_their_own(kbs: Broker) -> None:
    """An operator of one repository: neither quotas nor revocations, and only its leases."""
    kbs.handshake().get()
    other = Principal(name="o", role=Role.OPERATOR, repositories=("acme",))
    assert list_leases(kbs.world, other, None, now=NOW) == ()
    calls: list[Callable[[], object]] = [
        lambda: set_quota(kbs.world, other, "acme", Quota(), now=NOW),
        lambda: revoke(kbs.world, other, RevocationKind.CHIP, "aa" * 64, "x", now=NOW),
        lambda: list_leases(kbs.world, other, PATH, now=NOW),
    ]
    assert [_code(call) for call in calls] == ["role-not-allowed", "role-not-allowed", "repository-not-allowed"]


class Receiver:
    """Keeps what came; answers the statuses given, then 204."""

    def __init__(self) -> None:
        self.got: list[tuple[str, bytes]] = []
        self.statuses: list[int] = []
        self.url = ""
        self.open = threading.Event()
        self.open.set()


@contextmanager
def receiver() -> Iterator[Receiver]:
    made = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            made.open.wait(10)
            made.got.append((self.headers[SIGNATURE], self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(made.statuses.pop(0) if made.statuses else 204)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_args: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    made.url = f"http://127.0.0.1:{server.server_address[1]}/hook"
    try:
        yield made
    finally:
        made.open.set()
        server.shutdown()
        server.server_close()
        thread.join()


def test_webhook_on_denial_and_revocation(kbs: Broker) -> None:
    """Signed, with the ticket that the guest saw; no secret and no token in it."""
    from dataclasses import replace

    with receiver() as there:
        hook = Webhook(there.url, SECRET)
        made = replace(kbs, world=replace(kbs.world, webhook=hook))
        visit = made.handshake(Guest(init_data=INIT_DATA).with_(gpus=0))
        with pytest.raises(Denied) as caught:
            visit.get()
        revoke(made.world, ADMIN, RevocationKind.CHIP, "aa" * 64, "stolen", now=NOW)
        hook.close()
        events = [json.loads(body) for _, body in there.got]
        assert [event["event"] for event in events] == ["release-denied", "revoked"]
        assert events[0]["body"]["ticket"] in caught.value.what
        at = int(NOW.timestamp())
        for header, body in there.got:
            assert hmac.compare_digest(header, signature(SECRET, at, body))
            assert visit.token.encode() not in body
        assert hook.dropped == 0


def test_webhook_retries_are_bounded() -> None:
    """Two failures and a success are one delivery; a receiver that stays down loses the event, counted."""
    waits: list[float] = []
    with receiver() as there:
        there.statuses = [500, 302]
        hook = Webhook(there.url, SECRET, sleep=waits.append)
        hook.notify("revoked", "x", {}, NOW)
        hook.close()
        assert (len(there.got), hook.dropped, waits) == (3, 0, [0.5, 1.0])
        there.statuses = [503] * 10
        hook = Webhook(there.url, SECRET, sleep=waits.append)
        hook.notify("revoked", "x", {}, NOW)
        hook.close()
        assert (len(there.got), hook.dropped) == (3 + ATTEMPTS, 1)
    hook = Webhook("http://127.0.0.1:9/", SECRET, sleep=waits.append)
    hook.notify("revoked", "x", {}, NOW)
    hook.close()
    assert hook.dropped == 1


def test_webhook_queue_is_bounded() -> None:
    """A receiver that hangs costs no memory and no time of the caller."""
    with receiver() as there:
        there.open.clear()
        hook = Webhook(there.url, SECRET, limit=5)
        for _ in range(50):
            hook.notify("revoked", "x", {}, NOW)
        assert 44 <= hook.dropped <= 45
        there.open.set()
        hook.close()
        assert 5 <= len(there.got) <= 6


@pytest.mark.parametrize(
    ("url", "secret", "code"),
    [
        pytest.param("http://example.com/hook", SECRET, "webhook-url", id="plain-http"),
        pytest.param("ftp://127.0.0.1/", SECRET, "webhook-url", id="scheme"),
        pytest.param("https://example.com/", Secret(b"short"), "webhook-secret", id="secret"),
    ],
)
def test_webhook_configuration(url: str, secret: Secret, code: str) -> None:
    """TLS except to loopback, and a real secret."""
    with pytest.raises(Misconfigured) as caught:
        Webhook(url, secret)
    assert caught.value.code == code


def test_revocations_are_posted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The file that `serve` takes, given to the command; a bad one is one clear line."""
    (tmp_path / "secret").write_bytes(SECRET.expose())
    file = tmp_path / "hook.toml"
    argv = [
        "revoke",
        "add",
        "chip",
        "aa" * 64,
        "--reason",
        "x",
        "--store",
        str(tmp_path / "store"),
        "--webhook",
        str(file),
    ]
    assert run(cli, ["user", "add", "owner", "--role", "admin", "--store", str(tmp_path / "store")]) == 0
    with receiver() as there:
        file.write_text(f'url = "{there.url}"\nsecret_file = "secret"\n')
        assert run(cli, argv) == 0
        assert json.loads(there.got[0][1])["subject"] == "chip " + "aa" * 64
    for text in ("", 'url = "https://x"\n', 'url = 1\nsecret_file = "secret"\n', "["):
        file.write_text(text)
        assert run(cli, argv) == 2
        assert "error[webhook]" in capsys.readouterr().err


def test_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Revoke, list, take back; leases; limits."""
    with ready_broker(tmp_path) as made:
        visit = made.handshake()
        visit.get()
        chip = IDENTITIES["chip"](_facts(visit))
    store = ["--store", str(tmp_path / "store")]

    def out(*argv: str, code: int = 0) -> str:
        assert run(cli, [*argv, *store]) == code
        return capsys.readouterr().out

    assert out("lease") == "no leases\n"  # they ended in the simulated past
    assert "revoked chip" in out("revoke", "add", "chip", chip, "--reason", "stolen")
    assert chip.lower() in out("revoke", "list")
    assert "accepted again" in out("revoke", "remove", "chip", chip)
    assert out("revoke", "remove", "chip", chip, code=2) == ""
    assert out("revoke", "list") == "nothing is revoked\n"
    assert out("tenant", "list") == "no limits\n"
    assert out("tenant", "set", "acme", "--keys", "1") == "limits of acme are set\n"
    assert out("tenant", "list").startswith("acme  keys 0/1  releases 0/- an hour")
    out("tenant", "set", "a/b", code=2)
