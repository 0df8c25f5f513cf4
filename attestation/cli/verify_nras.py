"""`kata-gpu-kbs verify nras`: an answer of NVIDIA's attestation service, against a stored key set, offline."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from attestation.cli.output import output_option
from attestation.clock import parse_time, utc_now
from attestation.errors import AttestationError, ExitCode
from attestation.values import Nonce

if TYPE_CHECKING:
    from attestation.verify.nras_token import Keys

_PATH = click.Path(path_type=Path)
_ISSUER = "https://nras.attestation.nvidia.com"


@click.command("nras")
@click.argument("token", type=_PATH)
@click.option("--nonce", metavar="HEX", required=True, help="The nonce that you sent to the devices.")
@click.option("--collateral", type=_PATH, help="Collateral store with the key set (`collateral fetch --nras-keys`).")
@click.option("--jwks", type=_PATH, help="The key set as a file, instead of --collateral.")
@click.option("--issuer", default=_ISSUER, show_default=True, help="The only issuer to accept.")
@click.option("--audience", help="Demand this `aud`. Without it, tokens that name one are refused.")
@click.option("--at", metavar="RFC3339", help="Verify as of this time instead of now.")
@output_option
def nras(
    token: Path,
    nonce: str,
    collateral: Path | None,
    jwks: Path | None,
    issuer: str,
    audience: str | None,
    at: str | None,
    output: str,
) -> int:
    """Verify TOKEN, a detached EAT bundle (JSON), offline.

    Checked: signatures with a stored key, issuer, audience, times, your nonce, the digest of every device token and
    that there is exactly one for each that the overall token declares. Exit code 0 when the issuer says that every
    device is as it should be, 1 when not, or when the token is not to be believed.

    \b
    Example:
      kata-gpu-kbs verify nras answer.json --nonce 931d8d... --collateral /var/lib/collateral
    """
    from attestation.findings import failed, passed
    from attestation.sources.atomic import read_bounded
    from attestation.verify.nras_token import MAX_BUNDLE_BYTES, TokenRule, verify_nras_token

    now = parse_time(at, where="--at") if at else utc_now()
    rule = TokenRule(issuers=frozenset({issuer}), audience=audience)
    keys = _keys(collateral, jwks, issuer)
    claims: dict[str, object] = {}
    exit_code = ExitCode.OK
    try:
        raw = read_bounded(token, MAX_BUNDLE_BYTES)
        verified = verify_nras_token(raw, keys, rule=rule, nonce=Nonce.from_hex(nonce), now=now)
        claims = {name: dict(one) for name, one in verified.submods.items()}
        finding = passed("nras-token", f"{len(claims)} devices by {verified.issuer}")
        if not verified.successful:
            finding = failed("nras-token", "nras-unsuccessful", expected="every device good", got="the issuer says no")
            exit_code = ExitCode.NEGATIVE
    except AttestationError as exc:
        finding = failed("nras-token", exc.code, expected=exc.expected, got=exc.got or exc.what, hint=str(exc))
        exit_code = exc.exit_code
    if output == "json":
        click.echo(json.dumps({"findings": [finding.to_json()], "claims": claims}, indent=2))
    else:
        mark = "ok  " if exit_code is ExitCode.OK else "FAIL"
        click.echo(
            f"{mark} {finding.check} {f'[{finding.code}] ' if finding.code else ''}{finding.hint or finding.got}"
        )
    return exit_code


def _keys(collateral: Path | None, jwks: Path | None, issuer: str) -> "Keys":
    from urllib.parse import urlsplit

    from attestation.errors import Misconfigured
    from attestation.formats.collateral import Kind
    from attestation.sources.atomic import read_bounded
    from attestation.sources.collateral_store import CollateralStore
    from attestation.verify.nras_token import MAX_JWKS_BYTES, parse_jwks

    if (collateral is None) == (jwks is None):
        raise Misconfigured("nras-keys", "whose keys to trust", expected="--collateral or --jwks")
    if jwks is not None:
        return parse_jwks(read_bounded(jwks, MAX_JWKS_BYTES))
    assert collateral is not None
    host = urlsplit(issuer).hostname or issuer
    stored = CollateralStore(collateral).load().get(Kind.JWKS, host)
    if not stored:
        raise Misconfigured("nras-keys", "no key set is stored", where=host, expected="`collateral fetch --nras-keys`")
    return parse_jwks(stored[0].content)
