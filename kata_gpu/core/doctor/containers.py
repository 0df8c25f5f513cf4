"""CRI: containerd, its handlers and CDI (node.md 1.6, 4.6)."""

from collections.abc import Mapping
from typing import Any

from kata_gpu.core.doctor.check import TEE, Outcome, Profiles, Section, Severity, bad, ok, unknown, verdict
from kata_gpu.core.doctor.facts import NOTHING, Document, HostFacts, KataFacts
from kata_gpu.core.doctor.paths import CDI_RUN, CONTAINERD_CONFIG, CONTAINERD_DROPINS, NYDUS_SOCKET
from kata_gpu.core.doctor.quantity import version
from kata_gpu.core.filekind import FileKind

CONTAINERS = Section("Container runtime")
check = CONTAINERS.check

PLAIN = "kata-qemu-nvidia-gpu"
RUST_SUFFIX = "-runtime-rs"
MIN_CONTAINERD = (2, 2, 0)  # erofs snapshotter and conf.d drop-ins
MIN_EROFS = (1, 8, 2)  # mkfs.erofs options that containerd's erofs snapshotter uses
KATA_ANNOTATIONS = "io.katacontainers.*"
NYDUS = "nydus-for-kata-tee"
_PLUGINS = ("io.containerd.cri.v1.runtime", "io.containerd.grpc.v1.cri")  # configuration version 3, version 2
_IMAGES = ("io.containerd.cri.v1.images", "io.containerd.grpc.v1.cri")
_FOREIGN = ("crio", "cri-dockerd")


def handlers(profiles: Profiles) -> tuple[str, ...]:
    """Handlers that these profiles need: the TEE ones, or the plain one where no TEE is asked for."""
    wanted = tuple(f"{PLAIN}-{tee}" for tee in sorted(TEE & profiles))
    return wanted or (PLAIN,)


def _dig(document: Document, *keys: str) -> Any:
    value: Any = document
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _cri(f: HostFacts, *keys: str) -> Any:
    """A setting of the CRI plugin, whichever version the configuration has."""
    values = (_dig(f.containerd.effective, "plugins", plugin, *keys) for plugin in _PLUGINS)
    return next((v for v in values if v is not None), None)


def runtimes(f: HostFacts) -> Mapping[str, Document]:
    """Runtime entries by handler name."""
    table = _cri(f, "containerd", "runtimes")
    rows = table.items() if isinstance(table, Mapping) else ()
    return {str(name): row for name, row in rows if isinstance(row, Mapping)}


def configured(f: HostFacts, profiles: Profiles) -> dict[str, Document]:
    """Entries that serve these profiles, of either Kata runtime."""
    present = runtimes(f)
    names = (n for base in handlers(profiles) for n in (base, base + RUST_SUFFIX))
    return {name: present[name] for name in names if name in present}


@check(
    "CRI-01", "containerd version", Severity.FATAL,
    expected="2.2.0 or newer",
    symptom="no erofs snapshotter, and drop-ins in /etc/containerd/conf.d are not read",
    fix="upgrade containerd: `containerd --version` must print 2.2.0 or newer",
)  # fmt: skip
def _version(f: HostFacts, _p: Profiles) -> Outcome:
    have = version((f.containerd.version or "").split(" ", 2)[-1])
    if have is None:
        return unknown("containerd does not tell its version")
    text = ".".join(map(str, have))
    return ok(text) if have >= MIN_CONTAINERD else bad(text)


