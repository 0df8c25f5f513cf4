"""`kata-gpu-kbs serve`: the broker, on two listeners."""

import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from attestation.cli.store import read_bytes
from attestation.cli.verification import read_policy, simulated_roots_option
from attestation.clock import parse_time, utc_now
from attestation.errors import Misconfigured, Unavailable
from attestation.values import Tee

MAX_STORE_BYTES = 4096  # of a database URL
MAX_DRAIN_DELAY_S = 60.0  # balancers look every few seconds


@click.command()
@click.option(
    "--store", type=click.Path(), help="Directory of the embedded store, or postgresql://... (made if absent)."
)
@click.option("--store-file", type=click.Path(path_type=Path), metavar="FILE",
              help="File that holds the value of --store: a database URL with a password is no argument.")  # fmt: skip
@click.option("--root-key", type=click.Path(path_type=Path), help="Root key file, mode 0600. Default: in the store.")
@click.option(
    "--listen", default="127.0.0.1:8080", show_default=True, help="Guests' listener; port 0 takes a free one."
)
@click.option("--admin-listen", default="127.0.0.1:8081", show_default=True, help="Administrators' listener.")
@click.option(
    "--tls-cert", type=click.Path(exists=True, dir_okay=False), help="PEM certificate chain of both listeners."
)
@click.option("--tls-key", type=click.Path(exists=True, dir_okay=False), help="Its PEM private key.")
@click.option("--admin-client-ca", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="FILE",
              help="Administrators' listener: only clients certified by these PEM authorities.")  # fmt: skip
@click.option("--drain-delay", type=click.FloatRange(0, MAX_DRAIN_DELAY_S), default=0.0, show_default=True,
              help="Seconds between not ready and no new connections, for balancers to notice.")  # fmt: skip
@click.option("--log-format", type=click.Choice(["logfmt", "json"]), default="logfmt", show_default=True,
              help="One event a line on stderr.")  # fmt: skip
@click.option("--collateral", type=click.Path(path_type=Path), help="Collateral store (see `collateral fetch`).")
@click.option("--verification-policy", type=click.Path(path_type=Path), metavar="FILE",
              help="What is demanded of evidence, TOML (docs/policies.md). Default: the strict rules.")  # fmt: skip
@click.option("--issuer", default="kata-gpu-kbs", show_default=True, help="Issuer and audience of tokens.")
@click.option(
    "--token-cert",
    type=click.Path(),
    metavar="FILE",
    help="PEM chain of the token key (`token-key csr`), put into tokens.",
)
@click.option("--trusted-token-certs", multiple=True, type=click.Path(), metavar="FILE",
              help="PEM certificates of attestation services whose tokens reach the resource policy.")  # fmt: skip
@click.option(
    "--trusted-token-jwks", multiple=True, type=click.Path(), metavar="FILE", help="JWK sets of such services."
)
@click.option("--trusted-token-key-path", "trusted_token_key_paths", multiple=True, metavar="POINTER",
              help="Where claims of their tokens name the TEE key, tried before upstream's places.")  # fmt: skip
@click.option(
    "--admin-issuer", "admin_issuers", multiple=True, type=click.Path(), metavar="FILE", help="Identity provider, TOML."
)
@click.option(
    "--webhook",
    type=click.Path(),
    metavar="FILE",
    help="Where denials and revocations are posted, TOML: url, secret_file.",
)
@click.option("--deny-all-admins", is_flag=True, help="Refuse every admin request.")
@click.option("--compat-deny-status", type=click.Choice(["403", "401"]), default="403", show_default=True,
              help="401 answers denials as upstream does; guests then attest again and again.")  # fmt: skip
