"""CDI specifications for the devices of a node: rendering, validation, stale and duplicate detection.

Device names come from the PCI address alone, so that a name never means another GPU after a rebind or reboot. The
declared version is the lowest that suffices: strict loaders refuse a newer one, and runtimes vendor old libraries.
Source: Container Device Interface specification 1.1.0 and its JSON schema.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kata_gpu.core.gpu import GpuDevice, Kind
from kata_gpu.errors import Malformed

VERSION = "0.5.0"  # device names may start with a digit; plain device nodes need no more
KINDS = {Kind.GPU: "cgpu.kata-gpu.dev/gpu", Kind.NVSWITCH: "cgpu.kata-gpu.dev/nvswitch"}
FILES = {Kind.GPU: "cgpu.kata-gpu.dev-gpu.json", Kind.NVSWITCH: "cgpu.kata-gpu.dev-nvswitch.json"}
MAX_SPEC_BYTES = 1 << 20  # a spec of 16 devices takes 3 KiB
_VERSIONS = ("0.3.0", "0.4.0", "0.5.0", "0.6.0", "0.7.0", "0.8.0", "1.0.0", "1.1.0")
_VENDOR = re.compile(r"[A-Za-z](?:[A-Za-z0-9._-]*[A-Za-z0-9])?")
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._:-]*[A-Za-z0-9])?")
_ANNOTATION = re.compile(r"(?:[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?/)?[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
_MAX_ANNOTATIONS = 256 << 10
_HOOKS = {"prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"}
_EDITS: dict[str, str] = {  # field -> version that introduced it
    "env": "0.3.0",
    "deviceNodes": "0.3.0",
    "mounts": "0.3.0",
    "hooks": "0.3.0",
    "intelRdt": "0.7.0",
    "additionalGids": "0.7.0",
    "netDevices": "1.1.0",
}
_NODE_FIELDS = {"path", "hostPath", "type", "major", "minor", "fileMode", "permissions", "uid", "gid"}


def node_paths(device: GpuDevice, *, iommufd: bool) -> tuple[str, ...]:
    """VFIO nodes of a device and its companions: cdevs with iommufd, else the group's node. Kata maps them to BDFs."""
    paths: dict[str, None] = {}
    for function in device.unit:
        if iommufd and function.vfio_cdev is not None:
            paths[f"/dev/vfio/devices/{function.vfio_cdev}"] = None
        elif not iommufd and function.on_vfio and function.iommu_group is not None:
            paths[f"/dev/vfio/{function.iommu_group}"] = None
    return tuple(paths)


def render_spec(
    kind: Kind, devices: Iterable[GpuDevice], *, iommufd: bool, frozen: Mapping[str, Sequence[str]] | None = None
) -> str | None:
    """The specification for devices of one kind; None where none is usable.

    `frozen` holds entries of running pods, by device name: they stay as they are whatever was observed.
    """
    entries = {d.name: list(node_paths(d, iommufd=iommufd)) for d in devices if d.kind is kind}
    entries |= {name: list(paths) for name, paths in (frozen or {}).items() if name.startswith(f"{kind}-")}
    entries = {name: paths for name, paths in entries.items() if paths}
    if not entries:
        return None
    spec = {
        "cdiVersion": VERSION,
        "kind": KINDS[kind],
        "devices": [
            {"name": name, "containerEdits": {"deviceNodes": [{"path": p, "permissions": "rw"} for p in entries[name]]}}
            for name in sorted(entries)
        ],
    }
    return json.dumps(spec, indent=2) + "\n"


def parse_spec(data: bytes | str, *, where: str) -> dict[str, Any]:
    """A specification that satisfies the CDI schema. Raises Malformed naming the field."""
    if len(data) > MAX_SPEC_BYTES:
        raise Malformed("cdi-size", "CDI file is too large", where=where, expected=f"at most {MAX_SPEC_BYTES} bytes")
    try:
        spec = json.loads(data)
    except (ValueError, RecursionError) as exc:
        raise Malformed("cdi-syntax", "not valid JSON", where=where, got=exc) from exc
    validate(spec, where=where)
    assert isinstance(spec, dict)
    return spec


def validate(spec: Any, *, where: str) -> None:
    """Check a parsed specification as a strict loader does, including that its version suffices."""
    check = _Checker(where)
    check.mapping(spec, "", {"cdiVersion", "kind", "devices", "containerEdits", "annotations"})
    check.that(spec.get("cdiVersion") in _VERSIONS, "cdiVersion", " or ".join(_VERSIONS), spec.get("cdiVersion"))
    vendor, slash, cdi_class = str(spec.get("kind", "")).partition("/")
    valid = bool(slash and _VENDOR.fullmatch(vendor) and _VENDOR.fullmatch(cdi_class))
    check.that(valid, "kind", "vendor/class", spec.get("kind"))
    if "." in cdi_class:
        check.needs("0.6.0", "kind")
    check.annotations(spec, "")
    devices = check.items(spec.get("devices"), "devices")
    check.that(bool(devices), "devices", "at least one device", "none")
    names = set()
    for index, device in enumerate(devices):
        at = f"devices[{index}]"
        check.mapping(device, at, {"name", "containerEdits", "annotations"})
        name = device.get("name")
        check.that(isinstance(name, str) and bool(_NAME.fullmatch(name)), f"{at}.name", "a device name", name)
        check.that(name not in names, f"{at}.name", "each name once", name)
        if not str(name)[0].isalpha():
            check.needs("0.5.0", f"{at}.name")
        names.add(name)
        check.annotations(device, at)
        check.edits(device.get("containerEdits"), f"{at}.containerEdits", empty=False)
    check.edits(spec.get("containerEdits", {}), "containerEdits", empty=True)
    check.version(str(spec["cdiVersion"]))


