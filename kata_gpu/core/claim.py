"""ResourceClaims as this driver reads them: who asks, what was allocated to us, and what the configuration demands.

dra.md 1.3 (request), 2.3 (claim object), 6.2 (opaque configuration). Everything that other drivers own in a claim is
left out here, so that nothing later can touch it.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from kata_gpu.errors import Malformed, Misconfigured

DRIVER = "cgpu.kata-gpu.dev"
CDI_KIND = "cgpu.kata-gpu.dev/claim"
CONFIG_API_VERSION = "config.kata-gpu.dev/v1alpha1"
CONFIG_KIND = "ConfidentialGpuConfig"
MAX_RESULTS = 32  # results per claim, resource.k8s.io/v1
MAX_CONFIGS = 64  # configurations per allocation, resource.k8s.io/v1
_UID = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\Z")  # UUIDs in practice; also a safe file name
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?\Z")  # DNS subdomain


def is_uid(text: str) -> bool:
    """Whether `text` can be the UID of an object."""
    return _UID.match(text) is not None


def require_name(code: str, name: str, *, where: str) -> None:
    """Raise Malformed with `code` unless `name` is an object's: it becomes part of a URL."""
    if not _NAME.match(name):
        raise Malformed(
            code, "not a name of a Kubernetes object", where=where, expected="a DNS subdomain", got=repr(name)
        )


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class ClaimRef:
    """A claim as kubelet names it. The UID is the identity; names are reused."""

    namespace: str
    name: str
    uid: str

    def __post_init__(self) -> None:
        if not is_uid(self.uid):
            raise Malformed("claim-uid", "claim UID is not an identifier", expected="letters, digits, -", got=self.uid)
        for field, value in (("namespace", self.namespace), ("name", self.name)):
            require_name(f"claim-{field}", value, where=self.uid)

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name} ({self.uid})"


class Mode(StrEnum):
    """Mode that a configuration may demand of every device of a claim."""

    OFF = "off"
    ON = "on"
    DEVTOOLS = "devtools"
    PPCIE = "ppcie"