@click.option("--compat-admin-on-guest-listener", is_flag=True, help="Accept kbs-client admin calls from guests' side.")
@simulated_roots_option
@click.option(
    "--unsafe-sample-tee", is_flag=True, help="UNSAFE: accept sample TEE and device. Only keys labelled test."
)
@click.option("--unsafe-frozen-time", metavar="RFC3339", help="UNSAFE: a clock that stands still, for demonstrations.")
def serve(**options: Any) -> None:
    """Serve the KBS protocol 0.4.0 to guests and the admin API to administrators.

    Prints one line for each listener once it answers. SIGTERM drains and stops. Renewed certificates and collateral
    are used within seconds, without dropping a connection; SIGHUP looks at once.

    \b
    Example:
      kata-gpu-kbs serve --store /var/lib/kbs --collateral /var/lib/collateral --listen 0.0.0.0:8080
    """
    from attestation.cli.webhook_file import load_webhook
    from attestation.hardening import forbid_dumps
    from attestation.ops.open_world import WorldOptions, close_world, open_world
    from attestation.ops.readiness import Surveyor
    from attestation.service.app import Compat, Service
    from attestation.service.server import Serving, listen
    from attestation.service.server import serve as run

    forbid_dumps()  # before the first key is read
    guest_tls, admin_tls = _tls(options["tls_cert"], options["tls_key"], options["admin_client_ca"])
    clock = _clock(options["unsafe_frozen_time"])
    simulated, sample = options["simulated_roots"], options["unsafe_sample_tee"]
    policy = read_policy(options["verification_policy"])
    verifier, forgeable, renewed = _verifier(options["collateral"], simulated, policy, sample=sample)
    world = open_world(
        WorldOptions(
            store=_store(options["store"], options["store_file"]),
            root_key=options["root_key"],
            issuer=options["issuer"],
            audience=options["issuer"],
            tees=frozenset({Tee.SNP, Tee.TDX} | ({Tee.SAMPLE} if sample else set())),
            simulated=forgeable,
            admin_issuers=tuple(_issuer(Path(path)) for path in options["admin_issuers"]),
            deny_all_admins=options["deny_all_admins"],
            webhook=load_webhook(Path(options["webhook"])) if options["webhook"] else None,
            token_certificates=read_bytes(options["token_cert"]) if options["token_cert"] else b"",
            external=_token_trust(
                options["trusted_token_certs"], options["trusted_token_jwks"], options["trusted_token_key_paths"]
            ),
        ),
        verifier,
        now=clock(),
    )
    try:
        Surveyor(world)(clock())
    except Unavailable:  # the audit log does not vouch for this configuration
        close_world(world)
        raise
    if world.simulated:
        click.echo("WARNING: forgeable evidence is accepted; only keys labelled test can be released", err=True)
    for waiver in policy.waivers if policy else ():
        click.echo(f"not checked by policy: {waiver}", err=True)
    compat = Compat(
        deny_status=int(options["compat_deny_status"]),
        admin_on_guest_listener=options["compat_admin_on_guest_listener"],
        secure_cookie=guest_tls is not None,
    )
    service = Service(world, clock=clock, compat=compat, collateral=renewed)
    guest = listen(options["listen"], tls=guest_tls is not None)
    try:
        admin = listen(options["admin_listen"], tls=admin_tls is not None)
    except Misconfigured:
        guest.socket.close()
        raise
    how = Serving(
        guest=guest, admin=admin, guest_tls=guest_tls, admin_tls=admin_tls, drain_delay_s=options["drain_delay"]
    )

    def ready(_stop: Any) -> None:
        click.echo(f"guests: {guest.url}")
        click.echo(f"administrators: {admin.url}")
        sys.stdout.flush()

    log_to_stderr(options["log_format"])
    try:
        run(service, world, how, clock=clock, ready=ready)
    finally:
        close_world(world)


def log_to_stderr(form: str) -> None:
    """Every event of this process as one line on stderr, in `form`: "logfmt" or "json"."""
    import structlog

    render: Any = structlog.processors.LogfmtRenderer(key_order=["timestamp", "level", "event"])
    if form == "json":
        render = structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.format_exc_info,
            render,
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )


