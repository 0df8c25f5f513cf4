"""A whole broker for tests: store in a folder, the real verifier on forged vendors, and optionally two real listeners."""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from secrets import token_bytes
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec

from attestation.broker.admin import AdminIssuer
from attestation.broker.endorsement import TokenTrust
from attestation.broker.roles import Principal, Role
from attestation.broker.session import Submission
from attestation.cli.platform import platform_verifier
from attestation.cli.verification import BUILTIN
from attestation.crypto.jwe import Sealed, unseal
from attestation.crypto.jwk import tee_key_of
from attestation.formats.initdata import parse_init_data
from attestation.ops.administer import delete_key, put_key, set_reference_values
from attestation.ops.challenge import issue_challenge
from attestation.ops.open_world import WorldOptions, close_world, open_world
from attestation.ops.release import Credentials, authenticate
from attestation.ops.renewed_verifier import RenewedVerifier
from attestation.ops.world import PlatformVerifier, World
from attestation.service.app import Compat, Service, ServiceLimits
from attestation.service.server import Serving, listen, serve
from attestation.simulate.amd import MEASUREMENT, SimulatedChip
from attestation.sources.envelope import FileRootKey
from attestation.values import ResourcePath, Secret, Tee
from tests.attestation.broker.drive import attest, release_resource
from tests.attestation.tee.world import Guest

NOW = datetime(2026, 11, 21, tzinfo=UTC)
ADMIN = Principal(name="test", role=Role.ADMIN)
PATH = ResourcePath.parse("default/model/llama")
INIT_DATA = 'version = "0.1.0"\nalgorithm = "sha256"\n[data]\n"aa.toml" = """\n[token_configs]\n"""\n'
INIT_DIGEST = str(parse_init_data(INIT_DATA).digest)
GPU_POLICY = f"""
version = 1
[cpu]
tee = ["snp"]
measurement = {{ reference = "snp_launch_measurement" }}
[gpus]
count = 1
arch = ["hopper"]
mode = ["on"]
driver_version = {{ at_least = "535.0" }}
vbios_version = {{ unchecked = "the reference documents name the versions" }}
[init_data]
accept = ["{INIT_DIGEST}"]
"""


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime:
        return self.now


@dataclass(kw_only=True)
class Broker:
    """Ops-level access, without HTTP."""

    world: World
    clock: Clock = field(default_factory=Clock)

    def put(self, path: ResourcePath = PATH, secret: bytes = b"k" * 32, **kwargs: Any) -> int:
        return put_key(self.world, ADMIN, path, Secret(secret), now=self.clock(), **kwargs)

    def drop(self, path: ResourcePath = PATH) -> None:
        if self.world.keys.get(path) is not None:
            delete_key(self.world, ADMIN, path, now=self.clock())

    def references(self, values: Mapping[str, Any], *, lifetime: timedelta = timedelta(days=30)) -> None:
        set_reference_values(self.world, ADMIN, values, provenance="test", lifetime=lifetime, now=self.clock())

    def handshake(
        self,
        guest: Guest | None = None,
        *,
        key: ec.EllipticCurvePrivateKey | None = None,
        tee: str = "snp",
        change: Callable[[Submission], Submission] = lambda s: s,
        evidence: Callable[[Guest], Any] = lambda g: g.evidence(),
    ) -> "Visit":
        """Challenge, honest evidence changed by `change`, token."""
        key = key or ec.generate_private_key(ec.SECP256R1())
        guest = guest or Guest(init_data=INIT_DATA)
        offered = {"binding-profiles": [str(guest.profile)]}
        issued = issue_challenge(self.world, version="0.4.0", tee=tee, offered=offered, now=self.clock())
        tee_key = tee_key_of(key.public_key())
        guest = guest.with_(nonce=issued.challenged.nonce, jwk=tee_key.jwk)
        made = evidence(guest)
        submission = change(
            Submission(
                nonce=made.nonce,
                tee_key=tee_key,
                init_data=made.init_data,
                primary=made.primary,
                additional=made.additional,
            )
        )
        token = attest(
            self.world, cookie=issued.cookie, submission=submission, body_digest="00" * 32, now=self.clock()
        ).token
        return Visit(broker=self, key=key, cookie=issued.cookie, token=token)


