"""Gathers `HostFacts` through the file port and the probes. Everything is bounded; what cannot be read is None."""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import urlsplit

from kata_gpu.core.doctor import paths
from kata_gpu.core.doctor.facts import CpuFacts, HostFacts, KataFacts
from kata_gpu.core.kata.effective import Layer, merge, parse_layer
from kata_gpu.errors import KataGpuError
from kata_gpu.host import facts_kernel, facts_pci, facts_runtime
from kata_gpu.host.look import Look
from kata_gpu.ports import FileKind, HostFiles, Probes

_MAX_CDI_FILES = 256
_MAX_INITDATA = 64
_URL = re.compile(r"(?:cc_kbc::|\burl\s*=\s*[\"'])(https?://[^\s\"'\\,]{1,300})")
_PCCS = re.compile(r"\"?pccs_url\"?\s*[:=]\s*\"?(https?://[^\s\"',]{1,300})", re.IGNORECASE)
_INITDATA = "/etc/kata-gpu/initdata"
_ARTEFACTS = ("path", "kernel", "image", "initrd", "firmware")
_QEMU = "hypervisor.qemu"
_MAX_DROPINS = 64
_SHIM_FOLDERS = ("/runtimes/{shim}", "/runtime-rs", "")


def gather(files: HostFiles, probes: Probes) -> HostFacts:
    """One snapshot. Never raises for what is on the host: a file that cannot be read or parsed is a missing fact."""
    look = Look(files, probes)
    kernel = facts_kernel.kernel(look)
    pci, iommus, group_types = facts_pci.devices(look)
    processes = facts_runtime.processes(look)
    kubelet = facts_runtime.kubelet(look, processes)
    containerd = facts_runtime.containerd(look, processes)
    entries = facts_runtime.kata_entries(containerd)
    kata = tuple(_kata(look, handler, config) for handler, config in _configurations(look, entries))
    pccs_url = _PCCS.search(look.text(paths.QCNL) or "")
    pccs = pccs_url[1] if pccs_url else None
    brokers = _brokers(look, kata)
    nodes = dict.fromkeys((*paths.NODES, f"{kubelet.root}/{paths.POD_RESOURCES}"))
    for path in nodes:
        nodes[path] = look.kind(path)
    usable: dict[str, bool | None] = {paths.KVM: probes.opens(paths.KVM)}
    for _, entry in entries:
        for path in facts_runtime.files_of(entry):
            usable[path] = look.kind(path) is FileKind.FILE
    return HostFacts(
        cpu=_cpu(look),
        kernel=kernel,
        pci=pci,
        iommus=iommus,
        group_types=group_types,
        nodes=nodes,
        usable=usable,
        listings={path: look.names(path) for path in paths.LISTINGS},
        texts=_texts(look),
        misc=_misc(look),
        clock_synchronised=_clock(look),
        adopted=_adopted(look),
        last_failure=str(_record(look, paths.LAST_CHANGE).get("reason", "")),
        processes=processes,
        kubelet=kubelet,
        containerd=containerd,
        kata=kata,
        cdi=facts_runtime.cdi(look, _MAX_CDI_FILES),
        brokers=brokers,
        pccs=pccs,
        reach=_reach(look, (*brokers, *([pccs] if pccs else []))),
        tools={"mkfs.erofs": probes.command("mkfs.erofs", "--version"), "snphost": probes.command("snphost", "ok")},
    )


def _cpu(look: Look) -> CpuFacts:
    fields: dict[str, str] = {}
    for line in (look.text("/proc/cpuinfo", max_bytes=1 << 16) or "").splitlines():
        key, sep, value = line.partition(":")
        if sep:
            fields.setdefault(key.strip(), value.strip())
    flags = frozenset((fields.get("flags") or fields.get("Features") or "").split())
    arch = look.line("/proc/sys/kernel/arch") or ("x86_64" if "flags" in fields else "aarch64" if flags else "")
    smt = look.line("/sys/devices/system/cpu/smt/active")
    memory = re.search(r"^MemTotal:\s+(\d{1,15}) kB", look.text("/proc/meminfo") or "", re.MULTILINE)
    return CpuFacts(
        arch=arch,
        vendor=fields.get("vendor_id", ""),
        flags=flags,
        smt=None if smt is None else smt == "1",
        memory_mib=int(memory[1]) // 1024 if memory else None,
    )


def _texts(look: Look) -> dict[str, str]:
    """Configuration that other tools act on; of udev rules only those that name NVIDIA, of the rest everything."""
    found: dict[str, str] = {}
    for directory in paths.TEXT_DIRS:
        for name in look.names(directory):
            if not name.endswith((".conf", ".rules", ".xml")):
                continue
            text = look.text(f"{directory}/{name}", max_bytes=1 << 17)
            if text is not None and (not name.endswith(".rules") or "10de" in text.lower()):
                found[f"{directory}/{name}"] = text
    return found


