"""A whole site: a node nobody trusts, the owner's brokers, the owner with a model, and VMs that boot on the node."""

import json
import re
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import requests

from attestation.clock import utc_now
from attestation.errors import ExitCode
from attestation.simulate.nvidia import NvidiaForge
from attestation.sources.roots.hsm import HsmKey
from attestation.values import Architecture
from tests.attestation.broker.postgres import Cluster
from tests.attestation.guest.models import MEMORY, make_source
from tests.demo import AGENT_POLICY
from tests.e2e.brokers import Brokers, listens
from tests.e2e.kubelets import Pod
from tests.e2e.leaks import Secrets
from tests.e2e.machine import Hardware
from tests.e2e.node import Launch, Node
from tests.e2e.program import Program, until
from tests.e2e.report import Report, Row

KEY = "kbs:///models/e2e/key"
PATH = "models/e2e/key"
WEIGHTS = "model.safetensors"
TICKET = re.compile(r"ticket ([0-9a-f]{16})")
MARKER_BYTES = 32  # of a tensor
SIGNER_DAYS = 180  # then the vendor's signer ends
POLICY = """\
version = 1
epoch = {epoch}

[cpu]
tee = "snp"
measurement = {{ reference = "snp_launch_measurement" }}

[gpus]
count = 1
arch = "hopper"
mode = "on"
driver_version = {{ at_least = "{driver}" }}
vbios_version = {{ unchecked = "the vendor's reference documents name the accepted versions" }}
identity = {identity}

[init_data]
accept = ["sha256:{init_data}"]
"""


@dataclass
class Vm:
    """A VM on the node, and what its containers see."""

    program: Program
    launch: Launch
    folder: Path
    token: str
    power: ExitStack

    @property
    def url(self) -> str:
        """Of the model server inside; empty until it serves."""
        found = re.search(r"^(http://127\.0\.0\.1:[0-9]+)$", self.program.said, re.MULTILINE)
        return found[1] if found else ""

    def get(self, path: str) -> bytes:
        """What a container of the pod reads."""
        answer = requests.get(self.url + path, headers={"Authorization": f"Bearer {self.token}"}, timeout=10)
        assert answer.status_code == 200, answer.text
        return answer.content

    def serves(self) -> None:
        """Wait until it has its key and serves the model."""
        until(lambda: bool(self.url) or self.program.code is not None, "the VM serves")
        assert self.url, self.program.said

    def refused(self) -> tuple[int, str]:
        """Exit code and last words of a VM that got no key."""
        code = self.program.wait()
        return code, self.program.said.strip().splitlines()[-1]


