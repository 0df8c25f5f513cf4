"""containerd's configuration in the shapes of 1.7, 2.1, k3s and RKE2: judged, completed, and judged again."""

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from kata_gpu.cli.main import cli, run
from kata_gpu.core.kata.containerd import Flavour, Handler, Version, check, handler_values, merge, paths, render
from kata_gpu.core.kata.effective import Layer, parse_layer
from kata_gpu.errors import ExitCode, Malformed

SNP = "kata-qemu-nvidia-gpu-snp"
RUST = "kata-qemu-nvidia-gpu-snp-runtime-rs"
CONFIG = "/opt/kata/share/defaults/kata-containers/configuration-qemu-nvidia-gpu-snp.toml"
HANDLER = Handler(name=SNP, config_path=CONFIG)

CONTAINERD_1_7 = """
version = 2
root = "/var/lib/containerd"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "registry.k8s.io/pause:3.9"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = true
"""
CONTAINERD_2_1 = """
version = 3
imports = ["/etc/containerd/conf.d/*.toml"]
[plugins."io.containerd.cri.v1.images"]
  snapshotter = "overlayfs"
[plugins."io.containerd.cri.v1.runtime"]
  enable_selinux = false
  [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
"""
K3S = """
version = 3
root = "/var/lib/rancher/k3s/agent/containerd"
state = "/run/k3s/containerd"
[grpc]
  address = "/run/k3s/containerd/containerd.sock"
[plugins.'io.containerd.cri.v1.runtime']
  enable_unprivileged_ports = true
  device_ownership_from_security_context = false
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
"""
RKE2 = K3S.replace("k3s", "rke2")
BASES = {"1.7": CONTAINERD_1_7, "2.1": CONTAINERD_2_1, "k3s": K3S, "rke2": RKE2}


def layer(text: str, path: str = "main") -> Layer:
    return parse_layer(text.encode(), path)


def wrong(*layers: Layer, handlers: tuple[str, ...] = (SNP,)) -> set[str]:
    return {f.id for f in check(layers, handlers) if not f.ok}


@pytest.mark.parametrize(("name", "missing"), [
    ("1.7", {"handler", "cdi"}), ("2.1", {"handler"}), ("k3s", {"handler"}), ("rke2", {"handler"}),
])  # fmt: skip
def test_a_fresh_configuration_lacks_the_handler(name: str, missing: set[str]) -> None:
    assert wrong(layer(BASES[name])) == missing


def test_version_3_gets_a_file_of_its_own() -> None:
    text = render([HANDLER], Version.V3, Flavour.PLAIN)
    after = (layer(CONTAINERD_2_1), layer(text, "drop-in"))
    assert wrong(*after) == set()
    cri: Any = merge(after)["io.containerd.cri.v1.runtime"]
    assert cri["enable_selinux"] is False
    assert cri["containerd"]["runtimes"].keys() == {"runc", SNP}
    assert cri["cdi_spec_dirs"] == ["/etc/cdi", "/var/run/cdi"]


@pytest.mark.parametrize("flavour", [Flavour.K3S, Flavour.RKE2])
def test_templates_extend_the_base_of_the_distribution(flavour: Flavour) -> None:
    text = render([HANDLER], Version.V3, flavour)
    target = f"/var/lib/rancher/{flavour}/agent/etc/containerd/config-v3.toml.tmpl"
    assert paths(flavour, Version.V3).target == target
    assert paths(flavour, Version.V2).target == target.replace("config-v3", "config")
    assert text.count('{{ template "base" . }}') == 1
    rendered = text.replace('{{ template "base" . }}', BASES[str(flavour)])  # as the distribution does
    assert wrong(layer(rendered)) == set()


def test_version_2_needs_its_lines_in_the_main_file() -> None:
    text = render([HANDLER], Version.V2, Flavour.PLAIN)
    assert paths(Flavour.PLAIN, Version.V2).target == "/etc/containerd/config.toml"
    beside = (layer(CONTAINERD_1_7), layer(text, "/etc/containerd/conf.d/x.toml"))
    assert wrong(*beside) == {"section-replaced"}
    assert "sandbox_image" not in merge(beside)["io.containerd.grpc.v1.cri"]
    main = tomllib.loads(CONTAINERD_1_7)
    cri = main["plugins"]["io.containerd.grpc.v1.cri"]
    ours = tomllib.loads(text)["plugins"]["io.containerd.grpc.v1.cri"]
    cri["containerd"]["runtimes"] |= ours.pop("containerd")["runtimes"]
    assert wrong(Layer("main", main | {"plugins": {"io.containerd.grpc.v1.cri": cri | ours}})) == set()


