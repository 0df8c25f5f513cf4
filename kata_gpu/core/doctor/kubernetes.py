"""K8S: kubelet and the node's resources (node.md 1.6)."""

import re

from kata_gpu.core.doctor.check import TEE, Outcome, Profiles, Section, Severity, bad, ok, unknown, verdict
from kata_gpu.core.doctor.facts import HostFacts
from kata_gpu.core.doctor.paths import CGROUP_V2, KUBELET_ROOT, POD_RESOURCES
from kata_gpu.core.doctor.quantity import duration_s, version
from kata_gpu.core.filekind import FileKind

KUBERNETES = Section("Kubernetes")
check = KUBERNETES.check

MIN_KUBERNETES = (1, 32)  # component matrix of NVIDIA's confidential containers 1.1.0
GET_DEFAULT = (1, 34)  # KubeletPodResourcesGet is on from here
MIN_REQUEST_S = 20 * 60  # image pull and attestation happen inside CreateContainer
OVERHEAD_MIB = 10240  # overhead.podFixed of the RuntimeClasses of kata-deploy 4.1.0
GUEST_MIB = 8192  # default_memory of the NVIDIA templates
_CONTAINERD_SOCKET = re.compile(r"(unix://)?/(var/)?run/containerd/containerd\.sock")


@check(
    "K8S-01", "Kubernetes version", Severity.FATAL,
    expected="1.32 or newer",
    symptom="unknown feature gates; kubelet does not start with our settings",
    fix="upgrade the node: `kubeadm upgrade node`, then `kubelet --version`",
)  # fmt: skip
def _version(f: HostFacts, _p: Profiles) -> Outcome:
    have = version(f.kubelet.version)
    if have is None:
        return unknown("kubelet does not tell its version")
    return ok(str(f.kubelet.version)) if have[:2] >= MIN_KUBERNETES else bad(str(f.kubelet.version))


@check(
    "K8S-02", "KubeletPodResourcesGet", Severity.FATAL,
    expected="on: the default from 1.34, explicit before",
    symptom='the pod stays ContainerCreating: "device cold plug failed ... PodResources API Get method disabled"',
    fix="set featureGates.KubeletPodResourcesGet: true in /var/lib/kubelet/config.yaml, then `systemctl "
    "restart kubelet`",
)  # fmt: skip
def _get(f: HostFacts, _p: Profiles) -> Outcome:
    gate = f.kubelet.gates.get("KubeletPodResourcesGet")
    if gate is not None:
        return ok("true") if gate else bad("false")
    have = version(f.kubelet.version)
    if have is None or f.kubelet.config is None:
        return unknown("kubelet's version or configuration is not readable")
    return ok("default of this version") if have[:2] >= GET_DEFAULT else bad("not set, and off by default before 1.34")


@check(
    "K8S-03", "RuntimeClassInImageCriApi", Severity.FATAL, TEE,
    expected="true, explicitly: the gate is alpha in every version",
    symptom="images are pulled with the wrong snapshotter where nydus, erofs and overlayfs coexist",
    fix="set featureGates.RuntimeClassInImageCriApi: true in /var/lib/kubelet/config.yaml, then `systemctl "
    "restart kubelet`",
)  # fmt: skip
def _image(f: HostFacts, _p: Profiles) -> Outcome:
    if f.kubelet.config is None and not f.kubelet.flags:
        return unknown("kubelet's configuration is not readable")
    gate = f.kubelet.gates.get("RuntimeClassInImageCriApi")
    return ok("true") if gate else bad("not set" if gate is None else "false")


@check(
    "K8S-04", "PodResources socket", Severity.FATAL,
    expected="a socket pod-resources/kubelet.sock below kubelet's root",
    symptom="Kata falls back to annotations and the GPU is missing in the VM",
    fix="`systemctl restart kubelet`; where kubelet lives elsewhere, set kubelet_root_dir and pod_resource_api_sock in "
    "the Kata configuration",
)  # fmt: skip
def _socket(f: HostFacts, _p: Profiles) -> Outcome:
    path = f"{f.kubelet.root}/{POD_RESOURCES}"
    return ok(path) if f.nodes.get(path) is FileKind.SOCKET else bad(f"{path} is not a socket")


@check(
    "K8S-05", "runtimeRequestTimeout", Severity.FATAL,
    expected="20m or more",
    symptom="pulling the image in the guest takes longer than kubelet waits: the sandbox is deleted, in a loop",
    fix="set runtimeRequestTimeout: 20m in /var/lib/kubelet/config.yaml, then `systemctl restart kubelet`",
)  # fmt: skip
def _timeout(f: HostFacts, _p: Profiles) -> Outcome:
    if f.kubelet.config is None and not f.kubelet.flags:
        return unknown("kubelet's configuration is not readable")
    text = f.kubelet.setting("runtimeRequestTimeout", "runtime-request-timeout")
    if text is None or text in {"0", "0s"}:
        return bad("not set: 2m")
    seconds = duration_s(text)
    if seconds is None:
        return bad(f"{text!r} is not a duration")
    return ok(text) if seconds >= MIN_REQUEST_S else bad(text)


@check(
    "K8S-06", "kubelet's usual place", Severity.WARNING,
    expected=f"kubelet's root is {KUBELET_ROOT} and its runtime endpoint is containerd's usual socket",
    symptom="tools look at the wrong paths and say nothing (gpu-operator#1323)",
    fix="set kubelet_root_dir and pod_resource_api_sock in a drop-in under config.d/ of the Kata configuration, and "
    "`kata-gpu agent --help` for ours",
)  # fmt: skip
def _place(f: HostFacts, _p: Profiles) -> Outcome:
    odd = [] if f.kubelet.root == KUBELET_ROOT else [f"{f.kubelet.flavour}: root {f.kubelet.root}"]
    endpoint = f.kubelet.setting("containerRuntimeEndpoint", "container-runtime-endpoint")
    if endpoint and "containerd" in endpoint and not _CONTAINERD_SOCKET.fullmatch(endpoint):
        odd.append(f"runtime endpoint {endpoint}")
    return verdict(odd, KUBELET_ROOT)


@check(
    "K8S-07", "memory headroom", Severity.WARNING,
    expected=f"allocatable memory for one pod: overhead {OVERHEAD_MIB} MiB and guest {GUEST_MIB} MiB",
    symptom="QEMU is killed for memory: the sandbox cgroup counts everything (sandbox_cgroup_only=true)",
    fix="use a larger node or lower default_memory; `kubectl describe node NODE | grep -A8 Allocatable`",
)  # fmt: skip
def _memory(f: HostFacts, _p: Profiles) -> Outcome:
    have = f.cpu.memory_mib if f.kubelet.allocatable_mib is None else f.kubelet.allocatable_mib
    if have is None:
        return unknown("neither the node object nor /proc/meminfo is readable")
    need = OVERHEAD_MIB + GUEST_MIB
    return ok(f"{have} MiB") if have >= need else bad(f"{have} MiB of {need} MiB")


@check(
    "K8S-08", "cgroup v2", Severity.FATAL,
    expected=f"{CGROUP_V2} exists",
    symptom="the NVIDIA profile starts guests with cgroup_no_v1=all; a v1 host is not supported",
    fix="add `systemd.unified_cgroup_hierarchy=1` to GRUB_CMDLINE_LINUX in /etc/default/grub, `update-grub`, reboot",
    reboot=True,
)  # fmt: skip
def _cgroup(f: HostFacts, _p: Profiles) -> Outcome:
    return ok("v2") if f.there(CGROUP_V2) else bad(f"{CGROUP_V2} does not exist")
