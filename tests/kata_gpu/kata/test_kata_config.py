"""Merging with provenance, judging, and the drop-in: each shape of template ends up right, each wrong value is blamed."""

import json
import tomllib
from pathlib import Path

import pytest

from kata_gpu.cli.main import cli, run
from kata_gpu.core.kata.check import check
from kata_gpu.core.kata.dropin import FILE_NAME, dropin_values, render_dropin
from kata_gpu.core.kata.effective import MAX_FILE_BYTES, Effective, Runtime, merge, parse_layer
from kata_gpu.core.kata.settings import Needs, Tee
from kata_gpu.core.kata.timeouts import Timeouts, solve
from kata_gpu.core.podresources import BRIDGE_SOCKET
from kata_gpu.errors import Malformed, Misconfigured
from tests.kata_gpu.kata.templates import TEMPLATES


def tee_of(name: str) -> Tee:
    return next((t for t in (Tee.SNP, Tee.TDX) if name.endswith(t)), Tee.NONE)


def effective(*texts: str) -> Effective:
    return merge([parse_layer(text.encode(), f"{n:02}.toml") for n, text in enumerate(texts)])


@pytest.mark.parametrize("name", TEMPLATES)
def test_template_plus_dropin_satisfies_every_requirement(name: str) -> None:
    base = effective(TEMPLATES[name])
    needs = Needs(tee=tee_of(name), devices=12)
    before = {f.id for f in check(base, needs) if not f.ok}
    assert "pod-resources" in before  # no template knows our bridge
    after = effective(TEMPLATES[name], render_dropin(needs, base.runtime))
    assert [f for f in check(after, needs) if not f.ok] == []
    assert after.runtime is base.runtime is (Runtime.RUST if "rust" in name else Runtime.GO)


@pytest.mark.parametrize("name", TEMPLATES)
def test_effective_configuration_keeps_what_nobody_overrides(name: str) -> None:
    base = effective(TEMPLATES[name])
    needs = Needs(tee=tee_of(name), devices=2)
    after = effective(TEMPLATES[name], render_dropin(needs, base.runtime))
    changed = {k for k, o in after.leaves.items() if o.path == "01.toml"}
    assert {k: o.value for k, o in after.leaves.items() if k not in changed} == {
        k: o.value for k, o in base.leaves.items() if k not in changed
    }
    assert after.get("runtime.pod_resource_api_sock") is not None
    assert after.leaves["runtime.pod_resource_api_sock"].value == BRIDGE_SOCKET


@pytest.mark.parametrize("runtime", [*Runtime])
@pytest.mark.parametrize("tee", [*Tee])
@pytest.mark.parametrize("devices", [1, 12])
def test_dropin_round_trips(runtime: Runtime, tee: Tee, devices: int) -> None:
    needs = Needs(tee=tee, devices=devices)
    text = render_dropin(needs, runtime)
    assert tomllib.loads(text) == dropin_values(needs, runtime)
    assert text == render_dropin(needs, runtime)


@pytest.mark.parametrize(("texts", "expected"), [
    pytest.param(("a = 1", "a = 2"), {"a": (2, "01.toml")}, id="scalar-replaces"),
    pytest.param(("[t]\na = 1\nb = 2", "[t]\na = 3"), {"t.a": (3, "01.toml"), "t.b": (2, "00.toml")}, id="tables-merge"),
    pytest.param(("a = [1, 2]", "a = [3]"), {"a": ([3], "01.toml")}, id="arrays-replace"),
    pytest.param(("[a]\nx = 1", "a = 5"), {"a": (5, "01.toml")}, id="value-replaces-table"),
    pytest.param(("a = 5", "[a]\nx = 1"), {"a.x": (1, "01.toml")}, id="table-replaces-value"),
    pytest.param(("[[i]]\nn = 1\n[[i]]\nn = 2", "[[i]]\nn = 3"), {"i": ([{"n": 3}], "01.toml")}, id="table-arrays-replace"),
])  # fmt: skip
def test_merge(texts: tuple[str, ...], expected: dict[str, tuple[object, str]]) -> None:
    assert {k: (o.value, o.path) for k, o in effective(*texts).leaves.items()} == expected


