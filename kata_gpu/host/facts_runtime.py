"""Facts about processes, kubelet, containerd and CDI."""

import fnmatch
import json
from collections.abc import Mapping, Sequence
from typing import Any

from kata_gpu.core import toml10
from kata_gpu.core.doctor.containers import MIN_CONTAINERD, PLAIN, RUST_SUFFIX
from kata_gpu.core.doctor.drivers import BINDERS, HOLDERS
from kata_gpu.core.doctor.facts import CdiFacts, ContainerdFacts, KubeletFacts, ProcessFacts
from kata_gpu.core.doctor.kata import QEMU_NAME
from kata_gpu.core.doctor.paths import (
    CDI_DIRS,
    CONTAINERD_CONFIG,
    CONTAINERD_DROPINS,
    KUBELET_ROOT,
    OTHER_KUBELETS,
    POD_LOGS,
)
from kata_gpu.core.doctor.quantity import memory_mib, version
from kata_gpu.errors import Malformed
from kata_gpu.host.look import Look

HANDLERS = tuple(f"{PLAIN}{tee}{rust}" for tee in ("", "-snp", "-tdx") for rust in ("", RUST_SUFFIX))
_COMM = 15  # the kernel cuts a process name here (TASK_COMM_LEN - 1)
_KUBELETS = ("kubelet", "k0s", "k3s", "k3s-server", "k3s-agent", "rke2", "kubelite")
_OTHERS = ("containerd", "crio", "cri-dockerd", "qgs", "qgsd")
_NAMES = {name[:_COMM]: name for name in (*HOLDERS, *BINDERS, *_KUBELETS, *_OTHERS)}
_DROPIN_DIRS = (CONTAINERD_DROPINS, "/opt/kata/containerd/config.d")  # containerd's own, kata-deploy's
_KUBECONFIG = "/etc/kubernetes/kubelet.conf"
_NODE_JSON = 'jsonpath={"{\\"labels\\":"}{.metadata.labels}{",\\"allocatable\\":"}{.status.allocatable}{"}"}'
_MAX_DROPINS = 64
_MAX_DEPTH = 16  # containerd's configuration nests seven deep
_MAX_FDS = 4096


def processes(look: Look) -> tuple[ProcessFacts, ...]:
    """Processes that a check asks about by name, and those that have an NVIDIA device open."""
    nvidia = any(n.startswith("nvidia") for n in look.names("/dev"))
    found = []
    for entry in look.names("/proc"):
        if not entry.isdecimal() or len(entry) > 10:
            continue
        comm = look.line(f"/proc/{entry}/comm") or ""
        name = _NAMES.get(comm, comm if QEMU_NAME.match(comm) else "")
        holds = _holds(look, entry) if nvidia else ()
        if not (name or holds):
            continue
        arguments = tuple((look.text(f"/proc/{entry}/cmdline", max_bytes=1 << 16) or "").rstrip("\0").split("\0"))
        if name == "containerd":
            limits = look.text(f"/proc/{entry}/limits", max_bytes=4096) or ""
            row = next((line for line in limits.splitlines() if line.startswith("Max locked memory")), "")
            memlock = row.removeprefix("Max locked memory").split()[0] if row.split()[3:] else None
        else:
            memlock = None
        found.append(ProcessFacts(pid=int(entry), name=name or comm, arguments=arguments, holds=holds, memlock=memlock))
    return tuple(sorted(found, key=lambda p: p.pid))


def _holds(look: Look, pid: str) -> tuple[str, ...]:
    targets = (look.link(f"/proc/{pid}/fd/{fd}") for fd in look.names(f"/proc/{pid}/fd")[:_MAX_FDS])
    # a bundle stores links relative, so the target is told by its end
    return tuple(sorted({f"/dev/{t.rpartition('/dev/')[2]}" for t in targets if t is not None and "/dev/nvidia" in t}))