def _misc(look: Look) -> dict[str, tuple[int | None, int]] | None:
    capacity, current = (look.text(f"/sys/fs/cgroup/misc.{name}") for name in ("capacity", "current"))
    if capacity is None:
        return None
    used = dict(_pairs(current or ""))
    return {
        key: (None if value == "max" else int(value), int(used.get(key, "0")))
        for key, value in _pairs(capacity)
        if value == "max" or value.isdecimal()
    }


def _pairs(text: str) -> Iterable[tuple[str, str]]:
    for line in text.splitlines():
        words = line.split()
        if len(words) == 2 and (words[1] == "max" or (words[1].isdecimal() and len(words[1]) < 20)):
            yield words[0], words[1]


def _clock(look: Look) -> bool | None:
    answer = look.probes.command("timedatectl", "show", "-p", "NTPSynchronized")
    if answer and answer.strip().startswith("NTPSynchronized="):
        return answer.strip() == "NTPSynchronized=yes"
    return True if look.kind("/run/systemd/timesync/synchronized") is not None else None


def _adopted(look: Look) -> frozenset[str]:
    """Addresses in the record of original drivers, if it is of this boot."""
    record = _record(look, paths.ORIGINS)
    rows = record.get("rows")
    boot = look.line(paths.BOOT_ID)
    return (
        frozenset(map(str, rows)) if isinstance(rows, dict) and boot and record.get("boot_id") == boot else frozenset()
    )


def _record(look: Look, path: str) -> dict[str, Any]:
    try:
        document = json.loads(look.text(path) or "{}")
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def _configurations(look: Look, entries: tuple[tuple[str, Mapping[str, Any]], ...]) -> Iterable[tuple[str, str]]:
    """Handlers with the configuration that containerd names, else the place where kata-deploy puts it."""
    named = {}
    for handler, entry in entries:
        options = entry.get("options")
        path = options.get("ConfigPath") if isinstance(options, Mapping) else None
        if isinstance(path, str):
            named[handler] = path
    if named:
        return named.items()
    found = []
    for handler in facts_runtime.HANDLERS:
        shim = handler.removeprefix("kata-")
        for folder in _SHIM_FOLDERS:
            path = f"{paths.KATA_DEFAULTS}{folder.format(shim=shim)}/configuration-{shim}.toml"
            if look.kind(path) is FileKind.FILE:
                found.append((handler, path))
                break
    return found


def _kata(look: Look, handler: str, path: str) -> KataFacts:
    dropins = f"{path.rpartition('/')[0]}/config.d"
    sources = [path, *(f"{dropins}/{n}" for n in look.names(dropins)[:_MAX_DROPINS] if not n.startswith("."))]
    try:
        layers: list[Layer] = []
        for source in sources:
            data = look.data(source)
            if data is None:
                return KataFacts(handler=handler, path=path, problem=f"{source} is not readable")
            layers.append(parse_layer(data, source))
        effective = merge(layers)
    except KataGpuError as exc:
        return KataFacts(handler=handler, path=path, problem=str(exc))
    values = {key: origin.value for key in _ARTEFACTS if (origin := effective.get(f"{_QEMU}.{key}")) is not None}
    named = [str(v) for v in values.values() if v]
    extensions = effective.get(f"{_QEMU}.guest_extension_images")
    if extensions is not None and isinstance(extensions.value, list):
        named += [str(e["path"]) for e in extensions.value if isinstance(e, dict) and e.get("path")]
    vmm = values.get("path")
    version = look.probes.command(vmm, "--version") if isinstance(vmm, str) and vmm.startswith("/") else None
    match = re.search(r"version (\d{1,3}\.\d{1,3}\.\d{1,5})", version or "")
    return KataFacts(
        handler=handler,
        path=path,
        effective=effective,
        artefacts={name: bool(look.data(name, max_bytes=1)) for name in named},
        qemu_version=match[1] if match else None,
    )


def _brokers(look: Look, kata: tuple[KataFacts, ...]) -> tuple[str, ...]:
    texts = [str(k.get(f"{_QEMU}.{key}") or "") for k in kata for key in ("kernel_params", "initdata")]
    texts += [look.text(f"{_INITDATA}/{name}") or "" for name in look.names(_INITDATA)[:_MAX_INITDATA]]
    return tuple(dict.fromkeys(url for text in texts for url in _URL.findall(text)))


def _reach(look: Look, urls: Iterable[str]) -> dict[str, str]:
    reached = {}
    for url in urls:
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port or (80 if parts.scheme == "http" else 443)
        except ValueError:
            reached[url] = "not a URL"
            continue
        answer = look.probes.connects(host or "", port)
        if answer is not None:
            reached[url] = answer
    return reached
