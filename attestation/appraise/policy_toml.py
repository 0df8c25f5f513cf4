"""A release policy in TOML to conditions: strict, every field taken once, and unknown fields are errors."""

import hashlib
import re
import tomllib
from collections.abc import Mapping
from datetime import timedelta
from typing import TypeVar

from attestation.appraise.fields import Fields, bad
from attestation.appraise.policy import (
    MAX_POLICY_BYTES,
    TCB_PARTS,
    CpuConditions,
    GpuConditions,
    KeyConditions,
    ReleaseLimits,
    SwitchConditions,
)
from attestation.appraise.rules import MIN_REASON, AtLeast, Rule, Unchecked, parse_rule, version_key
from attestation.errors import Malformed, Misconfigured
from attestation.values import Architecture, BindingProfile, Digest, GpuMode, Level, Tee

MAX_EPOCH = 2**53  # every JSON and TOML reader has these integers
MAX_LEASE_S = 30 * 24 * 3600
MAX_DEVICES = 64  # as in the binding profiles
_CPU_CHIP = re.compile(r"[0-9A-Fa-f]{16,128}")  # CHIP_ID of SNP, platform instance id of TDX
_GPU_CHIP = re.compile(r"[0-9A-Fa-f]{16}")  # of the SPDM name in the device certificate
_E = TypeVar("_E", Tee, Architecture, GpuMode, BindingProfile)


def parse_conditions(text: str, *, where: str = "policy") -> KeyConditions:
    """A policy document to conditions, or Misconfigured with the path of the field."""
    raw = text.encode()
    if len(raw) > MAX_POLICY_BYTES:
        raise Misconfigured("policy-size", "policy is too long", where=where, expected=MAX_POLICY_BYTES, got=len(raw))
    try:
        top = Fields(tomllib.loads(text), "")
    except tomllib.TOMLDecodeError as exc:
        raise Misconfigured("policy-toml", f"not TOML: {exc}", where=where) from exc
    if (version := top.required("version")) != 1 or isinstance(version, bool):
        raise bad("version", "1", version)
    conditions = KeyConditions(
        cpu=_cpu(top.required_table("cpu")),
        init_data=_init_data(top.required_table("init_data")),
        gpus=_gpus(top.optional_table("gpus")),
        switches=_switches(top.optional_table("switches")),
        limits=_limits(top.optional_table("release")),
        epoch=top.integer("epoch", 0, MAX_EPOCH),
        binding_profile=_binding_profile(top.take("binding_profile")),
        digest=Digest("sha256", hashlib.sha256(raw).digest()),
    )
    top.finish()
    return conditions


def _cpu(table: Fields) -> CpuConditions:
    tees = _closed(table.required("tee"), Tee, "cpu.tee")
    measurement = table.rule("measurement")
    if isinstance(measurement, AtLeast):
        raise bad("cpu.measurement", "a value, a set, a reference or unchecked", "at_least")
    status = table.take("status")
    affirming: bool | Unchecked = True
    if status not in (None, "affirming"):
        rule = parse_rule(status, "cpu.status")
        if not isinstance(rule, Unchecked):
            raise bad("cpu.status", '"affirming" or {unchecked = "a reason"}', status)
        affirming = rule
    product, chip_id = table.optional_rule("product"), table.optional_rule("chip_id")
    minimum = table.optional_table("tcb_minimum")
    parts: list[tuple[str, int]] = []
    if minimum:
        parts = [(p, v) for p in TCB_PARTS if (v := minimum.integer_or_none(p, 255)) is not None]
        minimum.finish()
    table.finish()
    return CpuConditions(
        tees=tees,
        measurement=measurement,
        affirming=affirming,
        product=product,
        chip_id=chip_id,
        tcb_minimum=tuple(parts),
    )


