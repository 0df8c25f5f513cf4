"""Every example passes the linter, alone and in a cluster; names of ours in it are the ones in the code."""

import json
import re
import sqlite3
from pathlib import Path
from typing import Any

import celpy
import pytest
from celpy.adapter import json_to_cel

from attestation.cli.main import cli as kbs
from attestation.cli.main import run as run_kbs
from attestation.errors import ExitCode
from deploy.render import DEPLOY
from kata_gpu.cli.main import cli, run
from kata_gpu.core.device_classes import render_device_classes
from kata_gpu.core.kata.initdata import ANNOTATION
from kata_gpu.core.lint.cluster import Cluster
from kata_gpu.core.lint.lint import lint, pods_of
from kata_gpu.core.manifests import broker
from kata_gpu.core.manifests.install import wanted
from kata_gpu.core.manifests.values import VALUES
from kata_gpu.core.yaml12 import load_all
from kata_gpu.host.kube import KubeApi
from kata_gpu.ops.install import install
from kata_gpu.ops.report import NodeReporter
from runtimeclass.model import Tee
from runtimeclass.render import objects as runtime_classes
from tests.deploy.test_command_lines import parse
from tests.kata_gpu.dra.fake_api import FakeApi
from tests.kata_gpu.dra.fake_node import NOW
from tests.kata_gpu.dra.fake_store import KINDS
from tests.kata_gpu.kata.test_lint import PEM, POLICY

Object = dict[str, Any]
EXAMPLES = sorted((DEPLOY / "examples").glob("*.yaml"))
PLACEHOLDER = "REPLACE-WITH-INIT-DATA"
ROOT = DEPLOY.parent


@pytest.fixture(scope="module")
def init_data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The value that the documented command prints."""
    folder = tmp_path_factory.mktemp("init-data")
    (folder / "kbs.pem").write_text(PEM)
    (folder / "policy.rego").write_text(POLICY)
    out = folder / "annotation"
    argv = ["initdata", "build", "--tee", "snp", "--kbs-url", "https://kata-gpu-kbs.kata-gpu.svc:8080",
            "--kbs-cert", str(folder / "kbs.pem"), "--agent-policy", str(folder / "policy.rego"),
            "--vfio-devices", "1=1", "--annotation", "-o", str(out)]  # fmt: skip
    assert run(cli, argv) == 0
    name, _, value = out.read_text().partition(":")
    assert name == ANNOTATION
    return value.strip()


def objects(path: Path, init_data: str = PLACEHOLDER) -> list[Object]:
    """Documents of an example."""
    return [o for o in load_all(path.read_text().replace(PLACEHOLDER, init_data), where=path.name) if o]


def cluster(given: list[Object]) -> Cluster:
    """A cluster with our classes and one node of each TEE, and the example's own claims."""
    nodes = [
        {"metadata": {"labels": {"katacontainers.io/kata-runtime": "true", "kata-gpu.dev/cc-mode": "on",
                                 "kata-gpu.dev/tee": tee}}}
        for tee in ("snp", "tdx")
    ]  # fmt: skip
    return Cluster(
        runtime_classes={o["metadata"]["name"]: o for o in runtime_classes(Tee.NONE)},
        device_classes={o["metadata"]["name"]: o for o in render_device_classes()},
        claims={},
        claim_templates={o["metadata"]["name"]: o for o in given if o["kind"] == "ResourceClaimTemplate"},
        nodes=nodes,
    )


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_examples_pass_the_linter(path: Path, init_data: str) -> None:
    given = objects(path, init_data)
    assert lint([o for o in given if "kind" in o], cluster([o for o in given if "kind" in o])) == ()


@pytest.mark.envtest
def test_the_server_accepts_what_is_of_its_own_kinds(api: Any, init_data: str) -> None:
    install(
        KubeApi.connect(server=api.url), wanted(VALUES, default_tee=Tee.NONE, with_broker=False), say=lambda _: None
    )
    kinds = {(k.api, k.kind): k for k in KINDS.values()}
    created, spaces = set(), {"default"}
    for path in EXAMPLES:
        for obj in objects(path, init_data):
            kind = kinds.get((obj.get("apiVersion", ""), obj.get("kind", "")))
            if kind is None:  # of a neighbour (docs/interoperability.md)
                continue
            space = obj["metadata"].get("namespace", "") if kind.namespaced else ""
            if space and space not in spaces:
                api.store.create(KINDS["v1", "namespaces"], "", {"metadata": {"name": space}})
                spaces.add(space)
            api.store.create(kind, space, obj)
            created.add(kind.kind)
    assert created == {"ResourceClaimTemplate", "PriorityClass", "Deployment", "Pod", "ConfigMap", "Job"}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_the_placeholder_cannot_be_overlooked(path: Path) -> None:
    given = objects(path)
    made = [p for o in given for p in pods_of(o).values()]
    assert [v.rule for v in lint(given)] == ["init-data-malformed"] * len(made)
    assert path.read_text().count(PLACEHOLDER) == len(made)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_every_example_has_its_page(path: Path) -> None:
    (page,) = re.findall(r"docs/integrations/[a-z-]+\.md", path.read_text())
    text = (ROOT / page).read_text()
    assert f"deploy/examples/{path.name}" in text


