"""`kata-gpu-kbs simulate`: forged evidence and a simulated confidential VM, for demonstrations without hardware."""

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from attestation.cli.output import output_option
from attestation.errors import Unavailable

if TYPE_CHECKING:
    from attestation.simulate.vm import SimulatedVm

_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)
_FAULTS = click.Choice(
    [
        "gpu-measurement",
        "cpu-measurement",
        "replay-gpu",
        "duplicate-gpu",
        "stale-nonce",
        "missing-gpu",
        "other-init-data",
    ]
)
_PROFILES = click.Choice(["cgpu-v1", "trustee-rcar-0.4"])
_FOLDER = click.Path(path_type=Path, file_okay=False)


@click.group()
def simulate() -> None:
    """Forged evidence and a simulated VM. Nothing made here verifies under a vendor's roots.

    \b
    Example:
      kata-gpu-kbs simulate roots roots
      kata-gpu-kbs serve --store store --unsafe-trust-simulated-roots roots &
      kata-gpu-kbs simulate vm kbs:///models/llama/key --broker http://127.0.0.1:8080
    """


def _vm_options(command: Any) -> Any:
    for option in (
        click.option("--stale-nonce", is_flag=True, help="Shorthand for --fault stale-nonce."),
        click.option("--replay-gpu", is_flag=True, help="Shorthand for --fault replay-gpu."),
        click.option("--tamper", type=click.Choice(["measurement"]), help="Shorthand for --fault gpu-measurement."),
        click.option("--fault", "faults", type=_FAULTS, multiple=True, help="What is wrong with this VM."),
        click.option("--init-data", type=_FILE, help="Init-data that the VM was launched with."),
        click.option("--chip", default="chip-0", show_default=True, help="Seed of the simulated CPU."),
        click.option(
            "--tee", type=click.Choice(["snp", "tdx", "sample"]), default="snp", show_default=True, help="CPU TEE."
        ),
        click.option(
            "--arch",
            type=click.Choice(["hopper", "blackwell"]),
            default="hopper",
            show_default=True,
            help="Architecture of the GPUs.",
        ),
        click.option("--switches", type=click.IntRange(0, 4), default=0, show_default=True, help="NVSwitches (PPCIE)."),
        click.option("--gpus", type=click.IntRange(0, 8), default=1, show_default=True, help="GPUs in the evidence."),
    ):
        command = option(command)
    return command


@simulate.command()
@click.argument("key", metavar="KBS-URI")
@click.option("--broker", help="Broker URL; without init-data only.")
@click.option("--broker-cert", type=_FILE, help="PEM to pin; without init-data only.")
@click.option("--binding-profile", type=_PROFILES, help="Offer only this one.")
@click.option(
    "--model", type=click.Path(path_type=Path, exists=True, file_okay=False), help="Encrypted model to decrypt."
)
@click.option("--target", type=_FOLDER, help="Memory folder for the plaintext.")
@output_option
@_vm_options
def vm(
    key: str,
    broker: str | None,
    broker_cert: Path | None,
    binding_profile: str | None,
    model: Path | None,
    target: Path | None,
    output: str,
    **options: Any,
) -> None:
    """Start a simulated VM: attest to a broker over HTTP, get KEY, decrypt a model with it.

    The broker must have been told to trust the simulated roots, with the flag that says it is unsafe.

    \b
    Example:
      kata-gpu-kbs simulate vm kbs:///models/llama/key --broker http://127.0.0.1:8080 \\
          --model llama.kgm --target /dev/shm/llama
      kata-gpu-kbs simulate vm kbs:///models/llama/key --broker http://127.0.0.1:8080 --tamper measurement
    """
    from attestation.guest.client import KbsClient
    from attestation.guest.commands.common import said_pace
    from attestation.guest.http import PinnedHttp
    from attestation.guest.settings import read_settings
    from attestation.values import BindingProfile, ResourcePath

    path = ResourcePath.parse(key)
    machine = _machine(options)
    settings = read_settings(options["init_data"], broker, broker_cert)
    profiles = (BindingProfile(binding_profile),) if binding_profile else settings.profiles
    http = PinnedHttp(settings.broker_url, certificate=settings.broker_certificate, pace=said_pace())
    say = _Said(quiet=output == "json")
    say(f"simulated VM: {machine.tee} CPU, {machine.gpus} {machine.arch} GPU(s), {machine.switches} NVSwitch(es)")
    if machine.faults:
        say(f"fault: {', '.join(sorted(machine.faults))}")
    client = KbsClient(http, machine.provider(), profiles=profiles, collect=machine.collect)
    started = time.perf_counter()
    attested = client.attest()
    say(f"nonce {attested.challenge.nonce[:12]}... answered under profile {attested.challenge.profile}")
    say(f"evidence accepted: 1 CPU report over {len(attested.evidence.devices)} device report(s)")
    secret = client.fetch(path)
    took_ms = (time.perf_counter() - started) * 1000
    say(f"key {path}: {len(secret)} bytes, sealed to this VM's TEE key, in hand after {took_ms:.0f} ms")
    result: dict[str, Any] = {
        "key": str(path),
        "key_bytes": len(secret),
        "profile": str(attested.challenge.profile),
        "devices": len(attested.evidence.devices),
        "milliseconds": round(took_ms, 1),
    }
    if model is not None:
        result |= _decrypt(model, target, secret, say)
    if output == "json":
        click.echo(json.dumps(result))