@dataclass(kw_only=True)
class Visit:
    """An attested guest."""

    broker: Broker
    key: ec.EllipticCurvePrivateKey
    cookie: str
    token: str

    def sealed(self, path: ResourcePath = PATH, *, bearer: bool = True) -> Sealed:
        who = Credentials(cookie=None, bearer=self.token) if bearer else Credentials(cookie=self.cookie, bearer=None)
        world, now = self.broker.world, self.broker.clock()
        return release_resource(world, authenticate(world, who, now=now), path, query={}, now=now)

    def get(self, path: ResourcePath = PATH, *, bearer: bool = True) -> bytes:
        return unseal(self.sealed(path, bearer=bearer), self.key).expose()


@contextmanager
def broker(
    folder: Path,
    *,
    simulated: bool = False,
    sample: bool = False,
    verifier: PlatformVerifier | None = None,
    admin_issuers: tuple[AdminIssuer, ...] = (),
    deny_all_admins: bool = False,
    external: TokenTrust | None = None,
    store: str | None = None,
) -> Iterator[Broker]:
    """On SQLite in this folder, or in `store` with the root key there. `simulated=False` lets the forged vendors stand for real ones: tests of production rules need evidence."""
    made = verifier or platform_verifier(collateral=None, simulated_roots=BUILTIN, sample=sample)
    tees = frozenset({Tee.SNP, Tee.TDX} | ({Tee.SAMPLE} if sample else set()))
    root_key = None
    if store is not None:
        root_key = folder / "root.key"
        FileRootKey.create(root_key, token_bytes)
    options = WorldOptions(
        store=store or str(folder / "store"),
        root_key=root_key,
        tees=tees,
        simulated=simulated,
        admin_issuers=admin_issuers,
        deny_all_admins=deny_all_admins,
        external=external,
    )
    world = open_world(options, made, now=NOW)
    try:
        yield Broker(world=world)
    finally:
        close_world(world)


@contextmanager
def ready_broker(folder: Path, **kwargs: Any) -> Iterator[Broker]:
    """With the reference value of the simulated guest and one GPU key."""
    with broker(folder, **kwargs) as made:
        made.references({"snp_launch_measurement": [MEASUREMENT.hex()]})
        made.put(policy=GPU_POLICY)
        yield made


@dataclass(frozen=True, kw_only=True)
class Served:
    """A broker behind two loopback listeners."""

    broker: Broker
    url: str
    admin_url: str
    service: Service
    stop: Callable[[], None]


@contextmanager
def served(
    made: Broker,
    *,
    limits: ServiceLimits | None = None,
    compat: Compat | None = None,
    collateral: RenewedVerifier | None = None,
    **how: Any,
) -> Iterator[Served]:
    """Serve in a thread, over real sockets. `how` goes to `Serving`."""
    service = Service(made.world, clock=made.clock, limits=limits, compat=compat, collateral=collateral)
    guest = listen("127.0.0.1:0", tls=how.get("guest_tls") is not None)
    admin = listen("127.0.0.1:0", tls=how.get("admin_tls") is not None)
    started = threading.Event()
    stop: list[Callable[[], None]] = []

    def ready(stopper: Callable[[], None]) -> None:
        stop.append(stopper)
        started.set()

    thread = threading.Thread(
        target=serve,
        args=(service, made.world, Serving(guest=guest, admin=admin, **how)),
        kwargs={"clock": made.clock, "ready": ready},
        daemon=True,
    )
    thread.start()
    assert started.wait(20)
    try:
        yield Served(broker=made, url=guest.url, admin_url=admin.url, service=service, stop=stop[0])
    finally:
        stop[0]()
        thread.join(30)
        assert not thread.is_alive()


def chip(**kwargs: Any) -> SimulatedChip:
    return SimulatedChip(**kwargs)