@check(
    "CRI-02", "runtime handler", Severity.FATAL,
    expected="an entry for the handler, with runtime_type, and runtime_path and ConfigPath that exist",
    symptom='"no runtime for \\"kata-qemu-nvidia-gpu\\" is configured"',
    fix="install kata-deploy with the NVIDIA handlers, then `systemctl restart "
    "containerd`; "
    "`containerd config dump | grep -A9 kata-qemu-nvidia`",
    after=("CRI-05",),
)  # fmt: skip
def _handler(f: HostFacts, p: Profiles) -> Outcome:
    present = configured(f, p)
    problems = [f"no runtime {b}" for b in handlers(p) if not {b, b + RUST_SUFFIX} & present.keys()]
    for name, row in present.items():
        binary, config = row.get("runtime_path"), _dig(row, "options", "ConfigPath")
        if not row.get("runtime_type"):
            problems.append(f"{name}: no runtime_type")
        if isinstance(binary, str) and f.usable.get(binary) is False:
            problems.append(f"{name}: {binary} is not there")
        if isinstance(config, str) and f.usable.get(config) is False:
            problems.append(f"{name}: {config} is not there")
    return verdict(problems, ", ".join(present))


@check(
    "CRI-03", "annotation pass-through", Severity.FATAL,
    expected=f'pod_annotations has "{KATA_ANNOTATIONS}" and privileged_without_host_devices is true',
    symptom="the init-data annotation is dropped without a word: the guest has no broker URL",
    fix=f'set pod_annotations = ["{KATA_ANNOTATIONS}"] and privileged_without_host_devices = true for the handler in '
    f"{CONTAINERD_DROPINS}, then `systemctl restart containerd`",
    after=("CRI-02", "CRI-05"),
)  # fmt: skip
def _annotations(f: HostFacts, p: Profiles) -> Outcome:
    present = configured(f, p)
    if not present:
        return bad("no handler to pass annotations to")
    problems = []
    for name, row in present.items():
        allowed = row.get("pod_annotations")
        if not isinstance(allowed, list) or KATA_ANNOTATIONS not in allowed:
            problems.append(f"{name}: pod_annotations is {allowed or 'not set'}")
        if row.get("privileged_without_host_devices") is not True:
            problems.append(f"{name}: privileged_without_host_devices is not true")
    return verdict(problems, ", ".join(present))


@check(
    "CRI-04", "CDI directories", Severity.FATAL,
    expected=f"{CDI_RUN} exists; containerd has enable_cdi and lists it in cdi_spec_dirs",
    symptom='"unresolvable CDI devices nvidia.com/pgpu=vfio1" (kata-containers#12549)',
    fix=f"`mkdir -p {CDI_RUN}`; set enable_cdi = true and cdi_spec_dirs = ['/etc/cdi', '{CDI_RUN}'] in "
    f"{CONTAINERD_DROPINS}, then `systemctl restart containerd`",
)  # fmt: skip
def _cdi(f: HostFacts, _p: Profiles) -> Outcome:
    problems = []
    if f.nodes.get(CDI_RUN) is not FileKind.DIRECTORY:
        problems.append(f"{CDI_RUN} is not a directory")
    if _cri(f, "enable_cdi") is False:
        problems.append("enable_cdi = false")
    dirs = _cri(f, "cdi_spec_dirs")
    if isinstance(dirs, list) and not {CDI_RUN, "/run/cdi"} & {str(d).rstrip("/") for d in dirs}:
        problems.append(f"cdi_spec_dirs is {dirs}")
    return verdict(problems, CDI_RUN)


@check(
    "CRI-05", "drop-ins are imported", Severity.FATAL,
    expected=f"{CONTAINERD_CONFIG} imports the file that defines the Kata handlers",
    symptom="edits are ignored",
    fix=f'add imports = ["{CONTAINERD_DROPINS}/*.toml"] to {CONTAINERD_CONFIG}, then `systemctl restart containerd`',
)  # fmt: skip
def _imports(f: HostFacts, _p: Profiles) -> Outcome:
    if f.containerd.main is None and not f.containerd.effective:
        return unknown(f"{CONTAINERD_CONFIG} is not readable")
    ignored = [path for path in f.containerd.dropins if path not in f.containerd.imported]
    return verdict((f"{path} is not imported" for path in ignored), ", ".join(f.containerd.imported) or "no drop-ins")