def test_nothing_else_lies_among_the_pages() -> None:
    pages = {p.name for p in (ROOT / "docs/integrations").glob("*.md")}
    assert pages == {Path(re.findall(r"docs/integrations/\S+\.md", p.read_text())[0]).name for p in EXAMPLES}


def test_every_quota_names_classes_that_exist() -> None:
    given = objects(DEPLOY / "examples/kueue.yaml")
    config = load_all(given[0]["data"]["controller_manager_config.yaml"], where="kueue")[0]
    ours = {o["metadata"]["name"] for o in render_device_classes()}
    mapped = {m["name"]: m["deviceClassNames"] for m in config["resources"]["deviceClassMappings"]}
    assert {c for names in mapped.values() for c in names} <= ours
    queue = next(o for o in given if o["kind"] == "ClusterQueue")
    covered = queue["spec"]["resourceGroups"][0]["coveredResources"]
    assert {c for c in covered if "/" in c} <= mapped.keys()


@pytest.mark.parametrize(("reason", "message", "events"), [
    pytest.param("ModeFailed", "0000:17:00.0: no answer", ["CGPU_MODE_FAILED"], id="mode"),
    pytest.param("DevicesUnfit", "gpu-0000-17-00-0: device-dead", ["CGPU_DEVICE_DEAD"], id="dead"),
    pytest.param("DevicesUnfit", "gpu-0000-17-00-0: bridge-down", [], id="passing"),
    pytest.param("Ready", "8 devices offered", [], id="ready"),
])  # fmt: skip
def test_remediation_reads_the_condition_that_the_agent_writes(reason: str, message: str, events: list[str]) -> None:
    api = FakeApi()
    api.store.create(KINDS["v1", "nodes"], "", {"metadata": {"name": "n"}})
    NodeReporter(KubeApi.connect(server=api.url), "n").condition(reason == "Ready", reason, message, NOW)
    node = api.store.get(KINDS["v1", "nodes"], "", "n")
    api.stop()
    (values,) = objects(DEPLOY / "examples/nvsentinel.yaml")
    environment = celpy.Environment()
    raised = []
    for policy in values["kubernetes-object-monitor"]["policies"]:
        program = environment.program(environment.compile(policy["predicate"]["expression"]))
        if program.evaluate({"resource": json_to_cel(node)}):
            raised += policy["healthEvent"]["errorCode"]
    assert raised == events


def test_the_backup_hook_is_a_command_of_the_broker(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (schedule,) = objects(DEPLOY / "examples/velero.yaml")
    (hook,) = schedule["spec"]["template"]["hooks"]["resources"]
    assert hook["labelSelector"]["matchLabels"] == broker.SELECTOR
    (pre,) = hook["pre"]
    assert pre["exec"]["onError"] == "Fail"
    binary, *argv = pre["exec"]["command"]
    assert binary == "/opt/kata-gpu/bin/kata-gpu-kbs"
    options = parse(kbs, argv, {})
    mounts = {m["mountPath"] for m in broker.SQLITE.obj["spec"]["template"]["spec"]["containers"][0]["volumeMounts"]}
    assert {str(options["store"].parent), str(options["target"].parent.parent)} <= mounts

    store, copy = tmp_path / "store", tmp_path / "snapshot/kbs.sqlite3"
    assert run_kbs(kbs, ["user", "add", "owner", "--role", "admin", "--store", str(store)]) == ExitCode.OK
    argv = ["snapshot", "--store", str(store), "--out", str(copy)]
    assert run_kbs(kbs, argv) == ExitCode.OK
    assert run_kbs(kbs, argv) == ExitCode.OK
    assert copy.stat().st_mode & 0o777 == 0o600
    assert [p.name for p in copy.parent.iterdir()] == [copy.name]
    restored = tmp_path / "restored"
    restored.mkdir()
    copy.rename(restored / "kbs.sqlite3")
    (store / "root.key").rename(restored / "root.key")
    capsys.readouterr()
    assert run_kbs(kbs, ["user", "list", "--store", str(restored), "--output", "json"]) == ExitCode.OK
    assert "owner" in json.dumps(json.loads(capsys.readouterr().out))


def test_a_damaged_or_absent_store_leaves_the_old_copy(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.write_text("old")
    argv = ["snapshot", "--store", str(tmp_path / "none"), "--out", str(copy)]
    assert run_kbs(kbs, argv) == ExitCode.USAGE
    store = tmp_path / "store"
    store.mkdir()
    with sqlite3.connect(store / "kbs.sqlite3") as db:
        db.execute("CREATE TABLE t (a)")
        db.executemany("INSERT INTO t VALUES (?)", [("x" * 500,)] * 500)
    db.close()
    damaged = bytearray((store / "kbs.sqlite3").read_bytes())
    damaged[4096 * 3 : 4096 * 20] = bytes(4096 * 17)
    (store / "kbs.sqlite3").write_bytes(damaged)
    assert run_kbs(kbs, ["snapshot", "--store", str(store), "--out", str(copy)]) == ExitCode.UNAVAILABLE
    assert copy.read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["copy", "store"]