class _Checker:
    """Field checks that remember which version the features used need."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.required = _VERSIONS[0]
        self.because = ""

    def that(self, holds: bool, field: str, expected: str, got: object) -> None:
        if not holds:
            raise Malformed(
                "cdi-schema", "not a valid CDI field", where=f"{self.where}: {field}", expected=expected, got=got
            )

    def needs(self, version: str, field: str) -> None:
        if _VERSIONS.index(version) > _VERSIONS.index(self.required):
            self.required, self.because = version, field

    def version(self, declared: str) -> None:
        if _VERSIONS.index(declared) < _VERSIONS.index(self.required):
            raise Malformed(
                "cdi-version",
                f"{self.because} needs a newer version",
                where=f"{self.where}: cdiVersion",
                expected=f"at least {self.required}",
                got=declared,
            )

    def mapping(self, value: object, field: str, known: set[str]) -> None:
        self.that(isinstance(value, dict), field or "document", "an object", type(value).__name__)
        assert isinstance(value, dict)
        unknown = sorted(str(k) for k in set(value) - known)
        self.that(not unknown, f"{field}.{unknown[0]}" if unknown else field, "a known field", unknown)

    def items(self, value: object, field: str) -> list[Any]:
        self.that(isinstance(value, list), field, "a list", type(value).__name__)
        assert isinstance(value, list)
        return value

    def annotations(self, holder: dict[str, Any], field: str) -> None:
        if "annotations" not in holder:
            return
        at = f"{field}.annotations".lstrip(".")
        self.needs("0.6.0", at)
        values = holder["annotations"]
        self.that(isinstance(values, dict), at, "an object", type(values).__name__)
        size = 0
        for key, value in values.items():
            self.that(
                bool(_ANNOTATION.fullmatch(key)) and isinstance(value, str), f"{at}.{key}", "a qualified name", value
            )
            size += len(key) + len(value)
        self.that(size <= _MAX_ANNOTATIONS, at, f"at most {_MAX_ANNOTATIONS} bytes", size)

    def edits(self, edits: object, field: str, *, empty: bool) -> None:
        self.mapping(edits, field, set(_EDITS))
        assert isinstance(edits, dict)
        self.that(empty or any(edits.values()), field, "at least one edit", "none")
        for name in edits:
            self.needs(_EDITS[name], f"{field}.{name}")
        for value in self.items(edits.get("env", []), f"{field}.env"):
            self.that(isinstance(value, str) and value.find("=") > 0, f"{field}.env", "NAME=value", value)
        for index, node in enumerate(self.items(edits.get("deviceNodes", []), f"{field}.deviceNodes")):
            self.node(node, f"{field}.deviceNodes[{index}]")
        for index, mount in enumerate(self.items(edits.get("mounts", []), f"{field}.mounts")):
            at = f"{field}.mounts[{index}]"
            self.mapping(mount, at, {"hostPath", "containerPath", "options", "type"})
            for key in ("hostPath", "containerPath"):
                self.that(isinstance(mount.get(key), str) and bool(mount[key]), f"{at}.{key}", "a path", mount.get(key))
            if "type" in mount:
                self.needs("0.4.0", f"{at}.type")
        for index, hook in enumerate(self.items(edits.get("hooks", []), f"{field}.hooks")):
            at = f"{field}.hooks[{index}]"
            self.mapping(hook, at, {"hookName", "path", "args", "env", "timeout"})
            self.that(
                hook.get("hookName") in _HOOKS, f"{at}.hookName", " or ".join(sorted(_HOOKS)), hook.get("hookName")
            )
            self.that(
                isinstance(hook.get("path"), str) and bool(hook["path"]), f"{at}.path", "a path", hook.get("path")
            )

    def node(self, node: object, at: str) -> None:
        self.mapping(node, at, _NODE_FIELDS)
        assert isinstance(node, dict)
        path = node.get("path")
        self.that(isinstance(path, str) and path.startswith("/"), f"{at}.path", "an absolute path", path)
        self.that(node.get("type", "") in {"", "b", "c", "u", "p"}, f"{at}.type", "b, c, u or p", node.get("type"))
        permissions = node.get("permissions", "")
        valid = isinstance(permissions, str) and set(permissions) <= set("rwm")
        self.that(valid, f"{at}.permissions", "letters of rwm", permissions)
        if "hostPath" in node:
            self.needs("0.5.0", f"{at}.hostPath")


def device_nodes(spec: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Device name to host node paths, of a validated specification."""
    return {
        device["name"]: tuple(
            node.get("hostPath") or node["path"] for node in device["containerEdits"].get("deviceNodes", [])
        )
        for device in spec["devices"]
    }


def find_duplicates(specs: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[str, ...]]:
    """Fully qualified names that several files of one directory define: a runtime drops such a device."""
    owners: dict[str, list[str]] = {}
    for file, spec in specs.items():
        for device in spec["devices"]:
            owners.setdefault(f"{spec['kind']}={device['name']}", []).append(file)
    return {name: tuple(files) for name, files in sorted(owners.items()) if len(files) > 1}


def find_stale(spec: Mapping[str, Any], devices: Iterable[GpuDevice], *, iommufd: bool) -> dict[str, str]:
    """Entries of one of our own files that do not describe what is there now: name to reason."""
    current = {d.name: node_paths(d, iommufd=iommufd) for d in devices}
    stale = {}
    for name, paths in device_nodes(spec).items():
        if name not in current:
            stale[name] = "no such device"
        elif paths != current[name]:
            stale[name] = f"is {', '.join(current[name]) or 'not bound'}, file says {', '.join(paths)}"
    return stale
