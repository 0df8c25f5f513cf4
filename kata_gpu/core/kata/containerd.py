"""containerd's half: the runtime entry of each Kata handler and CDI (node.md 4.6), checked and rendered.

Configuration version 2 (containerd 1.7) keeps everything in one plugin and a later file replaces that plugin's whole
section; versions 3 and 4 (containerd 2) have two plugins and merge them. So version 2 gets its lines in the main file,
and the newer ones get a file of their own. k3s and RKE2 render the main file from a template beside it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Any

import tomli_w

from kata_gpu.core.kata.effective import Layer
from kata_gpu.errors import Malformed

POD_ANNOTATIONS = "io.katacontainers.*"
CONTAINER_ANNOTATIONS = "io.kubernetes.container.terminationMessage*"
CDI_DIRS = ("/etc/cdi", "/var/run/cdi")
CDI_RUN = ("/var/run/cdi", "/run/cdi")  # one directory, two names
FILE_NAME = "60-kata-gpu.toml"
_GO_SHIM = "/opt/kata/bin/containerd-shim-kata-v2"  # kata-deploy 4.1.0
_RUST_SHIM = "/opt/kata/runtime-rs/bin/containerd-shim-kata-v2"
_RUST_SUFFIX = "-runtime-rs"


class Version(IntEnum):
    """Layout of the configuration file. Version 4 has the layout of version 3."""

    V2 = 2
    V3 = 3

    @property
    def runtime_plugin(self) -> str:
        """Plugin that holds runtimes and CDI."""
        return "io.containerd.cri.v1.runtime" if self is Version.V3 else "io.containerd.grpc.v1.cri"

    @property
    def images_plugin(self) -> str:
        """Plugin that maps handlers to snapshotters."""
        return "io.containerd.cri.v1.images" if self is Version.V3 else "io.containerd.grpc.v1.cri"


_LAYOUTS = {2: Version.V2, 3: Version.V3, 4: Version.V3}


class Flavour(StrEnum):
    """Who writes containerd's main file."""

    PLAIN = "containerd"
    K3S = "k3s"
    RKE2 = "rke2"


@dataclass(frozen=True, slots=True, kw_only=True)
class Paths:
    """Where a node of this flavour keeps containerd's configuration. `target` is what a person edits or adds."""

    main: str
    target: str
    import_line: str  # that the main file must have; empty where the distribution's own does


def paths(flavour: Flavour, version: Version) -> Paths:
    """Files of this flavour."""
    if flavour is Flavour.PLAIN:
        main, folder = "/etc/containerd/config.toml", "/etc/containerd/conf.d"
        if version is Version.V2:
            return Paths(main=main, target=main, import_line="")
        return Paths(main=main, target=f"{folder}/{FILE_NAME}", import_line=f'imports = ["{folder}/*.toml"]')
    base = f"/var/lib/rancher/{flavour}/agent/etc/containerd"
    stem = "config-v3" if version is Version.V3 else "config"
    return Paths(main=f"{base}/config.toml", target=f"{base}/{stem}.toml.tmpl", import_line="")


@dataclass(frozen=True, slots=True, kw_only=True)
class Handler:
    """One runtime entry to write."""

    name: str
    config_path: str
    snapshotter: str = ""  # empty: containerd's default

    @property
    def shim(self) -> str:
        """Binary of the runtime that the name stands for."""
        return _RUST_SHIM if self.name.endswith(_RUST_SUFFIX) else _GO_SHIM


def handler_values(handler: Handler) -> dict[str, Any]:
    """The entry, as kata-deploy writes it."""
    entry: dict[str, Any] = {
        "runtime_type": f"io.containerd.{handler.name}.v2",
        "runtime_path": handler.shim,
        "privileged_without_host_devices": True,
        "pod_annotations": [POD_ANNOTATIONS],
        "container_annotations": [CONTAINER_ANNOTATIONS],
    }
    if handler.snapshotter:
        entry["snapshotter"] = handler.snapshotter
    entry["options"] = {"ConfigPath": handler.config_path}
    return entry