def _flags(arguments: Sequence[str]) -> dict[str, str]:
    """`--name=value` and `--name value`; the last one wins."""
    found: dict[str, str] = {}
    for index, word in enumerate(arguments):
        if not word.startswith("-") or len(word) < 2:
            continue
        name, sep, value = word.lstrip("-").partition("=")
        following = arguments[index + 1] if index + 1 < len(arguments) else "-"
        found[name] = value if sep else "" if following.startswith("-") else following
    return found


def kubelet(look: Look, running: Sequence[ProcessFacts]) -> KubeletFacts:
    """Kubelet by its process, else by its files. The API server is asked only through kubelet's own kubeconfig."""
    process = next((p for p in running if p.name in _KUBELETS), None)
    flags = _flags(process.arguments) if process is not None else {}
    root, flavour = flags.get("root-dir") or KUBELET_ROOT, "kubelet"
    if "root-dir" not in flags and look.kind(f"{KUBELET_ROOT}/config.yaml") is None:
        for name, path in OTHER_KUBELETS.items():
            if look.kind(path) is not None:
                root, flavour = path, name
                break
    config = _yaml(look, flags.get("config") or f"{root}/config.yaml")
    classes, labels, allocatable = _cluster(look, flags)
    pods = [parts[1] for n in look.names(POD_LOGS) if len(parts := n.split("_")) == 3]
    return KubeletFacts(
        version=look.probes.command("kubelet", "--version") or None,
        root=root.rstrip("/"),
        flavour=flavour,
        config=config,
        flags=flags,
        runtime_classes=classes,
        labels=labels,
        allocatable_mib=allocatable,
        pods=tuple(pods),
    )


def _cluster(
    look: Look, flags: Mapping[str, str]
) -> tuple[tuple[dict[str, Any], ...] | None, dict[str, str] | None, int | None]:
    if look.kind(_KUBECONFIG) is None:
        return None, None, None
    ask = ("kubectl", "--kubeconfig", _KUBECONFIG, "--request-timeout=3s", "get")
    classes = _json(look.probes.command(*ask, "runtimeclasses", "-o", "json"))
    items = classes.get("items") if isinstance(classes, dict) else None
    name = flags.get("hostname-override") or (look.line("/proc/sys/kernel/hostname") or "").lower()
    node = _json(look.probes.command(*ask, "node", name, "-o", _NODE_JSON)) if name else None
    labels = node.get("labels") if isinstance(node, dict) else None
    resources = node.get("allocatable") if isinstance(node, dict) else None
    memory = resources.get("memory") if isinstance(resources, dict) else None
    return (
        tuple(i for i in items if isinstance(i, dict)) if isinstance(items, list) else None,
        {str(k): str(v) for k, v in labels.items()} if isinstance(labels, dict) else None,
        memory_mib(memory) if isinstance(memory, str) else None,
    )


def _json(text: str | None) -> Any:
    try:
        return json.loads(text or "")
    except (ValueError, RecursionError):
        return None


def _toml(text: str | None) -> dict[str, Any] | None:
    try:
        return None if text is None else toml10.loads(text)
    except ValueError:
        return None


def _yaml(look: Look, path: str) -> dict[str, Any] | None:
    text = look.text(path)
    if text is None:
        return None
    from kata_gpu.core import yaml12

    try:
        document = yaml12.load(text, where=path)
    except Malformed:
        return None
    return document if isinstance(document, dict) else None


def containerd(look: Look, running: Sequence[ProcessFacts]) -> ContainerdFacts:
    """containerd as it says it is configured (`config dump`), else as its files say."""
    process = next((p for p in running if p.name == "containerd"), None)
    flags = _flags(process.arguments) if process is not None else {}
    path = flags.get("config") or flags.get("c") or CONTAINERD_CONFIG
    release = look.probes.command("containerd", "--version") or None
    main = _toml(look.text(path))
    dropins: dict[str, dict[str, Any]] = {
        f"{d}/{n}": parsed
        for d in _DROPIN_DIRS
        for n in look.names(d)[:_MAX_DROPINS]
        if n.endswith(".toml") and (parsed := _toml(look.text(f"{d}/{n}"))) is not None and _kata_names(parsed)
    }
    dumped = _toml(look.probes.command("containerd", "--config", path, "config", "dump") or None)
    patterns = (main or {}).get("imports")
    if patterns is None:
        have = version((release or "").split(" ", 2)[-1])
        patterns = [f"{CONTAINERD_DROPINS}/*.toml"] if have is not None and have >= MIN_CONTAINERD else []
    matching = [p for p in dropins if isinstance(patterns, list) and any(_covers(str(g), p, path) for g in patterns)]
    if dumped is not None:
        effective = dumped
        known = _kata_names(dumped)
        imported = [p for p, parsed in dropins.items() if p in matching or _kata_names(parsed) <= known]
    else:
        effective = main or {}
        for dropin in matching:
            effective = _merged(effective, dropins[dropin])
        imported = matching
    return ContainerdFacts(
        version=release, main=main, effective=effective, dropins=tuple(dropins), imported=tuple(imported)
    )


