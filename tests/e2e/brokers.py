"""The relying party: two replicas of the broker on one PostgreSQL, root key in an HSM token, behind a balancer."""

import hashlib
import json
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path

from cryptography.x509.ocsp import OCSPCertStatus

from attestation.formats.collateral import Document, Kind
from attestation.simulate.amd import MEASUREMENT
from attestation.simulate.nv_products import PRODUCTS
from attestation.simulate.nvidia import NvidiaForge
from attestation.simulate.pki import CertSpec, mint
from attestation.sources.collateral import ocsp_id
from attestation.sources.collateral_store import CollateralStore
from attestation.sources.roots.hsm import HsmKey
from attestation.values import Architecture
from tests.attestation.forged_revocation import Signer, forge_ocsp
from tests.attestation.service.certificates import Pair, pair
from tests.demo import free_port
from tests.e2e.balancer import Balancer
from tests.e2e.program import Console, Program, until

REPLICAS = 2
RENEWED = "collateral.renewed"  # event of the log
HOPPER = PRODUCTS[Architecture.HOPPER]


def listens(port: int) -> bool:
    """Whether somebody answers."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@dataclass
class Brokers:
    """`serve` starts both; every operation of an operator is a command line."""

    console: Console
    store: str
    token: HsmKey
    rim_signer_ends: datetime  # genuine signers end two years after they were made
    tls: Pair = field(init=False)
    replicas: list[Program] = field(default_factory=list)
    guests: list[int] = field(default_factory=list)
    admins: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.work = self.console.log.parent
        self.tls = pair(self.work, "kbs")
        pin = self.token.pin_file
        (self.work / "roots.toml").write_text(
            f'version = 1\n[root]\nprovider = "pkcs11"\nmodule = "{self.token.module}"\ntoken = "{self.token.token}"\n'
            f'key = "{self.token.label}"\npin_file = "{pin}"\n'
        )
        self.console("kata-gpu-kbs", "root-key", "create", "--pkcs11-module", self.token.module, "--token", self.token.token,
                "--key", self.token.label, "--pin-file", pin)  # fmt: skip
        self.console("kata-gpu-kbs", "simulate", "roots", self.work / "roots")
        published = self.work / "published"
        published.mkdir()
        vbios_rim = NvidiaForge().rim(Architecture.HOPPER, driver=False, specs=self._rim_signers)
        for name, document in ((HOPPER.driver_rim, self._driver_rim), (HOPPER.vbios_rim, vbios_rim)):
            (published / f"{name}.swidtag").write_bytes(document)
        self.console("kata-gpu-kbs", "collateral", "import", "--store", self.collateral, "--rims", published)
        measured = self.work / "measured.json"
        measured.write_text(json.dumps({"snp_launch_measurement": [MEASUREMENT.hex()]}))
        self.operate("reference", "import", measured, "--days", "730")
        for _ in range(REPLICAS):
            self.guests.append(free_port())
            self.admins.append(free_port())
        self.balancer, self.admin_balancer = Balancer(self.guests), Balancer(self.admins)

    @property
    def url(self) -> str:
        """For guests."""
        return f"https://127.0.0.1:{self.balancer.port}"

    @property
    def admin_url(self) -> str:
        """For administrators."""
        return f"https://127.0.0.1:{self.admin_balancer.port}"

    @property
    def collateral(self) -> Path:
        """The collateral store of both."""
        return self.work / "collateral"

    def serve(self, *options: str) -> None:
        """Start both replicas, with more options."""
        self.replicas = [
            Program(
                ["kata-gpu-kbs", "serve", "--store", self.store, "--root-key", str(self.work / "roots.toml"),
                 "--listen", f"127.0.0.1:{guests}", "--admin-listen", f"127.0.0.1:{admins}",
                 "--tls-cert", str(self.tls.certificate), "--tls-key", str(self.tls.key),
                 "--collateral", str(self.collateral), "--unsafe-trust-simulated-roots", str(self.work / "roots"),
                 *options],
                self.work / f"broker-{index}.log",
            )
            for index, (guests, admins) in enumerate(zip(self.guests, self.admins, strict=True))
        ]  # fmt: skip
        for index in range(REPLICAS):
            self.start(index)

    def start(self, index: int) -> None:
        """One replica."""
        self.replicas[index].start(lambda: listens(self.guests[index]) and listens(self.admins[index]))

    def stop(self) -> None:
        """Both, gracefully."""
        assert [replica.stop() for replica in self.replicas] == [0] * REPLICAS

    def close(self) -> None:
        """At the end."""
        for replica in self.replicas:
            replica.kill()
        self.balancer.close()
        self.admin_balancer.close()

    def operate(self, *argv: str | Path, secret: bool = False) -> str:
        """A `kata-gpu-kbs` command on the store."""
        where = ("--store", self.store, "--root-key", self.work / "roots.toml")
        return self.console("kata-gpu-kbs", *argv, *where, secret=secret)

    def retire_rim(self) -> None:
        """The operator no longer accepts the driver's document."""
        with self._noticed():
            self._set("retire", Kind.RIM, HOPPER.driver_rim, self._driver_rim)

    def accept_rim(self) -> None:
        """And does again."""
        with self._noticed():
            self._set("activate", Kind.RIM, HOPPER.driver_rim, self._driver_rim)

    def revoke_signer(self, now: datetime) -> Document:
        """The vendor's answer about the signer of its documents, stored as `collateral fetch` would."""
        leaf, issuer = mint(self._rim_signers)[:2]
        answer = Document(
            kind=Kind.OCSP,
            id=ocsp_id(leaf.serial_number),
            content=forge_ocsp(
                leaf,
                issuer,
                Signer(issuer, self._rim_signers[1].key),
                this_update=now,
                next_update=now + timedelta(days=7),
                status=OCSPCertStatus.REVOKED,
            ),
            first_seen=now,
            source="simulated vendor",
        )
        with self._noticed():
            CollateralStore(self.collateral).add(answer)
        return answer

    def forget(self, answer: Document) -> None:
        """Take that back."""
        with self._noticed():
            self._set("retire", answer.kind, answer.id, answer.content)

    def _set(self, state: str, kind: Kind, identifier: str, content: bytes) -> None:
        digest = hashlib.sha256(content).hexdigest()
        self.console("kata-gpu-kbs", "collateral", state, "--store", self.collateral, kind, identifier, digest)

    @contextmanager
    def _noticed(self) -> Iterator[None]:
        """What is done to the collateral inside is in use in both replicas afterwards; they are told to look at once."""
        before = [replica.said.count(RENEWED) for replica in self.replicas]
        yield
        for replica, seen in zip(self.replicas, before, strict=True):
            os.kill(replica.pid, signal.SIGHUP)
            until(lambda r=replica, n=seen: r.said.count(RENEWED) > n, "new collateral is in use")  # type: ignore[misc]

    @property
    def _rim_signers(self) -> list[CertSpec]:
        leaf, *upper = NvidiaForge().rim_specs(Architecture.HOPPER)
        return [replace(leaf, not_after=self.rim_signer_ends), *upper]

    @property
    def _driver_rim(self) -> bytes:
        return NvidiaForge().rim(Architecture.HOPPER, driver=True, specs=self._rim_signers)