@pytest.mark.parametrize(("old", "new", "id_"), [
    pytest.param('cold_plug_vfio = "root-port"', 'cold_plug_vfio = "no-port"', "cold-plug", id="cold-plug"),
    pytest.param("pcie_root_port = 8", "pcie_root_port = 4", "root-ports", id="root-ports"),
    pytest.param("confidential_guest = true", "confidential_guest = false", "confidential-guest", id="confidential"),
    pytest.param("sev_snp_guest = true", "sev_snp_guest = false", "snp-guest", id="snp-off"),
    pytest.param("snp_guest_policy = 196608", "snp_guest_policy = 720896", "snp-debug", id="snp-debug"),
    pytest.param('["cc_init_data"]', "[]", "init-data-annotation", id="init-data"),
    pytest.param('shared_fs = "none"', 'shared_fs = "virtio-fs"', "shared-fs", id="shared-fs"),
    pytest.param("debug_console_enabled = false", "debug_console_enabled = true", "debug-console", id="console"),
    pytest.param("sandbox_cgroup_only = true", 'sandbox_cgroup_only = "true"', "sandbox-cgroup", id="text-is-not-true"),
    pytest.param("create_container_timeout = 1200", "create_container_timeout = 60", "create-timeout", id="create"),
    pytest.param("reconnect_timeout_ms = 1200000", "reconnect_timeout_ms = 1200", "dial-timeout", id="ms-not-s"),
    pytest.param('vfio_mode = "guest-kernel"', 'vfio_mode = "vfio"', "vfio-mode", id="vfio-mode"),
    pytest.param("static_sandbox_resource_mgmt = true", "", "static-resources", id="static-resources"),
    pytest.param('emptydir_mode = "block-encrypted"', 'emptydir_mode = "block-plain"', "empty-dir", id="empty-dir"),
])  # fmt: skip
def test_each_wrong_value_is_blamed_alone(old: str, new: str, id_: str) -> None:
    needs = Needs(tee=Tee.SNP, devices=5)
    good = TEMPLATES["4.1-rust-snp"]
    assert old in good
    dropin = render_dropin(needs, Runtime.RUST)
    text = good.replace(old, new)
    key_set_by_dropin = any(f.id == id_ and f.fixed_by_dropin for f in check(effective(good), needs))
    # A value that our drop-in sets is judged with the wrong value placed after it.
    layers = (good, dropin, _only(text, good)) if key_set_by_dropin else (text, dropin)
    wrong = [f for f in check(effective(*layers), needs) if not f.ok]
    assert [f.id for f in wrong] == [id_]
    assert wrong[0].symptom


def _only(changed: str, good: str) -> str:
    """The keys of `changed` that differ from `good`, as a drop-in of their own; a removed key becomes an empty text."""
    ours, theirs = effective(changed).leaves, effective(good).leaves
    lines = []
    for key, origin in theirs.items():
        if key not in ours or ours[key].value != origin.value:
            value = ours[key].value if key in ours else ""
            lines.append(f"{key} = {json.dumps(value)}")
    return "\n".join(lines)


@pytest.mark.parametrize(("data", "code"), [
    pytest.param(b"a = ", "kata-config-toml", id="syntax"),
    pytest.param(b"\xff\xfe", "kata-config-toml", id="not-utf8"),
    pytest.param(b"#" * (MAX_FILE_BYTES + 1), "kata-config-size", id="large"),
])  # fmt: skip
def test_bad_files_are_named(data: bytes, code: str) -> None:
    with pytest.raises(Malformed) as caught:
        parse_layer(data, "/etc/x.toml")
    assert (caught.value.code, caught.value.where) == (code, "/etc/x.toml")


@pytest.mark.parametrize(("devices", "timeout"), [(0, 1320), (33, 1320), (1, 10)])
def test_impossible_needs_are_refused(devices: int, timeout: int) -> None:
    with pytest.raises(Misconfigured):
        Needs(tee=Tee.NONE, devices=devices, timeout_s=timeout)


def test_no_layers_is_an_error() -> None:
    with pytest.raises(Malformed):
        merge([])


@pytest.mark.parametrize(("current", "boot", "wanted"), [
    pytest.param(Timeouts(kubelet_s=1500, create_container_s=1320, dial_s=1320), 1200, {}, id="coherent"),
    pytest.param(Timeouts(create_container_s=1320, dial_s=1320), 1200, {"kubelet runtimeRequestTimeout": 1320}, id="kubelet"),
    pytest.param(Timeouts(kubelet_s=1500, create_container_s=600, dial_s=1320), 1200,
                 {"create_container_timeout": 1300}, id="create"),
    pytest.param(Timeouts(kubelet_s=1500, create_container_s=1320, dial_s=60), 900,
                 {"agent connection (dial_timeout, reconnect_timeout_ms)": 900}, id="dial"),
])  # fmt: skip
def test_timeouts(current: Timeouts, boot: int, wanted: dict[str, int]) -> None:
    assert {c.name: c.want_s for c in solve(current, boot_s=boot)} == wanted


@pytest.fixture
def node(tmp_path: Path) -> Path:
    folder = tmp_path / "opt/kata/share/defaults/kata-containers/runtimes/qemu-nvidia-gpu-snp"
    folder.mkdir(parents=True)
    (folder / "configuration-qemu-nvidia-gpu-snp.toml").write_text(TEMPLATES["4.1-go-snp"])
    return tmp_path


def test_cli_diff_render_check(node: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["--handler", "kata-qemu-nvidia-gpu-snp", "--host-root", str(node), "--devices", "12"]
    assert run(cli, ["kata", "check", *args, "--output", "json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert [f["id"] for f in report["findings"] if not f["ok"]] == ["pod-resources", "create-timeout", "dial-timeout"]
    assert run(cli, ["kata", "diff", *args]) == 1
    assert run(cli, ["kata", "render", *args, "--write"]) == 0
    capsys.readouterr()
    assert run(cli, ["kata", "diff", *args]) == 0
    assert run(cli, ["kata", "render", *args, "--write"]) == 0
    assert "nothing written" in capsys.readouterr().out
    assert run(cli, ["kata", "check", *args, "--kubelet-timeout", "1500"]) == 0
    assert run(cli, ["kata", "check", *args]) == 1
    assert "kubelet gives up first" in capsys.readouterr().out
    assert [p.name for p in node.rglob("config.d/*")] == [FILE_NAME]


def test_cli_missing_handler_says_where_it_looked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(cli, ["kata", "check", "--handler", "kata-qemu-nvidia-gpu", "--host-root", str(tmp_path)]) == 2
    assert "configuration-qemu-nvidia-gpu.toml" in capsys.readouterr().err