def render(handlers: Sequence[Handler], version: Version, flavour: Flavour) -> str:
    """Text for `paths(flavour, version).target`: a file of its own, or lines for the one that is there."""
    where = paths(flavour, version)
    runtimes = {h.name: handler_values(h) for h in handlers}
    plugins: dict[str, Any] = {version.runtime_plugin: {"containerd": {"runtimes": runtimes}}}
    # The templates of k3s and RKE2 write the plugin's own table; writing it twice is no TOML. Their containerd 2 has
    # CDI on, as every containerd 2.
    if flavour is Flavour.PLAIN:
        plugins[version.runtime_plugin] |= {"enable_cdi": True, "cdi_spec_dirs": list(CDI_DIRS)}
    if version is Version.V3 and (
        mapped := {h.name: {"snapshotter": h.snapshotter} for h in handlers if h.snapshotter}
    ):
        plugins[version.images_plugin] = {"runtime_platforms": mapped}
    head = ["# Rendered by `kata-gpu kata containerd render`; restart containerd afterwards."]
    if flavour is not Flavour.PLAIN:
        head += [f"# For {where.target}.", '{{ template "base" . }}']
    elif version is Version.V2:
        head.append(f"# Merge into {where.main}: in version 2 a file beside it replaces the plugin's whole section.")
    else:
        head += [f"# For {where.target}; {where.main} needs {where.import_line}", f"version = {version}"]
    return "\n".join(head) + "\n\n" + tomli_w.dumps({"plugins": plugins})


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One requirement on containerd. `id` is stable."""

    id: str
    key: str
    ok: bool
    expected: str
    got: str
    symptom: str

    def to_json(self) -> dict[str, object]:
        """Plain mapping."""
        return {name: getattr(self, name) for name in self.__slots__}


def version_of(main: Layer) -> Version:
    """Layout of the main file. Raises Malformed for version 1, which no supported containerd writes, and above 4."""
    number = main.values.get("version")
    if not isinstance(number, int) or number not in _LAYOUTS:
        raise Malformed("containerd-version", "unknown configuration version", where=main.path,
                        expected=f"version = {' or '.join(map(str, _LAYOUTS))}", got=number)  # fmt: skip
    return _LAYOUTS[number]


def merge(layers: Sequence[Layer]) -> Mapping[str, Any]:
    """Main file first, imports after it: version 3 merges tables, version 2 replaces whole plugin sections."""
    version = version_of(layers[0])
    plugins: dict[str, Any] = {}
    for layer in layers:
        for name, section in _table(layer.values, "plugins").items():
            plugins[name] = _merged(plugins.get(name), section) if version is Version.V3 else section
    return plugins


def check(layers: Sequence[Layer], handlers: Iterable[str]) -> tuple[Finding, ...]:
    """Every requirement for these handlers; never empty. Raises Malformed for an unknown version."""
    version = version_of(layers[0])
    plugins = merge(layers)
    cri = _table(plugins, version.runtime_plugin)
    enabled, dirs = cri.get("enable_cdi"), cri.get("cdi_spec_dirs")
    listed = dirs is None or (isinstance(dirs, list) and any(d in CDI_RUN for d in dirs))
    found = [
        _finding("cdi", "enable_cdi", enabled is True or (version is Version.V3 and enabled is None), "true", enabled,
                 "unresolvable CDI devices: the container never gets its device"),
        _finding("cdi-dirs", "cdi_spec_dirs", listed, f"lists {CDI_RUN[0]}", dirs,
                 "unresolvable CDI devices: our specifications are not read"),
        _replaced(layers, version),
    ]  # fmt: skip
    runtimes = _table(cri, "containerd", "runtimes")
    for name in handlers:
        found += _check_handler(name, runtimes.get(name))
    return tuple(found)


def _replaced(layers: Sequence[Layer], version: Version) -> Finding:
    """Version 2 only: a later file that silently discards what the main file says."""
    culprits = [
        later.path
        for later in layers[1:]
        if version is Version.V2
        and version.runtime_plugin in _table(later.values, "plugins")
        and version.runtime_plugin in _table(layers[0].values, "plugins")
    ]
    return _finding("section-replaced", "imports", not culprits, "no second file with the CRI section",
                    ", ".join(culprits) or "none", "every runtime and setting of the main file is gone")  # fmt: skip


def _check_handler(name: str, entry: Any) -> list[Finding]:
    key = f"runtimes.{name}"
    if not isinstance(entry, Mapping):
        return [_finding("handler", key, False, "an entry", None, f'no runtime for "{name}" is configured')]
    kind, config = entry.get("runtime_type"), _table(entry, "options").get("ConfigPath")
    annotations, bare = entry.get("pod_annotations"), entry.get("privileged_without_host_devices")
    return [
        _finding("handler", f"{key}.runtime_type", isinstance(kind, str) and kind.startswith("io.containerd.kata"),
                 f"io.containerd.{name}.v2", kind, "containerd starts another shim"),
        _finding("handler-config", f"{key}.options.ConfigPath", isinstance(config, str) and config != "",
                 "a Kata configuration", config, "the shim takes its default configuration: no GPU, no TEE"),
        _finding("pod-annotations", f"{key}.pod_annotations",
                 isinstance(annotations, list) and POD_ANNOTATIONS in annotations, POD_ANNOTATIONS, annotations,
                 "init-data is dropped without a word: the guest has no broker URL"),
        _finding("host-devices", f"{key}.privileged_without_host_devices", bare is True, "true", bare,
                 "a privileged pod gets every host device, and the sandbox fails"),
    ]  # fmt: skip


def _finding(id_: str, key: str, ok: bool, expected: str, got: object, symptom: str) -> Finding:
    text = "not set" if got is None else str(got).lower() if isinstance(got, bool) else str(got)
    return Finding(id=id_, key=key, ok=ok, expected=expected, got=text, symptom=symptom)


def _table(node: Any, *path: str) -> Mapping[str, Any]:
    for part in path:
        node = node.get(part) if isinstance(node, Mapping) else None
    return node if isinstance(node, Mapping) else {}


def _merged(old: Any, new: Any) -> Any:
    if not isinstance(old, Mapping) or not isinstance(new, Mapping):
        return new
    return {**old, **{k: _merged(old.get(k), v) for k, v in new.items()}}