def _covers(pattern: str, path: str, main: str) -> bool:
    if not pattern.startswith("/"):
        pattern = f"{main.rpartition('/')[0]}/{pattern}"
    return "/" not in path.removeprefix(pattern.rpartition("/")[0] + "/") and fnmatch.fnmatchcase(path, pattern)


def _merged(base: Mapping[str, Any], over: Mapping[str, Any], depth: int = 0) -> dict[str, Any]:
    """Tables merge, everything else is replaced, as containerd imports do."""
    result = dict(base)
    for key, value in over.items():
        old = result.get(key)
        if isinstance(old, dict) and isinstance(value, dict) and depth < _MAX_DEPTH:
            result[key] = _merged(old, value, depth + 1)
        else:
            result[key] = value
    return result


def _runtimes(document: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    plugins = document.get("plugins")
    for plugin in plugins.values() if isinstance(plugins, dict) else ():
        inner = plugin.get("containerd") if isinstance(plugin, dict) else None
        rows = inner.get("runtimes") if isinstance(inner, dict) else None
        if isinstance(rows, dict):
            found |= {str(k): v for k, v in rows.items() if isinstance(v, dict)}
    return found


def _kata_names(document: Mapping[str, Any]) -> frozenset[str]:
    return frozenset(n for n in _runtimes(document) if n.startswith("kata-"))


def kata_entries(facts: ContainerdFacts) -> tuple[tuple[str, Mapping[str, Any]], ...]:
    """Runtime entries of the NVIDIA handlers."""
    rows = _runtimes(facts.effective)
    return tuple((name, rows[name]) for name in HANDLERS if name in rows)


def files_of(entry: Mapping[str, Any]) -> tuple[str, ...]:
    """Files that a runtime entry names: the shim and its configuration."""
    options = entry.get("options")
    named = (entry.get("runtime_path"), options.get("ConfigPath") if isinstance(options, Mapping) else None)
    return tuple(n for n in named if isinstance(n, str))


def cdi(look: Look, limit: int) -> tuple[CdiFacts, ...]:
    """Every CDI file of the two standard directories."""
    return tuple(
        _cdi_file(look, f"{directory}/{name}")
        for directory in CDI_DIRS
        for name in look.names(directory)[:limit]
        if name.endswith((".json", ".yaml"))
    )


def _cdi_file(look: Look, path: str) -> CdiFacts:
    text = look.text(path)
    if text is None:
        return CdiFacts(path=path, problem="not readable")
    document = _json(text) if path.endswith(".json") else _yaml(look, path)
    kind = document.get("kind") if isinstance(document, dict) else None
    rows = document.get("devices") if isinstance(document, dict) else None
    if not isinstance(kind, str) or not isinstance(rows, list):
        return CdiFacts(path=path, problem="not a CDI file")
    devices = {}
    for row in rows:
        edits = row.get("containerEdits") if isinstance(row, dict) else None
        nodes = edits.get("deviceNodes") if isinstance(edits, dict) else None
        if isinstance(row, dict):
            paths = [
                n["path"] for n in (nodes if isinstance(nodes, list) else ()) if isinstance(n, dict) and "path" in n
            ]
            devices[f"{kind}={row.get('name')}"] = tuple(map(str, paths))
    return CdiFacts(path=path, devices=devices)
