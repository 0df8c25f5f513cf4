"""`kata-gpu-kbs verify evidence`: everything that a guest sent to a key broker, verified as one platform."""

from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from attestation.cli.verification import FILE, Asked, Basis, device_counts, judging_options, read_policy, warn_simulated
from attestation.errors import Malformed
from attestation.findings import Result
from attestation.sources.atomic import read_bounded
from attestation.values import BindingProfile, JsonObject, Level, Tee

if TYPE_CHECKING:
    from attestation.appraise.devices import DeviceRequirement
    from attestation.cli.evidence_page import Page
    from attestation.ops.local_verifier import LocalVerifier
    from attestation.verify.platform import PlatformEvidence
    from attestation.verify.verified import BoundPlatform


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked(Asked):
    """The command line, typed."""

    body: Path
    tee: str
    nonce: str
    profile: str
    expect: str
    measurements: tuple[str, ...]
    sample: bool


@click.command("evidence")
@click.option("--body", type=FILE, required=True, help="JSON body of POST /kbs/v0/attest.")
@click.option("--tee", type=click.Choice([t.value for t in Tee]), default="snp", show_default=True, help="CPU TEE.")
@click.option("--nonce", metavar="BASE64", required=True, help="The nonce that the session issued.")
@click.option("--binding-profile", "profile", type=click.Choice([p.value for p in BindingProfile]), show_default=True,
              default=BindingProfile.TRUSTEE_RCAR.value, help="Binding that the session agreed on.")  # fmt: skip
@click.option("--expect", metavar="gpus=N,switches=M", required=True, help="How many devices there must be.")
@click.option("--measurement", "measurements", metavar="HEX", multiple=True, help="Launch measurement to accept.")
@click.option("--collateral", type=FILE, help="Collateral store (a directory).")
@judging_options
@click.option("--unsafe-sample-tee", "sample", is_flag=True, help="Accept evidence that anybody can make.")
def evidence(**options: object) -> int:
    """Verify a guest's CPU and GPU evidence together, offline.

    The CPU report must commit to the nonce, the TEE key and the exact GPU evidence; every GPU must answer the nonce
    that follows from them. That CPU and GPU are in one machine is not proven, and the claims say so.

    \b
    Example:
      kata-gpu-kbs verify evidence --body attest.json --nonce AAEC... --expect gpus=8,switches=4 \\
        --measurement 5ab1... --collateral store/
    """
    asked = _Asked(**options)  # type: ignore[arg-type]  # click made them by these names
    now = asked.now
    if asked.simulated_roots is not None or asked.sample:
        warn_simulated()
    from attestation.cli.evidence_page import judged
    from attestation.cli.platform import platform_verifier

    wanted, policy = _requirement(asked.expect), read_policy(asked.policy)
    verifier = platform_verifier(
        collateral=asked.collateral, simulated_roots=asked.simulated_roots, sample=asked.sample, policy=policy
    )
    basis = Basis.of(policy, verifier.collateral.bundle)
    text, code = judged(asked, lambda: _verify(asked, verifier, wanted, now), now, basis)
    click.echo(text)
    return code


def _verify(asked: _Asked, verifier: "LocalVerifier", wanted: "DeviceRequirement", now: datetime) -> "Page":
    from attestation.appraise.devices import check_devices
    from attestation.cli.device_page import device_json
    from attestation.cli.evidence_page import Page, check_measurement
    from attestation.verify.bind import with_guest_measured
    from attestation.verify.platform import Expected, verify_platform

    platform = verify_platform(
        _evidence(asked),
        session=Expected(tee=Tee(asked.tee), nonce=asked.nonce, profile=BindingProfile(asked.profile)),
        trust=verifier.trust,
        collateral=verifier.collateral,
        policy=verifier.policy,
        now=now,
    )
    measurement = check_measurement(platform.cpu, asked.measurements)
    measured = measurement.result is Result.PASS
    platform = replace(platform, binding=with_guest_measured(platform.binding, measured))
    findings = (
        *platform.findings,
        measurement,
        *check_devices(platform, wanted),
    )
    levels = [device.level for device in platform.devices]
    best = Level.TRUSTED if all(level is Level.TRUSTED for level in levels) else Level.AUTHENTIC
    return Page(
        title=f"{platform.cpu.tee.upper()} {platform.cpu.product} with {len(levels)} devices",
        findings=findings,
        claims=_claims(platform),
        devices=[device_json(device) for device in platform.devices],
        best=best,
    )


def _claims(platform: "BoundPlatform") -> JsonObject:
    from attestation.appraise.facts import PlatformFacts

    return {
        str(platform.cpu.tee): platform.cpu.claims,
        "binding": platform.binding,
        "init_data_claims": platform.init_data_claims,
        "facts": PlatformFacts.of(platform).to_json(),  # what `policy test` judges
    }


def _evidence(asked: _Asked) -> "PlatformEvidence":
    from pydantic import ValidationError

    from attestation.service.wire import MAX_BODY_BYTES, AttestRequest
    from attestation.verify.platform import PlatformEvidence

    try:
        request = AttestRequest.model_validate_json(read_bounded(asked.body, MAX_BODY_BYTES))
    except ValidationError as exc:
        first = exc.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise Malformed("attest-body", first["msg"], where=where or str(asked.body)) from exc
    sent = request.submission()
    return PlatformEvidence(
        tee=Tee(asked.tee),
        primary=sent.primary,
        additional=sent.additional,
        nonce=sent.nonce,
        tee_jwk=sent.tee_key.jwk,
        init_data=sent.init_data,
        profile=BindingProfile(asked.profile),
    )


def _requirement(text: str) -> "DeviceRequirement":
    from attestation.appraise.devices import DeviceRequirement

    gpus, switches = device_counts(text)
    return DeviceRequirement(gpus=gpus, switches=switches)
