"""The tutorial does what it says: its blocks are run as they stand, and every command line of ours in any page parses."""

import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import click
import pytest

from attestation.cli.main import cli as kbs
from attestation.guest.main import cli as guest
from deploy.render import DEPLOY
from kata_gpu.cli.main import cli as kata_gpu
from kata_gpu.core.claim import DRIVER
from kata_gpu.core.device_classes import render_device_classes
from kata_gpu.core.gpu import CcMode
from kata_gpu.core.labels import MODE_STATE, OUR_MODE, OUR_TEE, READY_STATE, render_labels
from kata_gpu.core.lint.mutation import KEY, NAME
from kata_gpu.core.manifests.node import HEALTH_PORT
from kata_gpu.core.manifests.values import VALUES
from kata_gpu.core.node_policy import NodePolicy, parse_policy
from kata_gpu.core.podresources import BRIDGE_SOCKET
from kata_gpu.core.yaml12 import load
from kata_gpu.host.durable import DurableDir
from kata_gpu.host.simkernel.kernel import SimKernel
from kata_gpu.host.simkernel.presets import hgx_h100
from kata_gpu.ops.modes import CORDONED_BY
from kata_gpu.ops.node import Node
from kata_gpu.ops.node_devices import HostDevices
from kata_gpu.ops.report import CONDITION
from kata_gpu.ops.setup import setup
from tests.demo import free_port
from tests.deploy.test_command_lines import parse
from tests.kata_gpu.dra.fake_api import FakeApi
from tests.kata_gpu.dra.fake_store import KINDS
from tests.kata_gpu.kata.templates import TEMPLATES
from tests.kata_gpu.kata.test_containerd import CONTAINERD_2_1

ROOT = DEPLOY.parent
TUTORIAL = ROOT / "docs/tutorial.md"
BIN = Path(sys.executable).parent
FENCE = re.compile(r"^```(\w*)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
EXIT_CODE = re.compile(r"\s+# exit code (\d+)$")
START_S = 15.0


@dataclass(frozen=True)
class Step:
    """One command of the tutorial with the lines that it must print."""

    command: str
    exit_code: int
    lines: tuple[str, ...]


def steps(block: str) -> Iterator[Step]:
    """Commands of a console block."""
    command, code, lines = "", 0, list[str]()
    for line in block.replace("\\\n", "").splitlines():
        if line.startswith("$ "):
            if command:
                yield Step(command, code, tuple(lines))
            found = EXIT_CODE.search(line)
            command, code, lines = EXIT_CODE.sub("", line[2:]), int(found[1]) if found else 0, []
        elif line and line != "...":
            lines.append(line)
    yield Step(command, code, tuple(lines))


@pytest.fixture
def work() -> Iterator[Path]:
    """A memory folder with the examples in it: plaintext goes nowhere else."""
    folder = Path(tempfile.mkdtemp(prefix="tutorial-", dir="/dev/shm"))
    shutil.copytree(DEPLOY / "examples", folder / "examples")
    (folder / "memory").mkdir()
    yield folder
    shutil.rmtree(folder)


KATA = "opt/kata/share/defaults/kata-containers/runtimes/qemu-nvidia-gpu-snp/configuration-qemu-nvidia-gpu-snp.toml"


def node_files(root: Path) -> None:
    """What kata-deploy and containerd's package leave on a node."""
    for name, text in ((KATA, TEMPLATES["4.1-go-snp"]), ("etc/containerd/config.toml", CONTAINERD_2_1)):
        (root / name).parent.mkdir(parents=True)
        (root / name).write_text(text)
    (root / "etc/containerd/conf.d").mkdir()


def rooted(command: str) -> str:
    """The command on the files of a folder instead of this machine's."""
    program, arrow, target = command.partition(" > /")
    return f"{program} --host-root root" + (f" > root/{target}" if arrow else "")


@pytest.fixture
def cluster(work: Path) -> Iterator[FakeApi]:
    """A cluster whose one node carries the labels that the agent writes for a host that is set up."""
    api = FakeApi()
    node = Node(host=SimKernel(hgx_h100()), state=DurableDir(work / "n/state"), cdi=DurableDir(work / "n/cdi"))
    setup(node, NodePolicy.everything(CcMode.ON))
    labels = render_labels(HostDevices(node).observe()) | {"katacontainers.io/kata-runtime": "true"}
    api.store.create(KINDS["v1", "nodes"], "", {"metadata": {"name": "n", "labels": labels}})
    (work / "kubeconfig").write_text(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\n"
        f"clusters: [{{name: c, cluster: {{server: {api.url}}}}}]\nusers: [{{name: u, user: {{}}}}]\n"
        "contexts: [{name: c, context: {cluster: c, user: u}}]\n"
    )
    yield api
    api.stop()


def start(command: str, work: Path, env: dict[str, str]) -> tuple["subprocess.Popen[bytes]", Path]:
    """A command that goes on; waits for the line that says that it answers."""
    log = work / "broker.log"
    with log.open("w") as out:
        process = subprocess.Popen(["bash", "-c", f"exec {command}"], cwd=work, env=env, stdout=out, stderr=out)
    until = time.monotonic() + START_S
    while time.monotonic() < until and process.poll() is None and "administrators:" not in log.read_text():
        time.sleep(0.05)
    return process, log


def test_the_tutorial_runs_as_it_stands(work: Path, cluster: FakeApi) -> None:
    ports = {f"127.0.0.1:{n}": f"127.0.0.1:{free_port()}" for n in (8080, 8081)}
    env = {"PATH": f"{BIN}:/usr/bin:/bin", "HOME": str(work)}
    background: list[subprocess.Popen[bytes]] = []
    ran = 0
    node_files(work / "root")
    try:
        for kind, info, body in FENCE.findall(TUTORIAL.read_text()):
            for old, new in ports.items():
                body = body.replace(old, new)
            if file := re.search(r"file=(\S+)", info):
                (work / file[1]).write_text(body)
            if kind != "console" or "run" not in info.split():
                continue
            for step in steps(body):
                if "root" in info.split():
                    step = replace(step, command=rooted(step.command))
                if step.command.endswith(" &"):
                    process, log = start(step.command[:-2], work, env)
                    background.append(process)
                    output = log.read_text()
                else:
                    done = subprocess.run(["bash", "-c", step.command], cwd=work, env=env, capture_output=True, text=True,
                                          timeout=60, check=False)  # fmt: skip
                    output = done.stdout + done.stderr
                    assert done.returncode == step.exit_code, f"$ {step.command}\n{output}"
                missing = [line for line in step.lines if line not in output.splitlines()]
                assert not missing, f"$ {step.command}\n{output}"
                ran += 1
    finally:
        for process in background:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=15)
    assert ran > 25
    assert cluster.store.objects[KINDS["apps/v1", "daemonsets"]] == {}