def _decrypt(folder: Path, target: Path | None, secret: Any, say: "_Said") -> dict[str, Any]:
    from attestation.guest.decrypt import decrypt_model
    from attestation.guest.memory_fs import Exceptions, Proc
    from attestation.guest.model import open_model, verify_file

    opened = open_model(folder, secret)
    size = opened.manifest.size
    if target is None:
        for index in range(len(opened.manifest.files)):
            verify_file(opened, index)
        say(f"model opened: {len(opened.manifest.files)} files, {size} bytes, every chunk authentic")
    else:
        decrypt_model(opened, target, exceptions=Exceptions(), proc=Proc())
        say(f"model decrypted to {target}: {len(opened.manifest.files)} files, {size} bytes")
    return {"model_digest": str(opened.digest), "model_bytes": size}


@simulate.command()
@click.option("--nonce", required=True, metavar="BASE64", help="Challenge of a broker: base64 of 32 bytes.")
@click.option(
    "--binding-profile",
    type=_PROFILES,
    default="cgpu-v1",
    show_default=True,
    help="How the nonce binds CPU, GPUs and key.",
)
@_vm_options
def evidence(nonce: str, binding_profile: str, **options: Any) -> None:
    """Print the body of `POST /kbs/v0/attest` that a simulated VM would send for a nonce.

    \b
    Example:
      kata-gpu-kbs simulate evidence --nonce "$(head -c 32 /dev/urandom | base64)" --gpus 8 --switches 4 > body.json
    """
    from cryptography.hazmat.primitives.asymmetric import ec

    from attestation.crypto.binding import DEFAULT_HASH
    from attestation.crypto.jwk import tee_key_of
    from attestation.guest.client import attest_body
    from attestation.guest.evidence import Challenge
    from attestation.values import BindingProfile

    machine = _machine(options)
    challenge = Challenge(
        nonce=nonce,
        profile=BindingProfile(binding_profile),
        hash_name=DEFAULT_HASH,
        tee_key=tee_key_of(ec.generate_private_key(ec.SECP256R1()).public_key()).jwk,
    )
    body = attest_body(challenge, machine.collect(machine.provider(), challenge))
    click.echo(json.dumps(body | {"tee": str(machine.tee)}))


@simulate.command()
@click.argument("folder", type=_FOLDER)
def roots(folder: Path) -> None:
    """Write the simulated roots to FOLDER, and the reference documents of simulated devices to FOLDER/rims.

    \b
    Example:
      kata-gpu-kbs simulate roots sim && kata-gpu-kbs serve --unsafe-trust-simulated-roots sim ...
    """
    from attestation.simulate.amd_pki import authorities
    from attestation.simulate.nvidia import NvidiaForge

    forge = NvidiaForge()
    try:
        (folder / "rims").mkdir(parents=True, exist_ok=True)
        for name, pem in forge.roots.items():
            (folder / name).write_bytes(pem)
        for rim_id, document in forge.rims().items():
            (folder / "rims" / f"{rim_id}.swidtag").write_bytes(document)
        _write_amd(folder, authorities)
    except OSError as exc:
        raise Unavailable("simulate-write", exc.strerror or "cannot write", where=str(exc.filename or folder)) from exc
    click.echo(f"simulated roots and reference documents in {folder}; trusting them proves nothing about hardware")


def _write_amd(folder: Path, authorities: Any) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding

    from attestation.formats.snp_tcb import Product

    for product in Product:
        chain = [x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM) for der in authorities(product)[:2]]
        (folder / f"simulated-amd-{str(product).lower()}.pem").write_bytes(b"".join(chain))


def _machine(options: dict[str, Any]) -> "SimulatedVm":
    from attestation.guest.settings import read_text
    from attestation.simulate.vm import Fault, SimulatedVm
    from attestation.values import Architecture, Tee

    faults = {Fault(name) for name in options["faults"]}
    if options["tamper"]:
        faults.add(Fault.GPU_MEASUREMENT)
    if options["replay_gpu"]:
        faults.add(Fault.REPLAY_GPU)
    if options["stale_nonce"]:
        faults.add(Fault.STALE_NONCE)
    return SimulatedVm(
        gpus=options["gpus"],
        switches=options["switches"],
        arch=Architecture(options["arch"]),
        tee=Tee(options["tee"]),
        chip_seed=options["chip"],
        init_data=read_text(options["init_data"]) if options["init_data"] else None,
        faults=frozenset(faults),
    )


class _Said:
    """Steps of the demonstration, on stdout for people, nowhere for programs."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet

    def __call__(self, line: str) -> None:
        if not self._quiet:
            click.echo(f"  {line}")
            sys.stdout.flush()
