"""Evidence end to end: a real guest process, our fake drivers and a simulated kernel, and a broker that has to accept it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest

from attestation.errors import ExitCode
from attestation.simulate.amd import MEASUREMENT
from attestation.simulate.intel import MR_TD, QuoteForm
from attestation.values import ResourcePath
from tests.attestation.broker.broker import Served, broker, served
from tests.attestation.guest.drivers import build
from tests.attestation.guest.vm import SimulatedGuest

PATH = ResourcePath.parse("models/llama/key")
SECRET = bytes(range(32))
POLICY = """
version = 1
binding_profile = "{profile}"
[cpu]
tee = "{tee}"
measurement = "{measurement}"
[gpus]
count = {gpus}
arch = "hopper"
mode = "{mode}"
driver_version = {{ unchecked = "forged devices" }}
vbios_version = {{ unchecked = "forged devices" }}
{switches}
[init_data]
accept = ["{digest}"]
"""
SWITCHES = '[switches]\ncount = {count}\nbios_version = { unchecked = "forged devices" }'
MEASUREMENTS = {"sev_guest": ("snp", MEASUREMENT), "tdx_guest": ("tdx", MR_TD)}
RTMRS = {f"rtmr_{n}": [QuoteForm().rtmrs[n].hex()] for n in (1, 2)}  # of the simulated kernel and command line
CGPU, RCAR = "cgpu-v1", "trustee-rcar-0.4"

# Provider of configfs-tsm, GPUs, NVSwitches, binding profile.
MACHINES = [
    pytest.param("sev_guest", 1, 0, CGPU, id="snp-1-gpu-cgpu"),
    pytest.param("sev_guest", 1, 0, RCAR, id="snp-1-gpu-rcar"),
    pytest.param("tdx_guest", 1, 0, CGPU, id="tdx-1-gpu-cgpu"),
    pytest.param("tdx_guest", 8, 0, RCAR, id="tdx-8-gpus-rcar"),
    pytest.param("sev_guest", 8, 4, CGPU, id="snp-8-gpus-4-switches-cgpu"),
]


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("drivers"))


@pytest.fixture(scope="module")
def kbs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with broker(tmp_path_factory.mktemp("broker")) as made, served(made) as running:
        made.references({"snp_launch_measurement": [MEASUREMENT.hex()], "mr_td": [MR_TD.hex()], **RTMRS})
        yield running


def demand(kbs: Served, guest: SimulatedGuest, digest: str, profile: str) -> None:
    """The key, released to exactly this machine."""
    tee, measurement = MEASUREMENTS[guest.provider]
    switches = SWITCHES.replace("{count}", str(guest.switches)) if guest.switches else ""
    policy = POLICY.format(
        profile=profile,
        tee=tee,
        measurement=measurement.hex(),
        gpus=guest.gpus,
        mode="ppcie" if guest.switches else "on",
        switches=switches,
        digest=digest,
    )
    kbs.broker.drop(PATH)
    kbs.broker.put(PATH, SECRET, policy=policy)


@pytest.mark.parametrize(("provider", "gpus", "switches", "profile"), MACHINES)
def test_the_broker_releases_a_key_to_what_was_collected(
    kbs: Served, libraries: Path, tmp_path: Path, provider: str, gpus: int, switches: int, profile: str
) -> None:
    """`key get`: every device, CPU report and init-data as the policy of this very machine demands them."""
    guest = SimulatedGuest(folder=tmp_path, libraries=libraries, provider=provider, gpus=gpus, switches=switches)
    digest = guest.launch(kbs.url, expected=gpus + switches, profile=profile)
    demand(kbs, guest, digest, profile)
    done = guest.run("key", "get", f"kbs:///{PATH}", "--init-data", guest.init_data, "--out", "-")
    assert (done.returncode, done.stdout) == (ExitCode.OK, SECRET), done.stderr.decode()


@pytest.mark.parametrize("profile", [CGPU, RCAR])
def test_collected_evidence_is_the_body_of_attest(kbs: Served, libraries: Path, tmp_path: Path, profile: str) -> None:
    """`evidence collect` for a live nonce, posted as it is printed: a token comes back."""
    guest = SimulatedGuest(folder=tmp_path, libraries=libraries, gpus=2)
    guest.launch(kbs.url)
    offered = {"binding-profiles": [profile]}
    challenge, cookie = post(kbs, "auth", {"version": "0.4.0", "tee": "snp", "extra-params": offered})
    done = guest.run("evidence", "collect", "--nonce", challenge["nonce"], "--binding-profile", profile,
                     "--init-data", guest.init_data)  # fmt: skip
    assert done.returncode == ExitCode.OK, done.stderr.decode()
    body = json.loads(done.stdout)
    listed = json.loads(body["tee-evidence"]["additional_evidence"])["nvidia"]["device_evidence_list"]
    assert [row["uuid"] for row in listed] == ["GPU-fake-0", "GPU-fake-1"]
    assert body["init-data"]["body"] == guest.init_data.read_text()
    answer, _ = post(kbs, "attest", body, cookie)
    assert answer["token"].count(".") == 2


@pytest.mark.parametrize(
    ("settings", "bus", "arguments", "code", "says"),
    [
        pytest.param({"FAKE_NVML_BROKEN": 1}, 2, (), ExitCode.UNAVAILABLE, "nvml GPU-fake-1", id="a-gpu-fails"),
        pytest.param({"FAKE_FORGE": "/absent"}, 2, (), ExitCode.UNAVAILABLE, "nvml GPU-fake-0", id="every-gpu-fails"),
        pytest.param({"FAKE_NVML_GPUS": 1}, 2, (), ExitCode.NEGATIVE, "device-count", id="fewer-than-on-the-bus"),
        pytest.param({"FAKE_NVML_GPUS": 3}, 2, (), ExitCode.UNAVAILABLE, "GPU-fake-2", id="more-than-have-chains"),
        pytest.param({"FAKE_NVML_CC": 0}, 2, (), ExitCode.NEGATIVE, "confidential mode is off", id="mode-off"),
        pytest.param({}, 2, ("--expected-devices", 3), ExitCode.NEGATIVE, "expected 3, got 2", id="more-expected"),
        pytest.param({}, 2, ("--expected-devices", 1), ExitCode.NEGATIVE, "expected 1, got 2", id="fewer-expected"),
    ],
)
def test_what_is_not_complete_is_an_error(
    libraries: Path,
    tmp_path: Path,
    settings: dict[str, object],
    bus: int,
    arguments: tuple[object, ...],
    code: ExitCode,
    says: str,
) -> None:
    """Nothing is printed: a device is never left out."""
    guest = SimulatedGuest(folder=tmp_path, libraries=libraries, gpus=bus, settings=settings)
    guest.launch("http://127.0.0.1:1")
    done = guest.run("evidence", "collect", "--nonce", "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=",
                     "--init-data", guest.init_data, *arguments)  # fmt: skip
    assert (done.returncode, done.stdout) == (code, b"")
    assert says in done.stderr.decode()


@pytest.mark.parametrize(
    ("measured", "arguments", "code", "says"),
    [
        pytest.param(3, (), ExitCode.NEGATIVE, "expected 3, got 2", id="init-data-expects-more"),
        pytest.param(2, (), ExitCode.OK, "", id="init-data-expects-them"),
        pytest.param(2, ("--expected-devices", 3), ExitCode.USAGE, "disagree", id="two-counts"),
    ],
)
def test_the_count_of_init_data(
    libraries: Path, tmp_path: Path, measured: int, arguments: tuple[object, ...], code: ExitCode, says: str
) -> None:
    """The measured number holds, also against the command line."""
    guest = SimulatedGuest(folder=tmp_path, libraries=libraries, gpus=2)
    guest.launch("http://127.0.0.1:1", expected=measured)
    done = guest.run("evidence", "collect", "--nonce", "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=",
                     "--init-data", guest.init_data, *arguments)  # fmt: skip
    assert done.returncode == code
    assert says in done.stderr.decode()


@pytest.mark.parametrize(
    ("before", "settings", "arguments", "code", "gate", "after"),
    [
        pytest.param("0", {}, (), ExitCode.OK, "set", "1", id="attested"),
        pytest.param("1", {}, (), ExitCode.OK, "not-enforced", "1", id="ready-at-boot"),
        pytest.param("1", {"FAKE_NVML_BROKEN": 1}, (), ExitCode.UNAVAILABLE, "", "0", id="a-gpu-fails"),
        pytest.param("1", {}, ("--expected-devices", 3), ExitCode.NEGATIVE, "", "0", id="a-gpu-is-missing"),
        pytest.param("1", {"FAKE_NVML_DEV": 1}, (), ExitCode.NEGATIVE, "", "0", id="devtools"),
    ],
)
def test_the_ready_gate(
    kbs: Served,
    libraries: Path,
    tmp_path: Path,
    before: str,
    settings: dict[str, object],
    arguments: tuple[object, ...],
    code: ExitCode,
    gate: str,
    after: str,
) -> None:
    """`ready`, as the hook of a guest image runs it: open for what the broker accepted, closed on any failure."""
    guest = SimulatedGuest(folder=tmp_path, libraries=libraries, gpus=2, settings=settings)
    guest.launch(kbs.url)
    (tmp_path / "ready").write_text(before)
    done = guest.run("ready", "--init-data", guest.init_data, "--output", "json", *arguments)
    assert done.returncode == code, done.stderr.decode()
    assert (json.loads(done.stdout)["ready-gate"] if done.stdout else "") == gate
    assert (tmp_path / "ready").read_text() == after


def test_the_ready_gate_where_the_broker_refuses(kbs: Served, libraries: Path, tmp_path: Path) -> None:
    """Launched with other init-data than it shows: 401, and the GPUs do not stay ready."""
    guest = SimulatedGuest(folder=tmp_path, libraries=libraries)
    guest.launch(kbs.url)
    (tmp_path / "ready").write_text("1")
    with guest.init_data.open("a") as file:
        file.write("# changed\n")
    done = guest.run("ready", "--init-data", guest.init_data)
    assert done.returncode == ExitCode.NEGATIVE
    assert b"the broker refused the attestation" in done.stderr
    assert (tmp_path / "ready").read_text() == "0"


def post(kbs: Served, step: str, body: Any, cookie: str = "") -> tuple[Any, str]:
    """One exchange of the handshake: answer and session cookie."""
    request = Request(f"{kbs.url}/kbs/v0/{step}", json.dumps(body).encode(), {"Cookie": cookie})
    with urlopen(request) as reply:
        return json.load(reply), reply.headers.get("Set-Cookie", "").partition(";")[0]
