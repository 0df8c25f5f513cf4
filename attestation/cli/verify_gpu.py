"""`kata-gpu-kbs verify gpu`: reports of GPUs and NVSwitches against chains, reference documents and a nonce."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import click

from attestation.cli.device_page import render_json, render_page, render_refusal
from attestation.cli.verification import (
    Asked,
    Basis,
    device_counts,
    judging_options,
    load_store,
    read_policy,
    warn_simulated,
    with_first_seen,
)
from attestation.clock import parse_time
from attestation.errors import AttestationError, ExitCode, Malformed, Misconfigured, Unavailable
from attestation.formats.certs import MAX_BUNDLE_BYTES
from attestation.formats.nv_evidence import MAX_JSON_BYTES, MAX_TEXT_BYTES, NvEvidence, decode_report, parse_evidence
from attestation.sources.atomic import read_bounded
from attestation.values import Level, Nonce

if TYPE_CHECKING:
    from attestation.appraise.verification import VerificationPolicy
    from attestation.sources.collateral import Collateral as Stored
    from attestation.verify.nv_gpu import Collateral
    from attestation.verify.nv_policy import NvPolicy, SignerExpiry
    from attestation.verify.nv_set import Expected
    from attestation.verify.revocation import RevocationPolicy
    from attestation.verify.rim import RimSource

_FILE = click.Path(path_type=Path)
_MAX_FIRST_SEEN_BYTES = 1024 * 1024  # 100 bytes per document


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked(Asked):
    """The command line, typed."""

    report: Path | None
    chain: Path | None
    evidence: Path | None
    nonce: str | None
    rim: tuple[Path, ...]
    trailing_zeros: int
    signer_expiry: str
    grace_days: int | None
    first_seen: Path | None
    expect: str | None

    @property
    def sets_rules(self) -> bool:
        """Whether options say what a policy file would."""
        return bool(self.trailing_zeros or self.grace_days or self.first_seen) or self.signer_expiry != "strict"


@click.command("gpu")
@click.option("--report", type=_FILE, help="Attestation report: hex text, base64 or raw bytes.")
@click.option("--chain", type=_FILE, help="Its certificate chain, PEM, leaf first, root last.")
@click.option("--evidence", type=_FILE, help="JSON evidence of one or more devices, instead of --report and --chain.")
@click.option(
    "--nonce", metavar="HEX", help="The nonce that you asked the device to sign. Without it: authentic at most."
)
@click.option("--rim", type=_FILE, multiple=True, help="Reference document, or a directory of them. Repeatable.")
@click.option("--collateral", type=_FILE, help="Collateral store: reference documents and revocation answers.")
@judging_options
@click.option("--trailing-zeros", type=click.IntRange(0, 64), default=0, show_default=True,
              help="Zero bytes to tolerate after the signature.")  # fmt: skip
@click.option("--signer-expiry", type=click.Choice(["strict", "grace", "valid-at-first-seen"]), default="strict",
              show_default=True, help="How expired signers of reference documents are judged.")  # fmt: skip
@click.option("--grace-days", type=click.IntRange(1, 3650), help="With --signer-expiry grace.")
@click.option("--first-seen", type=_FILE, help="JSON of SHA-256 to RFC 3339, with --signer-expiry valid-at-first-seen.")
@click.option("--expect", metavar="gpus=N,switches=M", help="How many devices there must be.")
def gpu(**options: object) -> int:
    """Verify NVIDIA GPUs and NVSwitches, offline.

    Level `authentic`: signed by the device under NVIDIA's root. Level `trusted`: also fresh, and every measurement
    equals a reference value that NVIDIA signed. Exit code 0 when the required level is reached, 1 when not, 2 when
    the input is malformed.

    \b
    Examples:
      kata-gpu-kbs verify gpu --report report.txt --chain chain.pem --rim rims/ --nonce 931d8d...
      kata-gpu-kbs verify gpu --evidence board.json --expect gpus=8,switches=4 --rim rims/ --nonce 4760e3...
    """
    asked = _Asked(**options)  # type: ignore[arg-type]  # click made them by these names
    now = asked.now
    nonce = Nonce.from_hex(asked.nonce) if asked.nonce is not None else None
    given, stored = read_policy(asked.policy, instead_of=asked.sets_rules), load_store(asked.collateral)
    collateral = _collateral(asked, given, stored, now)
    basis = Basis.of(given, stored.bundle if stored else None)
    if collateral.trust.simulated:
        warn_simulated()
    from attestation.verify.bundle import require_recent
    from attestation.verify.nv_set import verify_set

    try:
        recent = require_recent(basis.bundle, basis.rule, now=now)
        evidence = _evidence(asked)
        result = verify_set(evidence, expected=_expected(asked, evidence), nonce=nonce, collateral=collateral)
    except (Malformed, Unavailable) as exc:
        click.echo(render_refusal(exc, asked.output, now, basis))
        return exc.exit_code
    result = replace(result, findings=(*result.findings, recent))
    required = Level(asked.require)
    render = render_json if asked.output == "json" else render_page
    page = render(result, required, now, basis)
    click.echo(page)
    if result.level.at_least(required):
        return ExitCode.OK
    refusals: list[AttestationError] = [o.refusal for o in result.outcomes if o.refusal is not None]
    return max((r.exit_code for r in refusals), default=ExitCode.NEGATIVE)


def _evidence(asked: _Asked) -> Sequence[NvEvidence]:
    """Devices from either form of input; sizes are checked by the file system before anything is read."""
    if asked.evidence is not None and asked.report is None and asked.chain is None:
        return parse_evidence(_read(asked.evidence, MAX_JSON_BYTES))
    if asked.evidence is None and asked.report is not None and asked.chain is not None:
        report = decode_report(_read(asked.report, MAX_TEXT_BYTES))
        return [NvEvidence(report=report, chain=_read(asked.chain, MAX_BUNDLE_BYTES))]
    raise Misconfigured("evidence-options", "what to verify", expected="--report and --chain, or --evidence")


def _read(path: Path, max_bytes: int) -> bytes:
    return read_bounded(path, max_bytes)


def _expected(asked: _Asked, evidence: Sequence[NvEvidence]) -> "Expected":
    """What --expect says; without it, what the evidence holds, which proves nothing about what it should hold."""
    from attestation.values import Architecture
    from attestation.verify.nv_set import Expected

    if asked.expect is None:
        if len(evidence) > 1:
            click.echo("note: without --expect the number of devices is taken from the evidence itself", err=True)
        switches = sum(1 for one in evidence if _looks_like_switch(one, Architecture.LS10))
        return Expected(gpus=len(evidence) - switches, switches=switches)
    gpus, switches = device_counts(asked.expect)
    return Expected(gpus=gpus, switches=switches)


def _looks_like_switch(one: NvEvidence, switch: object) -> bool:
    """Only to count what came: by the envelope, else by the number of measurements in the report's header."""
    if one.arch is not None:
        return one.arch is switch
    from attestation.formats.nv_report import SWITCH_BLOCKS

    return one.report[41:42] == bytes([SWITCH_BLOCKS])