def _gpus(table: Fields | None) -> GpuConditions | None:
    if table is None:
        return None
    number, at_least = _count(table)
    if number < 1:
        raise bad("gpus.count", "at least 1", number)
    if table.take("distinct") not in (None, True):
        raise bad("gpus.distinct", "true: two reports of one GPU never count as two", "false")
    level, reason = Level.TRUSTED, ""
    if (loose := table.take("level")) not in (None, "trusted"):
        inner = Fields(loose, "gpus.level")
        reason = inner.required("authentic_only")
        inner.finish()
        if not isinstance(reason, str) or len(reason) < MIN_REASON:
            raise bad("gpus.level", '"trusted" or {authentic_only = "a reason"}', loose)
        level = Level.AUTHENTIC
    conditions = GpuConditions(
        count=number,
        at_least=at_least,
        arch=_closed(table.required("arch"), Architecture, "gpus.arch"),
        mode=_closed(table.required("mode"), GpuMode, "gpus.mode"),
        driver_version=_version_rule(table, "driver_version", 10),
        vbios_version=_version_rule(table, "vbios_version", 16),
        level=level,
        level_reason=reason,
        identity=table.optional_rule("identity"),
        hosts=_hosts(table.optional_table("hosts")),
    )
    if GpuMode.UNKNOWN in conditions.mode:
        raise bad("gpus.mode", "on|ppcie: an unproven mode satisfies no policy", "unknown")
    table.finish()
    return conditions


def _count(table: Fields) -> tuple[int, bool]:
    """A number, or `{ at_least = number }`."""
    if not table.is_table("count"):
        return table.required_integer("count", MAX_DEVICES), False
    inner = table.required_table("count")
    number = inner.required_integer("at_least", MAX_DEVICES)
    inner.finish()
    return number, True


def _hosts(table: Fields | None) -> Mapping[str, frozenset[str]] | None:
    """`[gpus.hosts]`: which GPUs the operator put into which machine, in any case of the letters."""
    if table is None:
        return None
    hosts: dict[str, frozenset[str]] = {}
    for host in table.names():
        where, gpus = f"gpus.hosts.{host[:16]}", table.required(host)
        if not _CPU_CHIP.fullmatch(host) or host.lower() in hosts:
            raise bad(where, "a CPU chip id in hexadecimal, once", host)
        if not isinstance(gpus, list) or not all(isinstance(gpu, str) and _GPU_CHIP.fullmatch(gpu) for gpu in gpus):
            raise bad(where, "a list of GPU chip ids of 16 hexadecimal digits", gpus)
        hosts[host.lower()] = frozenset(gpu.upper() for gpu in gpus)
    if not hosts:
        raise bad("gpus.hosts", "at least one CPU chip id", "none")
    return hosts


def _version_rule(table: Fields, name: str, base: int) -> Rule:
    rule = table.rule(name)
    if isinstance(rule, AtLeast):
        try:
            version_key(rule.version, base)
        except Malformed as exc:
            raise bad(table.path(name), "a dotted version", rule.version) from exc
    return rule


def _switches(table: Fields | None) -> SwitchConditions | None:
    if table is None:
        return None
    conditions = SwitchConditions(
        count=table.required_integer("count", MAX_DEVICES), bios_version=table.optional_rule("bios_version")
    )
    table.finish()
    return conditions


def _init_data(table: Fields) -> tuple[Digest, ...] | Unchecked:
    accept, unchecked = table.take("accept"), table.take("unchecked")
    table.finish()
    if isinstance(unchecked, str) and len(unchecked) >= MIN_REASON and accept is None:
        return Unchecked(unchecked)
    if unchecked is None and isinstance(accept, list) and accept and all(isinstance(v, str) for v in accept):
        try:
            return tuple(Digest.parse(value) for value in accept)
        except Malformed as exc:
            raise bad("init_data.accept", exc.expected, exc.got) from exc
    raise Misconfigured(
        "policy-init-data",
        "the host chooses init-data, so a policy names the digests it accepts",
        where="init_data",
        expected='accept = ["sha256:..."] or unchecked = "a reason"',
    )


def _binding_profile(value: object) -> BindingProfile | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise bad("binding_profile", "|".join(BindingProfile), value)
    return _closed(value, BindingProfile, "binding_profile")[0]


def _limits(table: Fields | None) -> ReleaseLimits:
    if table is None:
        return ReleaseLimits()
    lease = table.integer_or_none("lease_s", MAX_LEASE_S)
    limits = ReleaseLimits(
        max_releases=table.integer_or_none("max_releases", 10**9),
        not_before=table.time_or_none("not_before"),
        not_after=table.time_or_none("not_after"),
        lease=timedelta(hours=1) if lease is None else timedelta(seconds=lease),
        max_leases=table.integer_or_none("max_leases", 10**6),
    )
    table.finish()
    return limits


def _closed(value: object, kind: type[_E], where: str) -> tuple[_E, ...]:
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not values:
        raise bad(where, "|".join(kind), value)
    try:
        return tuple(kind(item) for item in values)
    except ValueError as exc:
        raise bad(where, "|".join(kind), value) from exc
