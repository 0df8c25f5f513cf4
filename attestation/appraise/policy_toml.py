"""A release policy in TOML to conditions: strict, every field taken once, and unknown fields are errors."""

import hashlib
import re
import tomllib
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from difflib import get_close_matches
from typing import Any, TypeVar

from attestation.appraise.fields import bad
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


class _Table:
    """A TOML table whose keys are taken one by one; what nobody took is an error."""

    def __init__(self, value: object, where: str) -> None:
        if not isinstance(value, dict):
            raise bad(where, "a table", value)
        self._left: dict[str, Any] = dict(value)
        self.where = where

    def take(self, name: str) -> Any:
        if name not in self._left:
            raise Misconfigured(
                "policy-field-missing",
                "a required field is missing",
                where=f"{self.where}.{name}".lstrip("."),
                got=", ".join(get_close_matches(name, self._left, n=1)),
            )
        return self._left.pop(name)

    def optional(self, name: str) -> Any:
        return self._left.pop(name, None)

    def table(self, name: str) -> "_Table":
        return _Table(self.take(name), f"{self.where}.{name}".lstrip("."))

    def optional_table(self, name: str) -> "_Table | None":
        return self.table(name) if name in self._left else None

    def rule(self, name: str) -> Rule:
        return parse_rule(self.take(name), f"{self.where}.{name}")

    def optional_rule(self, name: str) -> Rule | None:
        return self.rule(name) if name in self._left else None

    def names(self) -> tuple[str, ...]:
        return tuple(self._left)

    def finish(self) -> None:
        if self._left:
            raise Misconfigured(
                "policy-field-unknown", "unknown field", where=f"{self.where}.{min(self._left)}".lstrip(".")
            )


def parse_conditions(text: str, *, where: str = "policy") -> KeyConditions:
    """A policy document to conditions, or Misconfigured with the path of the field."""
    raw = text.encode()
    if len(raw) > MAX_POLICY_BYTES:
        raise Misconfigured("policy-size", "policy is too long", where=where, expected=MAX_POLICY_BYTES, got=len(raw))
    try:
        top = _Table(tomllib.loads(text), "")
    except tomllib.TOMLDecodeError as exc:
        raise Misconfigured("policy-toml", f"not TOML: {exc}", where=where) from exc
    if (version := top.take("version")) != 1 or isinstance(version, bool):
        raise bad("version", "1", version)
    conditions = KeyConditions(
        cpu=_cpu(top.table("cpu")),
        init_data=_init_data(top.table("init_data")),
        gpus=_gpus(top.optional_table("gpus")),
        switches=_switches(top.optional_table("switches")),
        limits=_limits(top.optional_table("release")),
        epoch=_int(top.optional("epoch") or 0, "epoch", MAX_EPOCH),
        binding_profile=_binding_profile(top.optional("binding_profile")),
        digest=Digest("sha256", hashlib.sha256(raw).digest()),
    )
    top.finish()
    return conditions


def _cpu(table: _Table) -> CpuConditions:
    tees = _closed(table.take("tee"), Tee, "cpu.tee")
    measurement = table.rule("measurement")
    if isinstance(measurement, AtLeast):
        raise bad("cpu.measurement", "a value, a set, a reference or unchecked", "at_least")
    status = table.optional("status")
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
        parts = [(p, _int(v, f"cpu.tcb_minimum.{p}", 255)) for p in TCB_PARTS if (v := minimum.optional(p)) is not None]
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


def _gpus(table: _Table | None) -> GpuConditions | None:
    if table is None:
        return None
    count = table.take("count")
    at_least = isinstance(count, dict)
    if at_least:
        inner = _Table(count, "gpus.count")
        count = inner.take("at_least")
        inner.finish()
    number = _int(count, "gpus.count", MAX_DEVICES)
    if number < 1:
        raise bad("gpus.count", "at least 1", number)
    if table.optional("distinct") not in (None, True):
        raise bad("gpus.distinct", "true: two reports of one GPU never count as two", "false")
    level, reason = Level.TRUSTED, ""
    if (loose := table.optional("level")) not in (None, "trusted"):
        inner = _Table(loose, "gpus.level")
        reason = inner.take("authentic_only")
        inner.finish()
        if not isinstance(reason, str) or len(reason) < MIN_REASON:
            raise bad("gpus.level", '"trusted" or {authentic_only = "a reason"}', loose)
        level = Level.AUTHENTIC
    conditions = GpuConditions(
        count=number,
        at_least=at_least,
        arch=_closed(table.take("arch"), Architecture, "gpus.arch"),
        mode=_closed(table.take("mode"), GpuMode, "gpus.mode"),
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


def _hosts(table: _Table | None) -> Mapping[str, frozenset[str]] | None:
    """`[gpus.hosts]`: which GPUs the operator put into which machine, in any case of the letters."""
    if table is None:
        return None
    hosts: dict[str, frozenset[str]] = {}
    for host in table.names():
        where, gpus = f"gpus.hosts.{host[:16]}", table.take(host)
        if not _CPU_CHIP.fullmatch(host) or host.lower() in hosts:
            raise bad(where, "a CPU chip id in hexadecimal, once", host)
        if not isinstance(gpus, list) or not all(isinstance(gpu, str) and _GPU_CHIP.fullmatch(gpu) for gpu in gpus):
            raise bad(where, "a list of GPU chip ids of 16 hexadecimal digits", gpus)
        hosts[host.lower()] = frozenset(gpu.upper() for gpu in gpus)
    if not hosts:
        raise bad("gpus.hosts", "at least one CPU chip id", "none")
    return hosts


def _version_rule(table: _Table, name: str, base: int) -> Rule:
    rule = table.rule(name)
    if isinstance(rule, AtLeast):
        try:
            version_key(rule.version, base)
        except Malformed as exc:
            raise bad(f"{table.where}.{name}", "a dotted version", rule.version) from exc
    return rule


def _switches(table: _Table | None) -> SwitchConditions | None:
    if table is None:
        return None
    conditions = SwitchConditions(
        count=_int(table.take("count"), "switches.count", MAX_DEVICES), bios_version=table.optional_rule("bios_version")
    )
    table.finish()
    return conditions


def _init_data(table: _Table) -> tuple[Digest, ...] | Unchecked:
    accept, unchecked = table.optional("accept"), table.optional("unchecked")
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


def _limits(table: _Table | None) -> ReleaseLimits:
    if table is None:
        return ReleaseLimits()
    most = table.optional("max_releases")
    most_leases, lease = table.optional("max_leases"), table.optional("lease_s")
    limits = ReleaseLimits(
        max_releases=None if most is None else _int(most, "release.max_releases", 10**9),
        not_before=_time(table.optional("not_before"), "release.not_before"),
        not_after=_time(table.optional("not_after"), "release.not_after"),
        lease=timedelta(hours=1) if lease is None else timedelta(seconds=_int(lease, "release.lease_s", MAX_LEASE_S)),
        max_leases=None if most_leases is None else _int(most_leases, "release.max_leases", 10**6),
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


def _int(value: object, where: str, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
        raise bad(where, f"0..{most}", value)
    return value


def _time(value: object, where: str) -> datetime | None:
    if value is None:
        return None
    if not isinstance(value, datetime) or value.tzinfo is None:
        raise bad(where, "a TOML time with offset", value)
    return value.astimezone(UTC)