def test_the_entry_is_that_of_kata_deploy() -> None:
    assert handler_values(Handler(name=RUST, config_path=CONFIG, snapshotter="nydus-for-kata-tee")) == {
        "runtime_type": f"io.containerd.{RUST}.v2",
        "runtime_path": "/opt/kata/runtime-rs/bin/containerd-shim-kata-v2",
        "privileged_without_host_devices": True,
        "pod_annotations": ["io.katacontainers.*"],
        "container_annotations": ["io.kubernetes.container.terminationMessage*"],
        "snapshotter": "nydus-for-kata-tee",
        "options": {"ConfigPath": CONFIG},
    }
    plugins = tomllib.loads(render([Handler(name=SNP, config_path=CONFIG, snapshotter="s")], Version.V3, Flavour.PLAIN))
    images = plugins["plugins"]["io.containerd.cri.v1.images"]
    assert images == {"runtime_platforms": {SNP: {"snapshotter": "s"}}}


GOOD = {"plugins": {"io.containerd.cri.v1.runtime": {"containerd": {"runtimes": {SNP: handler_values(HANDLER)}}}}}


@pytest.mark.parametrize(("key", "value", "finding"), [
    pytest.param("runtime_type", "io.containerd.runc.v2", "handler", id="other-shim"),
    pytest.param("options", {}, "handler-config", id="no-config-path"),
    pytest.param("pod_annotations", [], "pod-annotations", id="annotations-dropped"),
    pytest.param("pod_annotations", "io.katacontainers.*", "pod-annotations", id="annotations-not-a-list"),
    pytest.param("privileged_without_host_devices", False, "host-devices", id="host-devices"),
])  # fmt: skip
def test_each_wrong_value_is_named(key: str, value: Any, finding: str) -> None:
    runtime = {"containerd": {"runtimes": {SNP: handler_values(HANDLER) | {key: value}}}}
    assert wrong(Layer("main", {"version": 3, "plugins": {"io.containerd.cri.v1.runtime": runtime}})) == {finding}


@pytest.mark.parametrize(("extra", "findings"), [
    pytest.param({"enable_cdi": False}, {"cdi"}, id="cdi-off"),
    pytest.param({"cdi_spec_dirs": ["/etc/cdi"]}, {"cdi-dirs"}, id="cdi-dirs"),
    pytest.param({"cdi_spec_dirs": ["/run/cdi"]}, set(), id="run-cdi"),
    pytest.param({"enable_cdi": True}, set(), id="cdi-on"),
])  # fmt: skip
def test_cdi(extra: dict[str, Any], findings: set[str]) -> None:
    over = Layer("over", {"plugins": {"io.containerd.cri.v1.runtime": extra}})
    assert wrong(Layer("main", {"version": 3, **GOOD}), over) == findings


def test_version_4_has_the_layout_of_version_3() -> None:
    assert wrong(layer(CONTAINERD_2_1.replace("version = 3", "version = 4"))) == {"handler"}


@pytest.mark.parametrize("version", [None, 1, 5, "3"])
def test_other_versions_are_refused(version: Any) -> None:
    with pytest.raises(Malformed):
        check([Layer("main", {"version": version})], [SNP])


def test_cli(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "etc/containerd"
    (folder / "conf.d").mkdir(parents=True)
    (folder / "config.toml").write_text(CONTAINERD_2_1)
    kata = tmp_path / CONFIG.lstrip("/")
    kata.parent.mkdir(parents=True)
    kata.write_text("")
    argv = ["--host-root", str(tmp_path), "--handler", SNP]
    assert run(cli, ["kata", "containerd", "check", *argv]) == ExitCode.NEGATIVE
    assert f"WRONG runtimes.{SNP}" in capsys.readouterr().out
    assert run(cli, ["kata", "containerd", "render", *argv]) == ExitCode.OK
    out = capsys.readouterr()
    assert out.err == "for /etc/containerd/conf.d/60-kata-gpu.toml\n"
    (folder / "conf.d/60-kata-gpu.toml").write_text(out.out)
    assert run(cli, ["kata", "containerd", "check", *argv, "--output", "json"]) == ExitCode.OK
    result = json.loads(capsys.readouterr().out)
    assert result["files"] == ["/etc/containerd/config.toml", "/etc/containerd/conf.d/60-kata-gpu.toml"]
    assert run(cli, ["kata", "containerd", "check", "--host-root", str(tmp_path / "none")]) == ExitCode.UNAVAILABLE
