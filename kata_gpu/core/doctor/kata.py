"""KAT and NET: Kata's files, configuration, objects in the cluster, leftovers; the key broker (node.md 1.6, 4)."""

import re
from collections.abc import Mapping

from kata_gpu.core.doctor.check import TEE, Outcome, Profile, Profiles, Section, Severity, bad, skip, unknown, verdict
from kata_gpu.core.doctor.containers import RUST_SUFFIX, handlers
from kata_gpu.core.doctor.facts import HostFacts, KataFacts
from kata_gpu.core.doctor.paths import POD_RESOURCES, SANDBOXES, VFIO, VFIO_DEVICES
from kata_gpu.core.kata.check import check as check_config
from kata_gpu.core.kata.settings import MAX_ROOT_PORTS, Needs, Tee
from kata_gpu.core.podresources import BRIDGE_SOCKET

KATA = Section("Kata")
check = KATA.check

QEMU_NAME = re.compile(r"qemu-system-[a-z0-9_]+(-[a-z0-9-]+)?")
_SANDBOX = re.compile(r"sandbox-([0-9a-f]{8,64})(,|$)")
_SOCKET_KEY = "runtime.pod_resource_api_sock"


def _wanted(f: HostFacts, p: Profiles) -> list[KataFacts]:
    names = {n for base in handlers(p) for n in (base, base + RUST_SUFFIX)}
    return [k for k in f.kata if k.handler in names]


@check(
    "KAT-01", "Kata's files", Severity.FATAL,
    expected="VMM, kernel, images and firmware that the configuration names exist and are not empty",
    symptom='the VM does not start: "no such file"',
    fix="reinstall kata-deploy 4.1.0 with the NVIDIA artefacts: `ls -l /opt/kata/share/kata-containers`",
)  # fmt: skip
def _artefacts(f: HostFacts, p: Profiles) -> Outcome:
    kata = _wanted(f, p)
    if not kata:
        return unknown("no Kata configuration of a wanted handler was found")
    return verdict(
        (f"{k.handler}: {path}" for k in kata for path, there in k.artefacts.items() if not there),
        f"{sum(len(k.artefacts) for k in kata)} files",
    )


@check(
    "KAT-02", "effective configuration", Severity.FATAL,
    expected="every requirement of `kata-gpu kata check` on base file and drop-ins together",
    symptom="depends on the key: no GPU in the VM, no attestation, or a VM that the host can debug",
    fix="`kata-gpu kata check --handler HANDLER` names each key; `kata-gpu kata render --write` writes the drop-in",
)  # fmt: skip
def _config(f: HostFacts, p: Profiles) -> Outcome:
    kata = _wanted(f, p)
    if not kata:
        return bad("no Kata configuration of a wanted handler was found")
    devices = max(1, min(len(f.devices) if Profile.PPCIE in p else 1, MAX_ROOT_PORTS))
    problems = []
    for k in kata:
        if k.effective is None:
            problems.append(f"{k.handler}: {k.problem}")
            continue
        tee = next((t for t in (Tee.SNP, Tee.TDX) if f"-{t}" in k.handler), Tee.NONE)
        own = f"{f.kubelet.root}/{POD_RESOURCES}"  # enough where only device plugins are used
        socket = own if k.get(_SOCKET_KEY) == own else BRIDGE_SOCKET
        needs = Needs(tee=tee, devices=devices, bridge_socket=socket)
        problems += [f"{k.handler}: {r.key} is {r.got}, expected {r.expected}" for r in check_config(k.effective, needs)
                     if not r.ok]  # fmt: skip
    return verdict(problems, ", ".join(k.handler for k in kata))


