"""The table, its manifests and the validator agree; each wrong row or object is refused for its own reason."""

import copy
from pathlib import Path
from typing import Any

import pytest

from kata_gpu.core.yaml12 import load
from runtimeclass.model import Misconfigured, Tee, parse_table, table
from runtimeclass.render import manifests, objects
from runtimeclass.validate import problems

ROOT = Path(__file__).resolve().parents[2]
TABLE = (ROOT / "runtimeclass/classes.toml").read_text()


def test_checked_in_manifests_are_the_rendered_ones() -> None:
    folder = ROOT / "runtimeclass/manifests"
    assert {p.name: p.read_text() for p in folder.glob("*.yaml")} == manifests()


@pytest.mark.parametrize("default", [Tee.NONE, Tee.SNP, Tee.TDX])
def test_rendered_objects_validate_and_survive_yaml(default: Tee) -> None:
    for name, text in manifests(default).items():
        obj = load(text, where=name)
        assert problems(obj) == ()
        assert obj in objects(default)


@pytest.mark.parametrize(("default", "handler", "confidential", "mode"), [
    pytest.param(Tee.NONE, "kata-qemu-nvidia-gpu", "false", "off", id="none-is-plain-passthrough"),
    pytest.param(Tee.SNP, "kata-qemu-nvidia-gpu-snp", "true", "on", id="snp"),
    pytest.param(Tee.TDX, "kata-qemu-nvidia-gpu-tdx", "true", "on", id="tdx"),
])  # fmt: skip
def test_default_class_follows_the_cluster(default: Tee, handler: str, confidential: str, mode: str) -> None:
    obj = next(o for o in objects(default) if o["metadata"]["name"] == "kata-nvidia-gpu")
    assert obj["handler"] == handler
    assert obj["metadata"]["labels"]["kata-gpu.dev/confidential"] == confidential
    assert obj["scheduling"]["nodeSelector"]["kata-gpu.dev/cc-mode"] == mode


def test_tee_keys_are_counted_on_request() -> None:
    by_name = {o["metadata"]["name"]: o["overhead"]["podFixed"] for o in objects(Tee.SNP, tee_keys=True)}
    assert by_name["kata-nvidia-gpu-snp"]["sev-snp.amd.com/esids"] == "1"
    assert by_name["kata-nvidia-gpu-tdx"]["tdx.intel.com/keys"] == "1"


def test_names_asked_for_exist() -> None:
    names = {row.name for row in table()}
    assert {"kata-nvidia-gpu", "kata-nvidia-gpu-snp", "kata-nvidia-gpu-tdx", "kata-nvidia-gpu-devtools"} <= names


@pytest.mark.parametrize(("old", "new", "says"), [
    pytest.param('tee = "snp"', 'tee = "sev"', "'sev' is not a valid Tee", id="unknown-tee"),
    pytest.param('cc_mode = "ppcie"', 'cc_mode = "full"', "'full' is not a valid CcMode", id="unknown-mode"),
    pytest.param('name = "kata-nvidia-gpu-tdx"', 'name = "kata-nvidia-gpu-snp"', "listed twice", id="duplicate"),
    pytest.param('name = "kata-nvidia-gpu-snp"', 'name = "Kata"', "name: expected", id="bad-name"),
    pytest.param('overhead_cpu = "1"', 'overhead_cpu = "-1"', "overhead_cpu: expected", id="bad-quantity"),
    pytest.param('overhead_cpu = "1"', "", "expected fields", id="missing-field"),
    pytest.param('name = "kata-nvidia-gpu-ppcie-snp"\ntee = "snp"', 'name = "kata-nvidia-gpu-x"\ntee = "none"',
                 "needs a TEE", id="ppcie-without-tee"),
    pytest.param("[defaults]", "[other]", "expected [defaults]", id="unknown-section"),
    pytest.param("[defaults]", "[defaults", "classes.toml", id="not-toml"),
])  # fmt: skip
def test_wrong_tables_are_refused(old: str, new: str, says: str) -> None:
    assert old in TABLE
    with pytest.raises(Misconfigured) as caught:
        parse_table(TABLE.replace(old, new, 1))
    assert says in str(caught.value)


def _without(obj: dict[str, Any], *path: str) -> dict[str, Any]:
    changed = copy.deepcopy(obj)
    node = changed
    for part in path[:-1]:
        node = node[part]
    del node[path[-1]]
    return changed


@pytest.mark.parametrize(("path", "says"), [
    pytest.param(("scheduling",), "nodeSelector.kata-gpu.dev/tee", id="no-selector"),
    pytest.param(("overhead",), "overcommit", id="no-overhead"),
    pytest.param(("handler",), "handler: expected one of kata-qemu-nvidia-gpu-snp", id="no-handler"),
    pytest.param(("metadata", "labels"), "labels.kata-gpu.dev/confidential", id="no-labels"),
    pytest.param(("kind",), "kind RuntimeClass", id="no-kind"),
    pytest.param(("metadata",), "not a RuntimeClass of this toolkit", id="no-name"),
])  # fmt: skip
def test_validator_names_the_problem(path: tuple[str, ...], says: str) -> None:
    good = next(o for o in objects(Tee.SNP) if o["metadata"]["name"] == "kata-nvidia-gpu-snp")
    assert any(says in p for p in problems(_without(good, *path)))
