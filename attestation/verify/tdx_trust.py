"""Whom to believe about TDX, where collateral comes from, and what an operator may demand (tee.md 2.4, 3.1)."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Protocol

from attestation.errors import Misconfigured

INTEL_ROOT = "44a0196b2b99f889b8e149e95b807a350e7424964399e885a7cbb8ccfab674d3"  # Intel SGX Root CA, 2018 to 2049


class TcbStatus(StrEnum):
    """Statuses of Intel's TCB evaluation; "no matching level" and revocation of keys raise instead."""

    UP_TO_DATE = "UpToDate"
    SW_HARDENING_NEEDED = "SWHardeningNeeded"
    CONFIGURATION_NEEDED = "ConfigurationNeeded"
    CONFIGURATION_AND_SW_HARDENING_NEEDED = "ConfigurationAndSWHardeningNeeded"
    OUT_OF_DATE = "OutOfDate"
    OUT_OF_DATE_CONFIGURATION_NEEDED = "OutOfDateConfigurationNeeded"
    TD_RELAUNCH_ADVISED = "TDRelaunchAdvised"
    TD_RELAUNCH_ADVISED_CONFIGURATION_NEEDED = "TDRelaunchAdvisedConfigurationNeeded"
    REVOKED = "Revoked"


@dataclass(frozen=True, slots=True, kw_only=True)
class IntelTrust:
    """SHA-256 of the root certificate; the certificate itself travels in every quote and only counts if it matches."""

    root_sha256: str = INTEL_ROOT
    simulated: bool = False

    @classmethod
    def production(cls) -> "IntelTrust":
        """Intel's root, https://certificates.trustedservices.intel.com/Intel_SGX_Provisioning_Certification_RootCA.pem."""
        return cls()


class IntelCollateral(Protocol):
    """Stored collateral; freshness and truth are judged by the verifier."""

    def tdx(self, fmspc: str) -> Sequence[bytes]:
        """Documents for a platform family (12 lower-case hex digits): JSON with the nine members of dcap-qvl."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StaticIntelCollateral:
    """Documents given by hand: for command lines and tests."""

    documents: Sequence[bytes] = ()

    def tdx(self, fmspc: str) -> Sequence[bytes]:  # noqa: ARG002
        """All of them; the verifier finds the one that fits."""
        return self.documents


@dataclass(frozen=True, slots=True, kw_only=True)
class TdxPolicy:
    """Defaults: current TCB only, no optional TD attributes, no dynamic platforms refused.

    DEBUG, reserved attribute bits and SEPT_VE_DISABLE have no switch; neither has a bound service TD.
    """

    statuses: frozenset[TcbStatus] = frozenset({TcbStatus.UP_TO_DATE})
    advisories: frozenset[str] | None = None  # advisories that may apply; None allows any that the status allows
    min_tcb_date: datetime | None = None
    min_evaluation: int = 0
    allow_pks: bool = False
    allow_key_locker: bool = False
    allow_perfmon: bool = False
    xfam_allowed: int = 0x0006DBE7
    mr_seams: frozenset[str] | None = None
    mr_owners: frozenset[str] | None = None
    mr_owner_configs: frozenset[str] | None = None
    platform_allow: frozenset[str] | None = None  # hex platform instance ids
    platform_deny: frozenset[str] = frozenset()
    dynamic_platform: bool = True
    cached_keys: bool = True
    smt: bool = True
    trailing_zeros: int = 4096  # what GetQuote pads its buffer with

    def __post_init__(self) -> None:
        if not self.statuses:
            raise Misconfigured("tdx-policy-empty", "an empty set allows nothing", where="tdx.statuses")
        if TcbStatus.REVOKED in self.statuses:
            raise Misconfigured("tdx-policy-revoked", "a revoked TCB cannot be allowed", where="tdx.statuses")