@check(
    "KAT-03", "RuntimeClass", Severity.FATAL,
    expected="a RuntimeClass for the handler whose nodeSelector this node satisfies",
    symptom='Pending: "node(s) didn\'t match Pod\'s node affinity/selector" (nvidia.com/cc.ready.state is '
    'often missing)',
    fix="`kubectl get runtimeclass -o wide` and `kubectl get node NODE --show-labels`; `kata-gpu node setup` "
    "writes the "
    "nvidia.com/cc.* labels",
)  # fmt: skip
def _class(f: HostFacts, p: Profiles) -> Outcome:
    if f.kubelet.runtime_classes is None:
        return unknown("the API server was not asked (needs kubectl and a kubeconfig)")
    problems = []
    for base in handlers(p):
        classes = [c for c in f.kubelet.runtime_classes if c.get("handler") in (base, base + RUST_SUFFIX)]
        if not classes:
            problems.append(f"no RuntimeClass with handler {base}")
            continue
        missing = [_unmatched(f, c) for c in classes]
        if f.kubelet.labels is not None and all(missing):
            problems.append(f"{base}: this node lacks {', '.join(missing[0])}")
    return verdict(problems, ", ".join(handlers(p)))


def _unmatched(f: HostFacts, runtime_class: Mapping[str, object]) -> list[str]:
    labels = f.kubelet.labels or {}
    scheduling = runtime_class.get("scheduling")
    selector = scheduling.get("nodeSelector") if isinstance(scheduling, Mapping) else None
    rows = selector.items() if isinstance(selector, Mapping) else ()
    return [f"{key}={value}" for key, value in sorted(rows) if labels.get(key) != value]


@check(
    "KAT-04", "no orphan VMs", Severity.WARNING,
    expected="every QEMU of Kata has its sandbox directory under /run/vc/sbs or /run/kata",
    symptom="iommufd BIND gives EINVAL: a QEMU that nobody owns holds the GPU (kata-containers#13179)",
    fix="make sure that `crictl pods` does not know the sandbox, then `kill PID` of that QEMU and `kata-gpu "
    "node status`",
)  # fmt: skip
def _orphans(f: HostFacts, _p: Profiles) -> Outcome:
    alive = {name for path in SANDBOXES for name in f.listings.get(path, ())}
    vms = 0
    problems = []
    for process in f.processes:
        found = [m for a in process.arguments if (m := _SANDBOX.search(a))] if QEMU_NAME.match(process.name) else []
        if found:
            vms += 1
            if found[0][1] not in alive:
                problems.append(f"{process} runs sandbox {found[0][1][:12]}, which is gone")
    return verdict(problems, f"{vms} VMs, all with their sandbox")


@check(
    "KAT-05", "CDI files agree with the host", Severity.WARNING,
    expected="every VFIO node in a CDI file exists and belongs to a bound device; no name is defined twice",
    symptom="the wrong GPU in the VM, or a failed injection",
    fix="`kata-gpu gc` renews our file; remove the other file in /var/run/cdi or /etc/cdi",
)  # fmt: skip
def _cdi(f: HostFacts, _p: Profiles) -> Outcome:
    problems = [f"{c.path}: {c.problem}" for c in f.cdi if c.problem]
    bound = {f"{VFIO_DEVICES}/{p.function.vfio_cdev}" for p in f.pci if p.function.vfio_cdev}
    bound |= {f"{VFIO}/{p.function.iommu_group}" for p in f.pci if p.function.on_vfio}
    owner: dict[str, str] = {}
    for file in f.cdi:
        for name, nodes in file.devices.items():
            if name in owner:
                problems.append(f"{name} is in {owner[name]} and {file.path}")
            owner.setdefault(name, file.path)
            problems += [f"{file.path}: {name} names {n}, which no bound device has" for n in nodes
                         if n.startswith(f"{VFIO}/") and n not in bound and n != f"{VFIO}/vfio"]  # fmt: skip
    return verdict(problems, f"{len(owner)} devices in {len(f.cdi)} files")


@check(
    "NET-01", "key broker reachable", Severity.WARNING, TEE,
    expected="the broker URLs of init-data and kernel_params answer on TCP from this node",
    symptom="CDH or AA time out in the guest (kata-containers#11623)",
    fix="`curl -v URL` from the node; check proxy, firewall and the URL in the init-data template",
)  # fmt: skip
def _broker(f: HostFacts, _p: Profiles) -> Outcome:
    if not f.brokers:
        return skip("no broker URL in the Kata configuration or /etc/kata-gpu/initdata")
    tried = [url for url in f.brokers if url in f.reach]
    if not tried:
        return unknown("not tried")
    return verdict((f"{url}: {f.reach[url]}" for url in tried if f.reach[url]), ", ".join(tried))
