"""What an operator may demand of a genuine TDX quote. One finding per rule; nothing here raises (tee.md 2.1, 2.4)."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime

from attestation.findings import Finding, Result, failed, passed
from attestation.formats.tdx_quote import TdxQuote
from attestation.verify.tdx_trust import TcbStatus, TdxPolicy

DEBUG, SEPT_VE_DISABLE, PKS, KEY_LOCKER, PERFMON = 1 << 0, 1 << 28, 1 << 30, 1 << 31, 1 << 63
_KNOWN = DEBUG | SEPT_VE_DISABLE | PKS | KEY_LOCKER | PERFMON
XFAM_FIXED_ONE = 0x3  # x87 and SSE are always there


@dataclass(frozen=True, slots=True, kw_only=True)
class TdxFacts:
    """A quote whose signatures hold, and what Intel's collateral says about its platform."""

    quote: TdxQuote
    status: TcbStatus
    advisories: tuple[str, ...]
    tcb_date: str  # RFC 3339, from the matched level
    evaluation: int
    platform_instance: str  # hex; empty for single-package platforms
    flags: Mapping[str, str]  # dynamic_platform, cached_keys, smt_enabled: "True", "False" or "Undefined"


def unknown_attributes(attributes: int) -> tuple[int, ...]:
    """Set TD attribute bits without a meaning today; tomorrow's module may give them one."""
    return tuple(bit for bit in range(64) if (attributes & ~_KNOWN) >> bit & 1)


def check_tdx_policy(facts: TdxFacts, policy: TdxPolicy) -> tuple[Finding, ...]:
    """One finding per rule, in a fixed order."""
    return (*_tcb(facts, policy), *_td(facts, policy), *_platform(facts, policy))


def _judge(check: str, holds: bool, *, expected: object, got: object) -> Finding:
    return passed(check, got, expected=expected) if holds else failed(check, check, expected=expected, got=got)


def _tcb(facts: TdxFacts, policy: TdxPolicy) -> Iterator[Finding]:
    yield _judge("tdx-tcb-status", facts.status in policy.statuses, expected=sorted(policy.statuses), got=facts.status)
    if policy.advisories is not None:
        extra = sorted(set(facts.advisories) - policy.advisories)
        yield _judge("tdx-advisories", not extra, expected=sorted(policy.advisories), got=extra or "none other")
    if policy.min_tcb_date is not None:
        date = datetime.fromisoformat(facts.tcb_date)
        yield _judge("tdx-tcb-date", date >= policy.min_tcb_date, expected=policy.min_tcb_date, got=facts.tcb_date)
    yield _judge(
        "tdx-evaluation",
        facts.evaluation >= policy.min_evaluation,
        expected=f">= {policy.min_evaluation}",
        got=facts.evaluation,
    )


def _td(facts: TdxFacts, policy: TdxPolicy) -> Iterator[Finding]:
    td = facts.quote.td
    for check, allowed, bit in (
        ("tdx-pks", policy.allow_pks, PKS),
        ("tdx-key-locker", policy.allow_key_locker, KEY_LOCKER),
        ("tdx-perfmon", policy.allow_perfmon, PERFMON),
    ):
        value = bool(td.td_attributes & bit)
        yield _judge(check, allowed or not value, expected="any" if allowed else "off", got="on" if value else "off")
    xfam = td.xfam & XFAM_FIXED_ONE == XFAM_FIXED_ONE and not td.xfam & ~policy.xfam_allowed
    yield _judge("tdx-xfam", xfam, expected=f"within {policy.xfam_allowed:#x}", got=hex(td.xfam))
    for check, values, raw in (
        ("tdx-mr-seam", policy.mr_seams, td.mr_seam),
        ("tdx-mr-owner", policy.mr_owners, td.mr_owner),
        ("tdx-mr-owner-config", policy.mr_owner_configs, td.mr_owner_config),
    ):
        if values is not None:
            yield _judge(check, raw.hex() in values, expected=sorted(values), got=raw.hex())


def _platform(facts: TdxFacts, policy: TdxPolicy) -> Iterator[Finding]:
    instance = facts.platform_instance
    if policy.platform_allow is not None:
        yield _judge(
            "tdx-platform-allow", instance in policy.platform_allow, expected="a listed platform", got=instance
        )
    yield _judge("tdx-platform-deny", instance not in policy.platform_deny, expected="no denied platform", got=instance)
    for check, allowed, name in (
        ("tdx-dynamic-platform", policy.dynamic_platform, "dynamic_platform"),
        ("tdx-cached-keys", policy.cached_keys, "cached_keys"),
        ("tdx-smt", policy.smt, "smt_enabled"),
    ):
        flag = facts.flags[name]
        if allowed:
            yield Finding(check=check, result=Result.PASS, expected="any", got=flag)
        else:
            yield _judge(check, flag == "False", expected="False", got=flag)