@check(
    "CRI-06", "image pull in the guest", Severity.FATAL, TEE,
    expected=f"the proxy snapshotter {NYDUS} is alive with disable_snapshot_annotations = false, or Kata "
    "forces guest pull",
    symptom='the image is pulled on the host, "failed to mount", or layers are missing',
    fix=f"`systemctl enable --now {NYDUS}`, and disable_snapshot_annotations = false in {CONTAINERD_DROPINS}",
    after=("CRI-05",),
)  # fmt: skip
def _guest_pull(f: HostFacts, p: Profiles) -> Outcome:
    wanted = {n for base in handlers(p) for n in (base, base + RUST_SUFFIX)}
    kata = [k for k in f.kata if k.handler in wanted]
    if kata and all(_forces_guest_pull(k) for k in kata):
        return ok("Kata forces the pull in the guest")
    problems = []
    if _dig(f.containerd.effective, "proxy_plugins", NYDUS) is None:
        problems.append(f"containerd has no proxy plugin {NYDUS}")
    if f.nodes.get(NYDUS_SOCKET) is not FileKind.SOCKET:
        problems.append(f"{NYDUS_SOCKET} is not a socket")
    values = (_dig(f.containerd.effective, "plugins", i, "disable_snapshot_annotations") for i in _IMAGES)
    values_cri = (
        _dig(f.containerd.effective, "plugins", i, "containerd", "disable_snapshot_annotations") for i in _IMAGES
    )
    if not any(v is False for v in (*values, *values_cri)):
        problems.append("disable_snapshot_annotations is not false")
    return verdict(problems, NYDUS)


def _forces_guest_pull(kata: KataFacts) -> bool:
    features = kata.get("runtime.experimental")  # how runtime-rs spells it
    listed = isinstance(features, list) and "force_guest_pull" in features
    return listed or kata.get("runtime.experimental_force_guest_pull") is True


@check(
    "CRI-07", "erofs tools", Severity.WARNING,
    expected="mkfs.erofs 1.8.2 or newer, and erofs and dm_verity in the kernel",
    symptom="the GPU handler of runtime-rs cannot unpack images",
    fix="`apt-get install erofs-utils` and `modprobe -a erofs dm_verity`",
    after=("PLT-05",),
)  # fmt: skip
def _erofs(f: HostFacts, _p: Profiles) -> Outcome:
    text = f.tools.get("mkfs.erofs")
    have = version(text)
    if have is None:
        return bad("mkfs.erofs is not installed") if text == "" else unknown("mkfs.erofs does not tell its version")
    shown = ".".join(map(str, have))
    problems = [] if have >= MIN_EROFS else [f"mkfs.erofs {shown}"]
    config = f.kernel.config or NOTHING
    for option, module in (("EROFS_FS", "erofs"), ("DM_VERITY", "dm_verity")):
        if f.kernel.config is not None and config.get(option) not in {"y", "m"} and module not in f.kernel.present:
            problems.append(f"no {module} in the kernel")
    return verdict(problems, f"mkfs.erofs {shown}")


@check(
    "CRI-08", "containerd is the runtime", Severity.FATAL,
    expected="kubelet's runtime endpoint is containerd",
    symptom="the NVIDIA stack for Kata works with containerd only",
    fix="set containerRuntimeEndpoint: unix:///run/containerd/containerd.sock in /var/lib/kubelet/config.yaml, then "
    "`systemctl restart kubelet`",
)  # fmt: skip
def _runtime(f: HostFacts, _p: Profiles) -> Outcome:
    endpoint = f.kubelet.setting("containerRuntimeEndpoint", "container-runtime-endpoint")
    if endpoint is None:
        foreign = f.matching(*_FOREIGN)
        return bad(f"{foreign[0]} runs") if foreign else unknown("kubelet names no runtime endpoint")
    return ok(endpoint) if "containerd" in endpoint else bad(endpoint)