ENTRIES: dict[str, click.Group] = {"kata-gpu": kata_gpu, "kata-gpu-kbs": kbs, "kata-gpu-guest": guest}
PAGES = ["README.md", *sorted(str(p.relative_to(ROOT)) for p in (ROOT / "docs").rglob("*.md"))]


def command_lines(text: str) -> Iterator[list[str]]:
    """Words of every command of ours in the fenced blocks of a page."""
    for _kind, _info, body in FENCE.findall(text):
        for line in body.replace("\\\n", " ").splitlines():
            line = EXIT_CODE.sub("", line.strip().removeprefix("$ "))
            if line.split(" ")[0] in ENTRIES:
                words = shlex.split(re.sub(r"\$\([^)]*\)", "x", line))
                yield words[
                    : next((i for i, w in enumerate(words) if w in {">", "2>", "|", "&", "&&", "#"}), len(words))
                ]


@pytest.mark.parametrize("page", PAGES)
def test_every_documented_command_line_parses(page: str) -> None:
    for name, *argv in command_lines((ROOT / page).read_text()):
        parse(ENTRIES[name], argv, {})


def test_the_configuration_page_names_every_value_of_the_chart() -> None:
    def names(node: object, path: str = "") -> Iterator[str]:
        if isinstance(node, dict) and node and not path.endswith(("resources", "elector")):
            for key, value in node.items():
                yield from names(value, f"{path}.{key}".lstrip("."))
        else:
            yield path

    table = (ROOT / "docs/configuration.md").read_text().split("## Chart values")[1].split("## ")[0]
    rows = "\n".join(line for line in table.splitlines() if line.startswith("|"))
    documented = set(re.findall(r"`([a-z]+(?:\.[a-zA-Z]+)+)`", rows))
    keys_of_secrets = {"tls.crt", "tls.key", "ca.crt", "root.key"}
    assert documented - keys_of_secrets == set(names(VALUES)) - {"namespace"}


def test_the_configuration_page_names_what_the_code_writes() -> None:
    text = (ROOT / "docs/configuration.md").read_text()
    fixed = [OUR_MODE, OUR_TEE, MODE_STATE, READY_STATE, CONDITION, CORDONED_BY, BRIDGE_SOCKET, DRIVER, str(HEALTH_PORT),
             NAME, KEY, *(o["metadata"]["name"] for o in render_device_classes())]  # fmt: skip
    assert [word for word in fixed if f"{word}" not in text] == []
    policy = next(body for kind, _, body in FENCE.findall(text) if kind == "yaml")
    assert len(parse_policy(load(policy, where="page"), where="page").rules) == 2


def test_the_glossary_is_in_order() -> None:
    words = re.findall(r"^- \*\*([^*]+)\*\*", (ROOT / "docs/glossary.md").read_text(), re.MULTILINE)
    assert words == sorted(words, key=str.casefold)
