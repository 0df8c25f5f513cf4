"""What every verifier shares: options, the policy file, and the collateral store with the bundle behind it."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from attestation.cli.output import output_option
from attestation.clock import parse_time, time_text, utc_now
from attestation.errors import Misconfigured

if TYPE_CHECKING:
    from attestation.appraise.verification import VerificationPolicy
    from attestation.sources.collateral import Collateral
    from attestation.verify.bundle import BundleInfo, BundleRule
    from attestation.verify.nv_policy import NvPolicy

F = TypeVar("F", bound=Callable[..., Any])
FILE = click.Path(path_type=Path)
BUILTIN = "builtin"  # the test PKI that every copy of the forge has
simulated_roots_option = click.option(
    "--unsafe-trust-simulated-roots",
    "simulated_roots",
    type=click.Path(),
    metavar="[DIR]",
    is_flag=False,
    flag_value=BUILTIN,
    help="UNSAFE: trust the test PKI of `simulate roots DIR`, or the built-in one: anybody can forge evidence.",
)
_JUDGING = (
    click.option(
        "--verification-policy",
        "policy",
        type=FILE,
        metavar="FILE",
        help="Verification policy, TOML; instead of the options that set rules.",
    ),
    click.option("--at", metavar="RFC3339", help="Verify as of this time instead of now."),
    click.option(
        "--require",
        type=click.Choice(["authentic", "trusted"]),
        default="trusted",
        show_default=True,
        help="Level that counts as success: signatures alone, or policy met too.",
    ),
    output_option,
    simulated_roots_option,
)


def judging_options(command: F) -> F:
    """Policy, time, required level, form of the result and the unsafe roots: the same for every kind of evidence."""
    for option in reversed(_JUDGING):
        command = option(command)
    return command


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """The part of the command line that every verifier has, typed."""

    collateral: Path | None
    policy: Path | None
    at: str | None
    require: str
    output: str
    simulated_roots: str | None

    @property
    def now(self) -> datetime:
        """`--at`, or the clock: read it once."""
        return parse_time(self.at, where="--at") if self.at else utc_now()


def device_counts(text: str) -> tuple[int, int]:
    """`--expect gpus=N,switches=M` as GPUs and NVSwitches."""
    counts = {"gpus": 0, "switches": 0}
    for part in text.split(","):
        name, _, number = part.partition("=")
        if name not in counts or not (number.isascii() and number.isdigit() and len(number) <= 3):
            raise Misconfigured("expect", "not a number of devices", where="--expect", expected="gpus=8,switches=4",
                                got=repr(text[:60]))  # fmt: skip
        counts[name] = int(number)
    return counts["gpus"], counts["switches"]


def warn_simulated() -> None:
    """Each use says so."""
    click.echo("WARNING: simulated roots are trusted: the result says nothing about hardware.", err=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Basis:
    """What a result rests on besides the evidence: which bundle, and which rules were waived. Every result says so."""

    bundle: "BundleInfo | None" = None
    rule: "BundleRule | None" = None  # how old the bundle may be
    waivers: tuple[str, ...] = ()

    @classmethod
    def of(cls, policy: "VerificationPolicy | None", bundle: "BundleInfo | None") -> "Basis":
        """Of a policy file, where there is one, and the bundle of the store, where there is one."""
        if policy is None:
            return cls(bundle=bundle)
        return cls(bundle=bundle, rule=policy.bundle, waivers=policy.waivers)

    def to_json(self, now: datetime) -> dict[str, object]:
        """Members of the JSON result."""
        bundle = None if self.bundle is None else self.bundle.to_json(now)
        return {"collateral": {"bundle": bundle}, "waivers": list(self.waivers)}

    def lines(self, now: datetime) -> list[str]:
        """Lines of the page; none where there is nothing to say."""
        said = []
        if self.bundle is not None:
            days = (now - self.bundle.issued_at).days
            issued = time_text(self.bundle.issued_at)
            said.append(f"Collateral bundle {self.bundle.digest}, issued {issued}, {days} days old.")
        return said + [f"Not checked by policy: {waiver}" for waiver in self.waivers]


def load_store(path: Path | None) -> "Collateral | None":
    """The stored collateral, where a store is named."""
    if path is None:
        return None
    from attestation.sources.collateral_store import CollateralStore

    return CollateralStore(path).load()


def read_policy(path: Path | None, *, instead_of: bool = False) -> "VerificationPolicy | None":
    """The policy file. `instead_of`: options that set rules were given too, which would be two truths."""
    if path is None:
        return None
    if instead_of:
        raise Misconfigured(
            "policy-options",
            "rules in two places",
            expected="either --verification-policy or options that set rules",
            got=str(path),
        )
    from attestation.appraise.policy import MAX_POLICY_BYTES
    from attestation.appraise.verification import parse_verification_policy
    from attestation.sources.atomic import read_bounded

    return parse_verification_policy(read_bounded(path, MAX_POLICY_BYTES), where=str(path))


def with_first_seen(policy: "NvPolicy", stored: "Collateral | None") -> "NvPolicy":
    """The store knows when each reference document was first seen; `valid-at-first-seen` judges by it."""
    if stored is None:
        return policy
    seen = {**stored.first_seen(), **policy.signer_expiry.first_seen}
    return replace(policy, signer_expiry=replace(policy.signer_expiry, first_seen=seen))
