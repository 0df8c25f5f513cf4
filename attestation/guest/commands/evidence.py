"""`kata-gpu-guest evidence collect`."""

from pathlib import Path

import click

from attestation.guest.commands.common import FILE, evidence_provider, show
from attestation.guest.settings import read_settings

NO_BROKER = "none"  # nothing is sent


@click.group()
def evidence() -> None:
    """Collect evidence of this VM.

    \b
    Example:
      kata-gpu-guest evidence collect --nonce "$(head -c 32 /dev/urandom | base64)"
    """


@evidence.command()
@click.option("--nonce", required=True, metavar="BASE64", help="Challenge: base64 of 32 random bytes.")
@click.option(
    "--binding-profile", type=click.Choice(["cgpu-v1", "trustee-rcar-0.4"]), default="cgpu-v1", show_default=True,
    help="How nonce, key and devices are tied together.",
)  # fmt: skip
@click.option("--expected-devices", type=click.IntRange(0, 64), help="Attest exactly so many devices.")
@click.option("--init-data", type=FILE, help="Measured init-data, sent along and bound.")
def collect(nonce: str, binding_profile: str, expected_devices: int | None, init_data: Path | None) -> None:
    """Print the body that `POST /kbs/v0/attest` would carry, for a verifier to look at. No key is asked for.

    A TEE key is made for this one answer and forgotten: nothing can be released to it.

    \b
    Example:
      kata-gpu-guest evidence collect --nonce "$(head -c 32 /dev/urandom | base64)" --init-data /run/initdata.toml
    """
    from cryptography.hazmat.primitives.asymmetric import ec

    from attestation.crypto.binding import DEFAULT_HASH
    from attestation.crypto.jwk import tee_key_of
    from attestation.guest.client import attest_body
    from attestation.guest.evidence import Challenge
    from attestation.guest.evidence import collect as collect_evidence
    from attestation.values import BindingProfile

    jwk = tee_key_of(ec.generate_private_key(ec.SECP256R1()).public_key()).jwk
    challenge = Challenge(nonce=nonce, profile=BindingProfile(binding_profile), hash_name=DEFAULT_HASH, tee_key=jwk)
    settings = read_settings(init_data, None if init_data else NO_BROKER, None)
    with evidence_provider(settings, expected_devices) as provider:
        body = attest_body(challenge, collect_evidence(provider, challenge)) | {"tee": str(provider.cpu.tee)}
    show(body, "", "json")
