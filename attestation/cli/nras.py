"""`kata-gpu-kbs nras`: NVIDIA-shaped attestation service and RIM mirror, for NVIDIA's clients in air-gapped sites."""

import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from attestation.cli.verification import simulated_roots_option
from attestation.clock import parse_time, utc_now
from attestation.errors import Misconfigured

if TYPE_CHECKING:
    from attestation.service.nras import NrasSettings
    from attestation.sources.collateral import Collateral
    from attestation.verify.nv_policy import NvPolicy

_PATH = click.Path(path_type=Path)
_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)
_MAX_PEM_BYTES = 64 * 1024


@click.group()
def nras() -> None:
    """NRAS-shaped attestation and a RIM mirror from the collateral store. Its tokens release nothing.

    \b
    Example:
      kata-gpu-kbs nras serve --collateral /var/lib/collateral --key nras.key --certificate nras.pem \\
          --issuer https://nras.site.example --audience site
    """


@nras.command()
@click.argument("key", type=_PATH)
@click.argument("certificate", type=_PATH)
@click.option("--name", default="kata-gpu NRAS", show_default=True, help="Common name of the certificate.")
def keygen(key: Path, certificate: Path, name: str) -> None:
    """Make the P-384 KEY that signs tokens and its self-signed CERTIFICATE, which clients take from the key set.

    \b
    Example:
      kata-gpu-kbs nras keygen nras.key nras.pem
    """
    from attestation.sources.eat_key import write_eat_key

    write_eat_key(key, certificate, name=name, now=utc_now())
    click.echo(f"key: {key}\ncertificate: {certificate}")


@nras.command()
@click.option("--collateral", type=_PATH, required=True, help="Collateral store (a directory); read once, at start.")
@click.option("--key", type=_FILE, required=True, help="P-384 private key, PEM (`nras keygen`).")
@click.option("--certificate", type=_FILE, required=True, help="Its certificate, PEM.")
@click.option("--issuer", required=True, help="`iss` of the tokens.")
@click.option("--audience", help="`aud` of /v4 tokens. /v3 tokens have none: NVIDIA's Python client refuses it.")
@click.option("--listen", default="127.0.0.1:8090", show_default=True, help="Listener; port 0 takes a free one.")
@click.option("--tls-cert", type=_FILE, help="PEM certificate chain of the listener.")
@click.option("--tls-key", type=_FILE, help="Its PEM private key.")
@click.option("--rim-revocation", type=click.Choice(["good", "good-or-unknown"]), default="good", show_default=True,
              help="What must be known about signers of reference documents.")  # fmt: skip
@click.option("--signer-expiry", type=click.Choice(["strict", "valid-at-first-seen"]), default="strict",
              show_default=True, help="What an expired signer of a reference document means.")  # fmt: skip
@click.option("--at", metavar="RFC3339", help="Judge evidence as of this time instead of now.")
@simulated_roots_option
def serve(**options: Any) -> None:
    """Serve /v3 and /v4/attest/{gpu,switch}, the key set and /v1/rim on one listener of their own.

    \b
    Example:
      kata-gpu-kbs nras serve --collateral c --key nras.key --certificate nras.pem --issuer https://nras.example \\
          --listen 0.0.0.0:8443 --tls-cert tls.pem --tls-key tls.key
    """
    import uvicorn
    from starlette.applications import Starlette

    from attestation.service.nras import nras_routes
    from attestation.service.server import listen
    from attestation.service.workers import Workers

    if (options["tls_cert"] is None) != (options["tls_key"] is None):
        raise Misconfigured("tls-files", "certificate and key go together", expected="--tls-cert and --tls-key")
    settings = _settings(options)
    workers = Workers(threads=_THREADS, queue=_QUEUE)
    listener = listen(options["listen"], tls=options["tls_cert"] is not None)
    config = uvicorn.Config(
        Starlette(routes=nras_routes(settings, workers)),
        log_level="warning",
        access_log=False,
        lifespan="off",
        ws="none",
        ssl_certfile=options["tls_cert"],
        ssl_keyfile=options["tls_key"],
        timeout_keep_alive=_KEEP_ALIVE_S,
        limit_concurrency=_THREADS + _QUEUE,
    )
    click.echo(f"nras: {listener.url}")
    try:
        uvicorn.Server(config).run(sockets=[listener.socket])
    finally:
        workers.close()


_THREADS = 4  # signature checks release the interpreter lock
_QUEUE = 64
_KEEP_ALIVE_S = 5


def _settings(options: dict[str, Any]) -> "NrasSettings":
    from attestation.appraise.eat import EatKey
    from attestation.cli.platform import nvidia_trust
    from attestation.ops.nras import NrasIdentity
    from attestation.service.nras import NrasSettings
    from attestation.sources.atomic import read_bounded
    from attestation.sources.collateral_store import CollateralStore
    from attestation.verify.nv_gpu import Collateral, NvCache

    now, at = utc_now(), options["at"]
    store = CollateralStore(options["collateral"]).load()
    key, certificate = (read_bounded(options[name], _MAX_PEM_BYTES) for name in ("key", "certificate"))
    trust = nvidia_trust(options["simulated_roots"])
    if trust.simulated:
        click.echo("WARNING: simulated roots are trusted: tokens say nothing about hardware.", err=True)
    return NrasSettings(
        store=store,
        verify=Collateral(
            trust=trust, rims=store, revocation=store, policy=_policy(options, store), now=now, cache=NvCache()
        ),
        identity=NrasIdentity(
            key=EatKey.of(key, certificate),
            issuer=options["issuer"],
            audience=options["audience"],
            new_id=lambda: secrets.token_hex(16),
        ),
        clock=utc_now,
        verification_time=parse_time(at, where="--at") if at is not None else None,
    )


def _policy(options: dict[str, Any], store: "Collateral") -> "NvPolicy":
    from attestation.verify.nv_policy import ExpiryMode, NvPolicy, SignerExpiry
    from attestation.verify.revocation import ChainKind, RevocationPolicy, RevocationRule, RevocationStatus

    accept = {RevocationStatus.GOOD}
    if options["rim_revocation"] == "good-or-unknown":
        accept.add(RevocationStatus.UNKNOWN)
    mode = ExpiryMode(options["signer_expiry"])
    first_seen = store.first_seen() if mode is ExpiryMode.FIRST_SEEN else {}
    return NvPolicy(
        revocation=RevocationPolicy(rim=RevocationRule(kind=ChainKind.RIM, accept=frozenset(accept))),
        signer_expiry=SignerExpiry(mode=mode, first_seen=first_seen),
    )