def _verifier(collateral: Path | None, simulated: str | None, policy: Any, *, sample: bool) -> tuple[Any, bool, Any]:
    """The verifier, whether it accepts forgeable evidence, and the one among them that follows its store."""
    from functools import partial

    from attestation.cli.platform import platform_verifier, stored_verifier
    from attestation.ops.renewed_verifier import RenewedVerifier
    from attestation.sources.collateral_store import CollateralStore

    if collateral is not None:
        build = partial(stored_verifier, simulated_roots=simulated, sample=sample, policy=policy)
        renewed = RenewedVerifier(CollateralStore(collateral), build)
        return renewed, renewed.current.trust.simulated, renewed
    verifier = platform_verifier(collateral=None, simulated_roots=simulated, sample=sample, policy=policy)
    return verifier, verifier.trust.simulated, None


def _tls(certificate: str | None, key: str | None, client_ca: Path | None) -> tuple[Any, Any]:
    """TLS of the guests' and of the administrators' listener."""
    from attestation.service.tls import TlsFiles, TlsListener

    if bool(certificate) != bool(key):
        raise Misconfigured("tls-files", "certificate and key go together", expected="--tls-cert and --tls-key")
    if certificate is None or key is None:
        if client_ca is not None:
            raise Misconfigured("tls-files", "client certificates need TLS", expected="--tls-cert and --tls-key")
        return None, None
    files = {"certificate": Path(certificate), "key": Path(key)}
    return TlsListener(TlsFiles(**files)), TlsListener(TlsFiles(**files, client_ca=client_ca))


def _store(store: str | None, file: Path | None) -> str:
    """The store's name, given directly or in a file of one line."""
    from attestation.sources.atomic import read_bounded

    if (store is None) == (file is None):
        raise Misconfigured("store-option", "name one store", expected="either --store or --store-file")
    if file is None:
        return store or ""
    try:
        text = read_bounded(file, MAX_STORE_BYTES).decode().strip()
    except UnicodeDecodeError as exc:
        raise Misconfigured("store-file", "not UTF-8 text", where=str(file)) from exc
    if not text or "\n" in text:
        raise Misconfigured("store-file", "not one line", where=str(file), expected="a directory or postgresql://...")
    return text


def _token_trust(certificates: tuple[str, ...], jwks: tuple[str, ...], paths: tuple[str, ...]) -> Any:
    """Whose tokens are taken beside our own; None for nobody's."""
    from attestation.broker.endorsement import TokenTrust

    if not certificates and not jwks:
        if paths:
            expected = "--trusted-token-certs or --trusted-token-jwks"
            raise Misconfigured("token-key-path", "a place in tokens of nobody", expected=expected)
        return None
    return TokenTrust.of(
        certificates=[*map(read_bytes, certificates)], jwks=[*map(read_bytes, jwks)], tee_key_paths=paths
    )


def _clock(frozen: str | None) -> Any:
    if frozen is None:
        return utc_now
    moment = parse_time(frozen, where="--unsafe-frozen-time")

    def stand_still() -> datetime:
        return moment

    return stand_still


def _issuer(path: Path) -> Any:
    """An identity provider: `issuer`, `audience`, `public_key` (PEM file) and a `[roles]` table to our roles."""
    import tomllib

    from joserfc.errors import JoseError
    from joserfc.jwk import JWKRegistry

    from attestation.broker.admin import AdminIssuer
    from attestation.broker.roles import Role

    try:
        document = tomllib.loads(path.read_text())
        pem = (path.parent / document["public_key"]).read_bytes()
        roles = {str(name): Role(role) for name, role in document["roles"].items()}
        kind = {"ed25519": "OKP", "es256": "EC", "rs256": "RSA"}[document["algorithm"]]
        key = JWKRegistry.import_key(pem, kind)
        # Both: what the provider issued for another service is not for this one.
        issuer, audience = str(document["issuer"]), str(document["audience"])
    except (OSError, KeyError, ValueError, AttributeError, JoseError) as exc:
        raise Misconfigured(
            "admin-issuer",
            f"bad identity provider: {exc}",
            where=str(path),
            expected='issuer, audience, algorithm = "ed25519|es256|rs256", public_key = "FILE", [roles]',
        ) from exc
    return AdminIssuer(key=key, issuer=issuer, audience=audience, roles=roles)