@dataclass
class Site:
    """Made by `started`. Broken links are repaired by who breaks them."""

    node: Node
    brokers: Brokers
    desk: Path  # the owner's private folder: plaintext and key may be here
    drivers: Path  # the VMs' driver library
    elsewhere: list[Path]  # folders of the database, the HSM and kubelet
    annotation: str = ""
    init_data: str = ""
    epoch: int = 0
    vms: list[Vm] = field(default_factory=list)

    @classmethod
    @contextmanager
    def started(cls, node: Node, database: Cluster, token: HsmKey, drivers: Path) -> "Iterator[Site]":
        """All processes up, the model encrypted."""
        with tempfile.TemporaryDirectory(prefix="e2e-owner-", dir=MEMORY) as desk, ExitStack() as stack:
            stack.callback(node.close)
            node.start()
            signer_ends = utc_now() + timedelta(days=SIGNER_DAYS)
            brokers = Brokers(node.console, database.url, token, signer_ends)
            stack.callback(brokers.close)
            brokers.serve()
            elsewhere = [database.folder, token.pin_file.parent, node.kubelet.folder]
            site = cls(node, brokers, Path(desk), drivers, elsewhere)
            stack.callback(site.close)
            site.encrypt_model()
            yield site
            brokers.operate("audit", "verify")

    @property
    def work(self) -> Path:
        """Everything that is not secret: logs, ciphertext, configuration, what guests received."""
        return self.node.work

    # The owner.

    def encrypt_model(self) -> None:
        """Init-data, policy, key and ciphertext, with the owner's commands."""
        self.annotation = self.build_init_data(AGENT_POLICY)
        (self.work / "annotation").write_text(self.annotation)
        digest = self.node.console("kata-gpu", "initdata", "digest", self.work / "annotation", "--output", "json")
        self.init_data = json.loads(digest)["digest"]
        make_source(self.desk, megabytes=1)
        self.brokers.operate("user", "add", "owner", "--role", "admin")
        (self.desk / "token").write_text(self.brokers.operate("user", "token", "owner", secret=True))
        self.node.console("kata-gpu-kbs", "model", "encrypt", self.desk / "source", self.work / "model.kgm",
                "--key-file", self.desk / "model.key", "--key", KEY, "--policy", self.policy(), "--label", "test",
                "--broker", self.brokers.admin_url, "--broker-cert", self.brokers.tls.certificate,
                "--admin-token-file", self.desk / "token")  # fmt: skip

    def build_init_data(self, agent_policy: str) -> str:
        """The annotation's value: broker, its certificate and the agent's policy."""
        (self.work / "agent-policy.rego").write_text(agent_policy)
        built = self.node.console("kata-gpu", "initdata", "build", "--tee", "snp", "--kbs-url", self.brokers.url,
                        "--kbs-cert", self.brokers.tls.certificate, "--agent-policy", self.work / "agent-policy.rego",
                        "--annotation")  # fmt: skip
        return built.split()[-1]

    def policy(self, *, driver: str = "550.90.07") -> Path:
        """The next release policy: one of the owner's own GPUs."""
        self.epoch += 1
        forge = NvidiaForge()
        owned = [forge.chip_id(Architecture.HOPPER, serial) for serial in range(len(self.node.rack))]
        path = self.work / f"policy-{self.epoch}.toml"
        path.write_text(
            POLICY.format(epoch=self.epoch, driver=driver, identity=json.dumps(owned), init_data=self.init_data)
        )
        return path

    @property
    def weights(self) -> bytes:
        """What the owner encrypted."""
        return (self.desk / "source" / WEIGHTS).read_bytes()

    # VMs.

    def boot(self, pod: Pod, *, hidden: int = 0, hold: Path | None = None) -> Vm:
        """What Kata's runtime asks for, then a VM of it; it attests and serves, or ends. Nothing else reaches it."""
        launch = self.node.launch(pod, self.annotation)
        folder = Path(tempfile.mkdtemp(prefix="e2e-vm-", dir=MEMORY))
        token = secrets.token_hex()
        (folder / "token").write_text(token)
        (folder / "initdata.toml").write_bytes(launch.init_data)
        name = f"vm-{len(self.vms)}"
        hardware = Hardware(
            folder=folder,
            host_data=launch.host_data,
            serials=launch.serials,
            cc=launch.cc,
            hidden=hidden,
            wire=self.work / f"{name}.wire",
            hold=hold,
        )
        power = ExitStack()
        program = Program(
            [sys.executable, "-m", "tests.e2e.machine", str(folder), "model", "serve", str(self.work / "model.kgm"),
             "--token-file", str(folder / "token"), "--key", KEY, "--init-data", str(folder / "initdata.toml")],
            self.work / f"{name}.log",
            power.enter_context(hardware.powered(self.drivers)),
        )  # fmt: skip
        vm = Vm(program, launch, folder, token, power)
        self.vms.append(vm)
        program.start(lambda: True)
        self.node.hold(program.pid, launch)
        return vm

    def shut_down(self, vm: Vm, pod: Pod) -> None:
        """The VM ends, then its pod."""
        if vm.program.code is None:
            vm.program.stop()
        vm.power.close()
        self.node.drop(vm.program.pid)
        self.node.kubelet.end(pod)

    def releases(self) -> None:
        """From pod to plaintext, and the pod ends."""
        pod = self.node.kubelet.pod()
        vm = self.boot(pod)
        self.reads(vm, pod)
        self.shut_down(vm, pod)

    def reads(self, vm: Vm, pod: Pod) -> None:
        """A client in the VM reads what the owner encrypted; the VM had the GPU of its claim and no other."""
        vm.serves()
        assert vm.get(f"/files/{WEIGHTS}") == self.weights
        assert vm.launch.addresses == (pod.address,)

    def attempt(self, pod: Pod | None = None, **how: Any) -> tuple[int, str]:
        """Exit code and last words of a VM that must get nothing; its pod ends."""
        pod = pod or self.node.kubelet.pod()
        vm = self.boot(pod, **how)
        outcome = vm.refused()
        self.shut_down(vm, pod)
        return outcome

    def denied(self, row: Row, *codes: str, pod: Pod | None = None, **how: Any) -> None:
        """A VM is refused for exactly these reasons: it sees a ticket, the owner's log has the rest under the ticket."""
        code, said = self.attempt(pod, **how)
        assert code == ExitCode.NEGATIVE, said
        ticket = TICKET.search(said)
        assert ticket, said
        found = self.refusal(ticket[1])
        assert set(found) == set(codes), found
        assert not any(reason in said for reason in found)
        row.told("guest", f"exit code {int(code)}: 403, {ticket[0]}; no reason")
        row.told("owner, by ticket", "; ".join(f"{reason}: {why}" for reason, why in found.items()))

    # What became known.

    @contextmanager
    def broken(self, report: Report, link: str) -> Iterator[Row]:
        """A row of the table; afterwards the site releases again, nothing leaked and nobody left a stack trace."""
        row = Row(link)
        report.rows.append(row)
        yield row
        self.releases()
        found = self.leaks()
        row.leaked = ", ".join(sorted(found)) or "no"
        assert found == set()
        assert [log.name for log in self.work.glob("*.log") if "Traceback" in log.read_text()] == []

    def leaks(self) -> set[str]:
        """Secrets in any file but the owner's: logs, exports, storage, what guests received, the VMs' own folders."""
        self.audit()
        for index, port in enumerate(self.brokers.admins):
            if listens(port):
                url, pinned = f"https://127.0.0.1:{port}/metrics", str(self.brokers.tls.certificate)
                answer = requests.get(url, verify=pinned, timeout=10)
                (self.work / f"metrics-{index}").write_bytes(answer.content)
        middle = len(self.weights) // 2
        secret = Secrets(
            {
                "key": (self.desk / "model.key").read_bytes(),
                "plaintext": self.weights[middle : middle + MARKER_BYTES],
                "admin token": (self.desk / "token").read_bytes().strip(),
            }
        )
        assert len(secret.found_in([self.desk])) == len(secret.named), "the search finds what is there"
        return secret.found_in([*{self.work, *self.elsewhere}, *(vm.folder for vm in self.vms)])

    def refusal(self, ticket: str) -> dict[str, str]:
        """The entry of a ticket: each code, with what was expected and what came."""
        (body,) = (e["body"] for e in self.audit() if e["body"].get("ticket") == ticket)
        return {f["code"]: f"expected {f['expected']}, got {f['got']}" for f in body["findings"]}

    def audit(self) -> list[dict[str, Any]]:
        """The whole log, kept as exported."""
        text = self.brokers.operate("audit", "export")
        (self.work / "audit.jsonl").write_text(text)
        return [json.loads(line) for line in text.splitlines()]

    def close(self) -> None:
        """At the end."""
        for vm in self.vms:
            vm.program.kill()
            vm.power.close()
            shutil.rmtree(vm.folder)
