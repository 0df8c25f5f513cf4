"""`kata-gpu-guest ready`: the hook of a guest image that lets the GPUs work only after they were attested."""

from collections.abc import Sequence

import click

from attestation.guest.commands.common import (
    Source,
    evidence_provider,
    output_option,
    said_pace,
    settings_of,
    show,
    source_options,
)


@click.command()
@source_options
@output_option
def ready(source: Source, output: str) -> None:
    """Attest with the broker, compare the attested GPUs with those present, set the ready state.

    Refused in devtools mode; cleared on any failure. Runs as root in the guest image, with its automatic ready state
    off (no `nvrc.smi.srs` on the kernel command line); otherwise the result is `ready-gate: not-enforced`.

    \b
    Example:
      kata-gpu-guest ready --init-data /run/initdata.toml --expected-devices 8
    """
    from attestation.guest.client import KbsClient
    from attestation.guest.evidence import DeviceEvidence
    from attestation.guest.http import PinnedHttp
    from attestation.guest.nvml import open_nvml
    from attestation.guest.ready import gated

    def attest() -> Sequence[DeviceEvidence]:
        settings = settings_of(source)
        http = PinnedHttp(settings.broker_url, certificate=settings.broker_certificate, pace=said_pace())
        with evidence_provider(settings, source.expected_devices) as provider:
            return KbsClient(http, provider, profiles=settings.profiles).attest().evidence.devices

    with open_nvml() as gpus:
        result = gated(gpus, attest)  # whatever fails in there closes the gate
    show(result.to_json(), f"ready-gate: {result.gate} for {len(result.gpus)} GPUs", output)