class ResetPolicy(StrEnum):
    """When a device is reset between two claims: on every release, or only when something failed."""

    ALWAYS = "always"
    ON_ERROR = "onError"


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuConfig:
    """`ConfidentialGpuConfig`, merged. None means that nobody demanded anything."""

    require_mode: Mode | None = None
    ppcie: bool | None = None
    reset_policy: ResetPolicy | None = None
    api_device: bool | None = None

    def under(self, stronger: "GpuConfig") -> "GpuConfig":
        """This configuration with every field that `stronger` sets taken from it."""
        changes = {f: v for f in self.__dataclass_fields__ if (v := getattr(stronger, f)) is not None}
        return replace(self, **changes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocated:
    """One device that the scheduler gave to this driver on this pool, with the configuration that applies to it."""

    request: str  # base name: `a` where the result says `a/b`
    pool: str
    device: str
    admin: bool
    share_id: str | None
    config: GpuConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Consumer:
    """Whom a claim is reserved for. `resource` is plural, with its API group in front where it has one: `pods`."""

    resource: str
    name: str
    uid: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """An allocated claim of ours. `devices` is in the order of the allocation and never empty."""

    ref: ClaimRef
    devices: tuple[Allocated, ...]
    consumer: Consumer


def _get(obj: Any, field: str, kind: Any, where: str, default: Any = None) -> Any:
    value = obj.get(field) if isinstance(obj, Mapping) else None
    if value is None:
        return default
    if not isinstance(value, kind):
        raise Malformed(
            "claim-shape",
            f"{field} has the wrong type",
            where=where,
            expected=kind.__name__,
            got=type(value).__name__,
        )
    return value


def parse_config(parameters: Any, *, where: str) -> GpuConfig:
    """Our opaque configuration, strictly: another kind or version, or an unknown field, is Malformed (dra.md 6.2)."""
    if not isinstance(parameters, Mapping):
        raise Malformed("config-shape", "parameters must be an object", where=where, got=type(parameters).__name__)
    for field, wanted in (("apiVersion", CONFIG_API_VERSION), ("kind", CONFIG_KIND)):
        if parameters.get(field) != wanted:
            raise Malformed(
                "config-kind", f"wrong {field}", where=where, expected=wanted, got=repr(parameters.get(field))
            )
    unknown = sorted(set(parameters) - {"apiVersion", "kind", *_FIELDS})
    if unknown:
        raise Malformed("config-field", f"unknown field {unknown[0]!r}", where=where, expected=", ".join(_FIELDS))
    values: dict[str, Any] = {}
    for name in parameters.keys() & _FIELDS.keys():
        field, allowed = _FIELDS[name]
        if not isinstance(parameters[name], (str, bool)) or parameters[name] not in allowed:
            expected = " or ".join(json.dumps(a) for a in allowed)
            raise Malformed(
                "config-value", f"wrong value of {name}", where=where, expected=expected, got=repr(parameters[name])
            )
        values[field] = allowed[parameters[name]]
    return GpuConfig(**values)


_BOOL: dict[str | bool, Any] = {True: True, False: False}
_FIELDS: dict[str, tuple[str, dict[str | bool, Any]]] = {
    "requireMode": ("require_mode", {str(m): m for m in Mode}),
    "ppcie": ("ppcie", _BOOL),
    "resetPolicy": ("reset_policy", {str(p): p for p in ResetPolicy}),
    "apiDevice": ("api_device", _BOOL),
}


def parse_claim(obj: Any, ref: ClaimRef, *, driver: str, pool: str) -> Claim:
    """The part of a ResourceClaim that belongs to `driver` on `pool`, for the claim that kubelet named.

    Raises Misconfigured when the object is another claim of that name, is not allocated, is reserved for nobody or for
    several, or holds nothing for us; Malformed when it is no claim or its configuration is not ours to the letter.
    """
    where = f"claim {ref.namespace}/{ref.name}"
    metadata = _get(obj, "metadata", Mapping, where, {})
    if metadata.get("uid") != ref.uid:
        raise Misconfigured(
            "claim-replaced",
            "another claim took this name",
            where=where,
            expected=f"uid {ref.uid}",
            got=metadata.get("uid"),
            hint="delete the pod; its claim no longer exists",
        )
    status = _get(obj, "status", Mapping, where, {})
    allocation = _get(status, "allocation", Mapping, where)
    if allocation is None:
        raise Misconfigured("claim-not-allocated", "the claim has no allocation", where=where)
    consumers = tuple(_consumer(row, where) for row in _rows(status, "reservedFor", where))
    if not consumers:
        raise Misconfigured("claim-not-reserved", "the claim is reserved for no pod", where=where)
    if len(consumers) > 1:
        raise Misconfigured(
            "claim-shared",
            "a VFIO device belongs to one VM, but several pods share this claim",
            where=where,
            expected="one consumer",
            got=", ".join(c.name for c in consumers),
            hint="use a ResourceClaimTemplate, so that each pod gets a claim of its own",
        )
    found = parse_allocation(allocation, driver=driver, pool=pool, where=where)
    if not found:
        raise Misconfigured(
            "claim-not-ours", "no device of this node in the claim", where=where, expected=f"{driver} on {pool}"
        )
    return Claim(ref=ref, devices=found, consumer=consumers[0])


def _consumer(row: Mapping[str, Any], where: str) -> Consumer:
    group = _get(row, "apiGroup", str, where, "")
    resource, name = _text(row, "resource", where), _text(row, "name", where)
    require_name("consumer-name", name, where=where)
    return Consumer(resource=f"{group}/{resource}" if group else resource, name=name, uid=_text(row, "uid", where))


def parse_allocation(allocation: Any, *, driver: str, pool: str, where: str) -> tuple[Allocated, ...]:
    """Results of ours in `status.allocation`, in order. Results of other drivers and pools are left out.

    Raises Malformed.
    """
    devices = _get(allocation, "devices", Mapping, where, {})
    results = _rows(devices, "results", where)
    if len(results) > MAX_RESULTS:
        raise Malformed("claim-results", "too many results", where=where, expected=MAX_RESULTS, got=len(results))
    own = [r for r in results if r.get("driver") == driver and r.get("pool") == pool]
    configs = _configs(devices, driver, where) if own else ()
    return tuple(
        Allocated(
            request=_text(r, "request", where).split("/", 1)[0],
            pool=pool,
            device=_text(r, "device", where),
            admin=r.get("adminAccess") is True,
            share_id=r.get("shareID"),
            config=_merged(configs, _text(r, "request", where)),
        )
        for r in own
    )


def _configs(devices: Mapping[str, Any], driver: str, where: str) -> tuple[tuple[tuple[str, ...], GpuConfig], ...]:
    """Configurations for `driver` in the order of their strength: all of classes first, then all of the claim.

    Classes are administrators', claims are tenants': a claim cannot waive the reset for whoever gets the device next,
    nor hand itself the node of iommufd.
    """
    rows = _rows(devices, "config", where)
    if len(rows) > MAX_CONFIGS:
        raise Malformed("claim-configs", "too many configurations", where=where, expected=MAX_CONFIGS, got=len(rows))
    out: dict[str, list[tuple[tuple[str, ...], GpuConfig]]] = {"FromClass": [], "FromClaim": []}
    for index, row in enumerate(rows):
        opaque = _get(row, "opaque", Mapping, where, {})
        if opaque.get("driver") != driver:
            continue
        source = row.get("source")
        if source not in out:
            raise Malformed("config-source", "unknown configuration source", where=where, got=repr(source))
        config = parse_config(opaque.get("parameters"), where=f"{where} config[{index}]")
        if source == "FromClaim" and (config.reset_policy is ResetPolicy.ON_ERROR or config.api_device):
            raise Malformed(
                "config-class-only",
                "only the administrator's DeviceClass may say resetPolicy onError or apiDevice true",
                where=f"{where} config[{index}]",
                expected="what neither the next tenant nor the host pays for",
            )
        out[source].append((tuple(_get(row, "requests", list, where, [])), config))
    return tuple(out["FromClass"] + out["FromClaim"])


def _merged(configs: Sequence[tuple[tuple[str, ...], GpuConfig]], request: str) -> GpuConfig:
    """Later wins, field by field. A configuration for `a` also covers the sub-request `a/b`."""
    merged = GpuConfig()
    for requests, config in configs:
        if not requests or request in requests or request.split("/", 1)[0] in requests:
            merged = merged.under(config)
    return merged


def _rows(obj: Any, field: str, where: str) -> list[Mapping[str, Any]]:
    rows: list[Mapping[str, Any]] = _get(obj, field, list, where, [])
    if not all(isinstance(r, Mapping) for r in rows):
        raise Malformed("claim-shape", f"{field} must hold objects", where=where)
    return rows


def _text(obj: Mapping[str, Any], field: str, where: str) -> str:
    value = obj.get(field)
    if not isinstance(value, str) or not value:
        raise Malformed("claim-shape", f"{field} must be text", where=where, got=repr(value))
    return value
