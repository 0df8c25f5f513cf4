"""Every command line in our manifests is one that the real commands parse."""

from typing import Any

import click
import pytest

from attestation.cli.main import cli as kbs
from attestation.service.server import DRAIN_S
from deploy.render import BASES, DEPLOY
from kata_gpu.cli.main import cli as kata_gpu
from kata_gpu.core.kata.settings import Needs, Tee
from kata_gpu.core.manifests import broker, node
from kata_gpu.core.manifests.template import Document, fill
from kata_gpu.core.manifests.values import VALUES
from kata_gpu.core.node_policy import parse_policy
from kata_gpu.core.podresources import BRIDGE_SOCKET
from kata_gpu.core.yaml12 import load
from kata_gpu.host.kube import KubeApi
from kata_gpu.ops.publish import SlicePublisher
from kata_gpu.ops.report import NodeReporter
from tests.kata_gpu.dra.fake_api import FakeApi
from tests.kata_gpu.dra.fake_node import NOW
from tests.kata_gpu.dra.fake_store import KINDS

Object = dict[str, Any]


def containers() -> list[Any]:
    """(entry point, container) of every workload, named for the test report."""
    rows = {}
    for base, documents in BASES.items():
        for d in documents:
            obj = fill(d.obj, VALUES)
            if obj["kind"] not in ("DaemonSet", "Deployment"):
                continue
            spec = obj["spec"]["template"]["spec"]
            entry = kata_gpu if obj["kind"] == "DaemonSet" else kbs
            for c in [*spec["containers"], *spec.get("initContainers", [])]:
                rows[f"{base}-{c['name']}"] = (entry, c)
    return [pytest.param(entry, c, id=name) for name, (entry, c) in rows.items()]


def parse(entry: click.Group, argv: list[str], env: dict[str, str]) -> dict[str, Any]:
    """Parameters of the innermost command, without running it. Files that a test host lacks count as present."""
    command: click.Command = entry
    context = click.Context(entry, **entry.context_settings)  # a command keeps the help option of the first one it sees
    while isinstance(command, click.Group):
        name, *argv = argv
        found = command.get_command(context, name)
        assert found is not None, name
        command = found
    for parameter in command.params:
        if isinstance(parameter.type, click.Path):
            parameter.type.exists = False
        if isinstance(parameter.envvar, str) and parameter.envvar in env:
            argv += [parameter.opts[0], env[parameter.envvar]]
    return command.make_context("test", argv, parent=context).params


@pytest.mark.parametrize(("entry", "container"), containers())
def test_arguments_are_those_of_the_real_command(entry: click.Group, container: Object) -> None:
    env = {e["name"]: "value" for e in container.get("env", [])}
    parse(entry, list(container["args"]), env)


@pytest.mark.parametrize("store", [broker.SQLITE, broker.POSTGRES], ids=["sqlite", "postgres"])
def test_the_broker_drains_before_it_is_killed(store: Document) -> None:
    pod = fill(store.obj, VALUES)["spec"]["template"]["spec"]
    (serve,) = pod["containers"]
    delay_s = parse(kbs, list(serve["args"]), {})["drain_delay"]
    assert delay_s > 0
    assert delay_s + DRAIN_S < pod["terminationGracePeriodSeconds"]


def test_the_pod_of_the_page_brings_collateral() -> None:
    text = (DEPLOY.parent / "docs/configuration.md").read_text()
    pod = load(text.split("```yaml file=collateral-pod.yaml\n")[1].split("```")[0], where="page")
    (container,) = pod["spec"]["containers"]
    options = parse(kbs, list(container["args"]), {})
    (volume, _) = pod["spec"]["volumes"]
    assert volume["persistentVolumeClaim"]["claimName"] == VALUES["broker"]["collateralClaim"]
    assert str(options["store"]) == container["volumeMounts"][0]["mountPath"]
    assert container["image"] == VALUES["broker"]["image"]


def test_probes_ask_the_port_that_the_agent_listens_on() -> None:
    pod = fill(node.DAEMONSET.obj, VALUES)["spec"]["template"]["spec"]
    agent, bridge = pod["containers"]
    parameters = parse(kata_gpu, list(agent["args"]), {"NODE_NAME": "n", "POD_UID": "u"})
    assert parameters["listen"] == f"0.0.0.0:{agent['ports'][0]['containerPort']}"
    served = parse(kata_gpu, list(bridge["args"]), {})
    default = parse(kata_gpu, ["bridge", "run"], {})
    kata = Needs(tee=Tee.SNP, devices=1).bridge_socket
    assert {str(parameters["bridge"]), str(served["path"]), str(default["path"]), kata} == {BRIDGE_SOCKET}


def test_the_node_policy_of_the_config_map_is_one() -> None:
    data = fill(node.POLICY.obj, VALUES)["data"]
    (name,) = data
    agent = fill(node.DAEMONSET.obj, VALUES)["spec"]["template"]["spec"]["containers"][0]
    assert agent["args"][agent["args"].index("--policy") + 1] == f"/etc/kata-gpu/{name}"
    assert parse_policy(load(data[name], where=name), where=name).rules


def test_what_the_agent_writes_is_what_its_role_allows() -> None:
    api = FakeApi()
    api.store.create(KINDS["v1", "nodes"], "", {"metadata": {"name": "n"}})
    kube = KubeApi.connect(server=api.url)
    reporter = NodeReporter(kube, "n")
    reporter.labels({"kata-gpu.dev/cc-mode": "on"})
    reporter.condition(True, "Ready", "1 device", NOW)
    reporter.event("ModeFailed", "why", NOW, warning=True)
    for devices in ([{"name": "gpu-0"}], []):
        spec: Object = {"driver": "d", "nodeName": "n", "devices": devices}
        SlicePublisher(kube, "n").sync_specs(lambda _, spec=spec: [spec])  # type: ignore[misc]
    api.stop()
    allowed = {(verb, resource) for r in node.ROLE.obj["rules"] for resource in r["resources"] for verb in r["verbs"]}
    used = {("patch" if verb == "apply" else verb, resource) for verb, resource in api.store.requests}
    assert {("patch", "nodes"), ("create", "events"), ("create", "resourceslices")} <= used
    used.discard(("create", "nodes"))  # this test's own
    assert used <= allowed
