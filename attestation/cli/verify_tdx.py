"""`kata-gpu-kbs verify tdx`: an Intel TDX quote against stored collateral, policy and what it must commit to."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from attestation.cli.verification import FILE, Basis, load_store, read_policy, warn_simulated
from attestation.cli.verify_cpu import MAX_FILE_BYTES, CpuAsked, cpu_options, run_cpu
from attestation.errors import Misconfigured
from attestation.sources.atomic import read_bounded

if TYPE_CHECKING:
    from attestation.formats.tdx_evidence import TdxEvidence
    from attestation.sources.collateral import Collateral
    from attestation.verify.expected import CpuExpected
    from attestation.verify.tdx_trust import IntelCollateral, IntelTrust, TdxPolicy
    from attestation.verify.verified import VerifiedCpu

_STATUSES = (
    "SWHardeningNeeded",
    "ConfigurationNeeded",
    "ConfigurationAndSWHardeningNeeded",
    "OutOfDate",
    "OutOfDateConfigurationNeeded",
    "TDRelaunchAdvised",
    "TDRelaunchAdvisedConfigurationNeeded",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked(CpuAsked):
    """The command line, typed."""

    quote: Path | None
    event_log: Path | None
    collateral_files: tuple[Path, ...]
    statuses: tuple[str, ...]
    min_evaluation: int
    platforms: tuple[str, ...]

    @property
    def sets_rules(self) -> bool:
        """Whether options say what a policy file would."""
        return bool(self.statuses or self.min_evaluation or self.platforms)


@click.command("tdx")
@click.option("--quote", type=FILE, help="The quote, as the guest's buffer held it.")
@click.option("--event-log", type=FILE, help="CCEL event log that explains the runtime registers.")
@click.option("--collateral-file", "collateral_files", type=FILE, multiple=True, help="Collateral JSON of dcap-qvl.")
@cpu_options
@click.option("--allow-status", "statuses", type=click.Choice(_STATUSES), multiple=True,
              help="Accept this TCB status besides UpToDate.")  # fmt: skip
@click.option("--min-evaluation", type=click.IntRange(0), default=0, show_default=True,
              help="Least TCB evaluation data number.")  # fmt: skip
@click.option("--platform", "platforms", metavar="HEX", multiple=True, help="Accept only these platform instance ids.")
def tdx(**options: object) -> int:
    """Verify an Intel TDX quote, offline.

    Level `authentic`: signed by a genuine platform whose TCB is known. Level `trusted`: also allowed by policy,
    committed to --report-data, and of a --measurement (MRTD) that you know. Exit code 0 when the required level is
    reached, 1 when not.

    \b
    Examples:
      kata-gpu-kbs verify tdx --quote quote.dat --collateral-file collateral.json --require authentic
      kata-gpu-kbs verify tdx --evidence evidence.json --collateral store/ --report-data 9f2c... --measurement 5ab1...
    """
    asked = _Asked(**options)  # type: ignore[arg-type]  # click made them by these names
    now = asked.now
    from attestation.verify.tdx import verify_tdx

    given = read_policy(asked.policy, instead_of=asked.sets_rules)
    stored = load_store(asked.collateral)
    trust, collateral = _trust(asked, stored)
    policy = given.tdx if given else _policy(asked)

    def verify(expected: "CpuExpected") -> "tuple[VerifiedCpu, str]":
        cpu = verify_tdx(
            _evidence(asked), trust=trust, collateral=collateral, policy=policy, expected=expected, now=now
        )
        return cpu, f"Intel TDX, platform {cpu.chip_id or 'not named'}"

    return run_cpu(asked, Basis.of(given, stored.bundle if stored else None), now, verify)


def _evidence(asked: _Asked) -> "TdxEvidence":
    from attestation.formats.event_log import MAX_LOG_BYTES
    from attestation.formats.json_strict import parse_json, require_object
    from attestation.formats.tdx_evidence import TdxEvidence, read_tdx_evidence
    from attestation.formats.tdx_quote import MAX_QUOTE_BYTES

    if asked.evidence is not None and asked.quote is None:
        text = read_bounded(asked.evidence, MAX_FILE_BYTES)
        return read_tdx_evidence(
            require_object(parse_json(text, max_bytes=MAX_FILE_BYTES, what="evidence"), "evidence")
        )
    if asked.evidence is not None or asked.quote is None:
        raise Misconfigured("evidence-options", "what to verify", expected="--quote, or --evidence")
    log = None if asked.event_log is None else read_bounded(asked.event_log, MAX_LOG_BYTES)
    return TdxEvidence(quote=read_bounded(asked.quote, MAX_QUOTE_BYTES), event_log=log)


def _trust(asked: _Asked, stored: "Collateral | None") -> "tuple[IntelTrust, IntelCollateral]":
    from attestation.verify.tdx_trust import IntelTrust, StaticIntelCollateral

    if asked.simulated_roots is not None:
        from attestation.simulate.intel import simulated_intel_collateral, simulated_intel_trust

        warn_simulated()
        return simulated_intel_trust(), simulated_intel_collateral()
    if stored is not None:
        return IntelTrust.production(), stored
    documents = tuple(read_bounded(path, MAX_FILE_BYTES) for path in asked.collateral_files)
    return IntelTrust.production(), StaticIntelCollateral(documents=documents)


def _policy(asked: _Asked) -> "TdxPolicy":
    from attestation.verify.tdx_trust import TcbStatus, TdxPolicy

    return TdxPolicy(
        statuses=frozenset({TcbStatus.UP_TO_DATE, *map(TcbStatus, asked.statuses)}),
        min_evaluation=asked.min_evaluation,
        platform_allow=frozenset(platform.lower() for platform in asked.platforms) or None,
    )
