"""The `[nvidia]` table of a verification policy."""

from collections.abc import Mapping
from datetime import timedelta
from types import MappingProxyType

from attestation.appraise.fields import Fields, bad
from attestation.verify.identity import FwidMatch
from attestation.verify.nv_policy import (
    MAX_TRAILING_ZEROS,
    AtLeast,
    Exactly,
    ExpiryMode,
    NvPolicy,
    OneOf,
    SignerExpiry,
    Unchecked,
    ValueRule,
    VersionRule,
)
from attestation.verify.revocation import RevocationPolicy, RevocationRule, RevocationStatus

_VBIOS_BASE = 16  # VBIOS versions are hexadecimal
_MAX_TLV_TYPE = 0xFFFF  # two bytes (gpu-attestation.md 1.3)
_DEFAULT = NvPolicy()


def read_nvidia(table: Fields) -> NvPolicy:
    """Rules for GPUs and NVSwitches. Raises Misconfigured with the path of the field."""
    fields = {
        "driver": _version(table, "driver_version", _DEFAULT.driver, 10),
        "vbios": _version(table, "vbios_version", _DEFAULT.vbios, _VBIOS_BASE),
        "fwid": _firmware_id(table),
        "chip_ids": _chip_ids(table),
        "unknown_opaque": _unknown_elements(table),
        "signer_expiry": _signer_expiry(table.table("signer_expiry")),
        "revocation": _revocation(table.table("revocation")),
        "rim_pins": _pins(table.table("rim_pins")),
        "retired_rims": table.hexes("retired_rims", frozenset()),
        "trailing_zeros": table.integer("trailing_zeros", 0, MAX_TRAILING_ZEROS),
    }
    return table.built(lambda: NvPolicy(**fields))  # type: ignore[arg-type]  # each reader gives its field's type


def _version(table: Fields, name: str, default: VersionRule, base: int) -> VersionRule:
    """`"x"`, `["x", "y"]`, `{ at_least = "x" }` or waived."""
    if (reason := table.waived(name)) is not None:
        return Unchecked(reason)
    if not table.has(name):
        return default
    value = table.take(name)
    if isinstance(value, dict) and set(value) == {"at_least"} and isinstance(value["at_least"], str):
        return table.checked(name, lambda: AtLeast(value["at_least"], base))
    listed = [value] if isinstance(value, str) else value
    if not isinstance(listed, list) or not listed or not all(isinstance(v, str) and v for v in listed):
        raise bad(table.path(name), '"x", ["x", "y"], { at_least = "x" } or { unchecked = "reason" }', value)
    return OneOf(frozenset(text.upper() for text in listed)) if base == _VBIOS_BASE else OneOf(frozenset(listed))


def _firmware_id(table: Fields) -> ValueRule[FwidMatch]:
    """Only absence can be waived: a firmware id that differs is false evidence under every policy."""
    if (reason := table.waived("firmware_id")) is not None:
        return Unchecked(reason)
    if (value := table.take("firmware_id")) not in (None, "match"):
        raise bad(table.path("firmware_id"), '"match" or { unchecked = "reason" }', value)
    return Exactly(FwidMatch.MATCH)


def _chip_ids(table: Fields) -> ValueRule[str]:
    if (reason := table.waived("chip_ids")) is not None:
        return Unchecked(reason)
    if not table.has("chip_ids"):
        return _DEFAULT.chip_ids
    return OneOf(frozenset(text.upper() for text in table.hexes("chip_ids", frozenset())))


def _unknown_elements(table: Fields) -> ValueRule[tuple[int, ...]]:
    """The unknown types that a report may carry, all of them or none; waived: any."""
    if (reason := table.waived("unknown_elements")) is not None:
        return Unchecked(reason)
    if not table.has("unknown_elements"):
        return _DEFAULT.unknown_opaque
    return Exactly(tuple(sorted(table.integers_or_none("unknown_elements", _MAX_TLV_TYPE))))


def _signer_expiry(table: Fields) -> SignerExpiry:
    """`first_seen` times are the collateral store's; whoever has it adds them."""
    mode = table.member("mode", ExpiryMode, ExpiryMode.STRICT)
    grace = table.days("grace_days", timedelta(0))
    return table.built(lambda: SignerExpiry(mode=mode, grace=grace))


def _revocation(table: Fields) -> RevocationPolicy:
    default = RevocationPolicy()
    rules = {name: _rule(table.table(name), getattr(default, name)) for name in ("rim", "device_ca", "device_leaf")}
    return table.built(lambda: RevocationPolicy(**rules))


def _rule(table: Fields, default: RevocationRule) -> RevocationRule:
    accept = table.members("accept", RevocationStatus, default.accept)
    max_age, grace = table.days("max_age_days", default.max_age), table.days("grace_days", default.grace)
    allow_hold = table.forbidden("hold", default=default.allow_hold)
    return table.built(
        lambda: RevocationRule(kind=default.kind, accept=accept, max_age=max_age, grace=grace, allow_hold=allow_hold)
    )


def _pins(table: Fields) -> Mapping[str, frozenset[str]]:
    return MappingProxyType({name: table.hexes(name, frozenset()) for name in table.names()})