def _collateral(
    asked: _Asked, given: "VerificationPolicy | None", stored: "Stored | None", now: datetime
) -> "Collateral":
    """Everything that verification may look at. Revocation is demanded where a store can answer, else reported."""
    from attestation.cli.platform import nvidia_trust
    from attestation.sources.rim_files import RimFiles
    from attestation.verify.nv_gpu import Collateral, NvCache
    from attestation.verify.revocation import NoRevocation

    files = RimFiles.read(asked.rim)
    policy = with_first_seen(given.nvidia, stored) if given is not None else _policy(asked, stored)
    return Collateral(
        trust=nvidia_trust(asked.simulated_roots),
        rims=_Both(files, stored) if stored is not None else files,
        revocation=stored if stored is not None else NoRevocation(),
        policy=policy,
        now=now,
        cache=NvCache(),
        neighbours=[file.document for file in files.files],
    )


def _policy(asked: _Asked, stored: "Stored | None") -> "NvPolicy":
    from attestation.verify.nv_policy import NvPolicy
    from attestation.verify.revocation import RevocationPolicy

    first_seen = _first_seen(asked.first_seen) if asked.first_seen is not None else {}
    return NvPolicy(
        trailing_zeros=asked.trailing_zeros,
        signer_expiry=_signer_expiry(asked, first_seen | (stored.first_seen() if stored is not None else {})),
        revocation=RevocationPolicy() if stored is not None else _reported_only(),
    )


class _Both:
    """Documents that were named on the command line, and those of the store."""

    def __init__(self, *sources: "RimSource") -> None:
        self._sources = sources

    def rims(self, rim_id: str) -> list[bytes]:
        """All of them, each once."""
        return list(dict.fromkeys(d for source in self._sources for d in source.rims(rim_id)))


def _reported_only() -> "RevocationPolicy":
    """Without a store nothing can be known about revocation: `unknown` is accepted, and every result says so."""
    from attestation.verify.revocation import ChainKind, RevocationPolicy, RevocationRule, RevocationStatus

    accept = frozenset({RevocationStatus.GOOD, RevocationStatus.UNKNOWN})
    return RevocationPolicy(rim=RevocationRule(kind=ChainKind.RIM, accept=accept))


def _signer_expiry(asked: _Asked, first_seen: dict[str, datetime]) -> "SignerExpiry":
    from attestation.verify.nv_policy import ExpiryMode, SignerExpiry

    mode = ExpiryMode(asked.signer_expiry)
    if (mode is ExpiryMode.GRACE) != (asked.grace_days is not None):
        raise Misconfigured("signer-expiry", "--signer-expiry", expected="--grace-days with grace, and only with it")
    if mode is ExpiryMode.FIRST_SEEN and not first_seen:
        raise Misconfigured("signer-expiry", "no first-seen times", expected="--first-seen FILE or --collateral DIR")
    return SignerExpiry(mode=mode, grace=timedelta(days=asked.grace_days or 0), first_seen=first_seen)


def _first_seen(path: Path) -> dict[str, datetime]:
    try:
        value = json.loads(read_bounded(path, _MAX_FIRST_SEEN_BYTES))
    except (ValueError, RecursionError) as exc:
        raise Misconfigured("first-seen", "not JSON", where=str(path)) from exc
    if not isinstance(value, dict):
        raise Misconfigured("first-seen", "not an object", where=str(path), expected="SHA-256 to RFC 3339")
    return {str(digest).lower(): parse_time(str(text), where=str(path)) for digest, text in value.items()}
