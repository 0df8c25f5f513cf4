"""`lint --live` against an API server, and what the API server itself refuses or adds."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kata_gpu.cli.main import cli, run
from kata_gpu.core.device_classes import render_device_classes
from kata_gpu.core.kata.initdata import ANNOTATION
from kata_gpu.core.lint.admission import CLASS_POLICY, policies
from kata_gpu.core.lint.lint import lint
from kata_gpu.core.lint.mutation import KEY, mutation
from kata_gpu.errors import ExitCode
from runtimeclass.model import Tee
from runtimeclass.render import objects as runtime_classes
from tests.kata_gpu.dra.fake_api import FakeApi
from tests.kata_gpu.dra.fake_store import KINDS
from tests.kata_gpu.kata.cel import evaluate, mutate
from tests.kata_gpu.kata.test_lint import CLAIM, POD, REQUEST, changed, init_data

Object = dict[str, Any]
LABELS = {"katacontainers.io/kata-runtime": "true", "kata-gpu.dev/cc-mode": "on", "kata-gpu.dev/tee": "snp"}
TEMPLATES = KINDS["resource.k8s.io/v1", "resourceclaimtemplates"]


@pytest.fixture
def api() -> Iterator[FakeApi]:
    """A cluster with our classes and one SNP node."""
    fake = FakeApi()
    for obj in runtime_classes(Tee.NONE):
        fake.store.create(KINDS["node.k8s.io/v1", "runtimeclasses"], "", obj)
    for obj in render_device_classes():
        fake.store.create(KINDS["resource.k8s.io/v1", "deviceclasses"], "", obj)
    fake.store.create(KINDS["v1", "nodes"], "", {"metadata": {"name": "n", "labels": LABELS}})
    yield fake
    fake.stop()


def live(api: FakeApi, file: Path, objects: list[Object], capsys: pytest.CaptureFixture[str]) -> set[str]:
    """Rules that `lint --live` names."""
    file.write_text(json.dumps({"kind": "List", "items": objects}))
    code = run(cli, ["lint", "--live", "--server", api.url, str(file), "--output", "json"])
    result = json.loads(capsys.readouterr().out)
    assert code == (ExitCode.OK if result["ok"] else ExitCode.NEGATIVE)
    return {v["rule"] for v in result["violations"]}


def test_what_is_linted_together_counts_as_applied(
    api: FakeApi, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "pod.json"
    assert live(api, file, [POD], capsys) == {"claim-missing"}
    assert live(api, file, [POD, CLAIM], capsys) == set()
    elsewhere = changed(CLAIM, "metadata/namespace", "other")
    assert live(api, file, [POD, elsewhere], capsys) == {"claim-missing"}


def test_claims_of_the_cluster_are_judged_with_the_pod(
    api: FakeApi, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    api.store.create(TEMPLATES, "default", CLAIM)
    file = tmp_path / "pod.json"
    assert live(api, file, [POD], capsys) == set()
    plain = changed(POD, "spec/runtimeClassName", "kata-nvidia-gpu")
    assert live(api, file, [plain], capsys) == {"class-not-confidential", "mode-differs", "no-node"}
    api.store.delete(TEMPLATES, "default", "one-gpu")
    api.store.create(TEMPLATES, "default", changed(CLAIM, f"{REQUEST}/deviceClassName", "passthrough-gpu"))
    assert live(api, file, [POD], capsys) == {"mode-differs"}


def test_an_unreachable_server_is_unavailable(api: FakeApi, tmp_path: Path) -> None:
    file = tmp_path / "pod.json"
    file.write_text(json.dumps(POD))
    api.go_down()
    assert run(cli, ["lint", "--live", "--server", api.url, str(file)]) == ExitCode.UNAVAILABLE


@pytest.mark.parametrize(("tee", "name", "annotated", "allowed"), [
    pytest.param(Tee.NONE, "kata-nvidia-gpu", True, False, id="no-default-tee"),
    pytest.param(Tee.NONE, "kata-nvidia-gpu", False, True, id="no-init-data"),
    pytest.param(Tee.SNP, "kata-nvidia-gpu", True, True, id="default-tee"),
    pytest.param(Tee.NONE, "kata-nvidia-gpu-snp", True, True, id="named-tee"),
    pytest.param(Tee.NONE, "runc", True, True, id="not-ours"),
])  # fmt: skip
def test_admission_knows_whether_the_default_class_has_a_tee(
    tee: Tee, name: str, annotated: bool, allowed: bool
) -> None:
    policy, binding = (p for p in policies() if p["metadata"]["name"] == CLASS_POLICY)
    pod = changed(POD, "spec/runtimeClassName", name)
    if not annotated:
        pod = changed(pod, "metadata/annotations", None)
    wanted = binding["spec"]["paramRef"]["selector"]["matchLabels"]
    params = [c for c in runtime_classes(tee) if wanted.items() <= c["metadata"]["labels"].items()]
    assert len(params) == len(runtime_classes(tee))
    (rule,) = policy["spec"]["validations"]
    assert all(bool(evaluate(rule["expression"], object=pod, params=p)) for p in params) == allowed


def with_init_data(pod: Object, config_map: Object) -> Object:
    """The pod as the policy leaves it."""
    policy, _ = mutation()
    return mutate(policy, pod, config_map)


def test_init_data_is_added_where_the_pod_brings_none() -> None:
    bare = changed(POD, "metadata/annotations", None)
    value = init_data("package p")
    added = with_init_data(bare, {"data": {KEY: value}})
    assert added == changed(bare, "metadata/annotations", {ANNOTATION: value})
    assert {v.rule for v in lint([bare])} == {"init-data-missing"}
    assert "init-data-missing" not in {v.rule for v in lint([added])}


@pytest.mark.parametrize("pod", [
    pytest.param(POD, id="brings-its-own"),
    pytest.param(changed(changed(POD, "metadata/annotations", None), "spec/runtimeClassName", "runc"), id="not-confidential"),
    pytest.param(changed(changed(POD, "metadata/annotations", None), "spec/runtimeClassName", None), id="no-class"),
])  # fmt: skip
def test_other_pods_are_left_alone(pod: Object) -> None:
    assert with_init_data(pod, {"data": {KEY: "x"}}) == pod


@pytest.mark.parametrize("config_map", [{}, {"data": {}}, {"data": {"other": "x"}}])
def test_an_empty_config_map_is_refused_by_the_validating_policy(config_map: Object) -> None:
    mutated = with_init_data(changed(POD, "metadata/annotations", None), config_map)
    assert [v.rule for v in lint([mutated])] == ["init-data-missing"]
