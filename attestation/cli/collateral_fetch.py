"""`kata-gpu-kbs collateral fetch`: what is new at NVIDIA, AMD and Intel, into the store."""

import json
import secrets
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from attestation.cli.output import output_option
from attestation.clock import utc_now
from attestation.errors import ExitCode, Misconfigured

if TYPE_CHECKING:
    from attestation.formats.snp_report import SnpReport
    from attestation.formats.snp_tcb import Product
    from attestation.ops.collect import Outcome, Step
    from attestation.sources.http import Fetcher

PATH = click.Path(path_type=Path)
FILE = click.Path(path_type=Path, exists=True, dir_okay=False)
STORE = click.option("--store", type=PATH, required=True, help="The collateral store, a directory.")
_MAX_TOKEN_BYTES = 4096
_OVER = "\r\x1b[K"  # ECMA-48: to the start of the line, and erase it


@click.command()
@STORE
@click.option("--rim", "rims", multiple=True, metavar="ID", help="NVIDIA reference document. Repeatable.")
@click.option("--rims-like", multiple=True, metavar="PREFIX", help="Every id of the service with this prefix.")
@click.option("--chain", "chains", type=FILE, multiple=True, help="Device chain (PEM): ask about its CAs, too.")
@click.option("--revocation/--no-revocation", default=True, show_default=True, help="OCSP answers and CRLs.")
@click.option("--ocsp-nonce/--no-ocsp-nonce", default=True, show_default=True, help="Demand fresh OCSP answers.")
@click.option("--snp-report", "snp_reports", type=FILE, multiple=True, help="SNP report: its chip's VCEK and chain.")
@click.option("--amd", "amd", multiple=True, type=click.Choice(["Milan", "Genoa", "Turin"]), help="AMD chain and CRL.")
@click.option("--tdx", "tdx", multiple=True, metavar="FMSPC", help="Intel TDX collateral of a platform family.")
@click.option(
    "--pck-ca",
    type=click.Choice(["platform", "processor"]),
    default="platform",
    show_default=True,
    help="Intel's authority that issued the PCK certificates.",
)
@click.option("--nras-keys", is_flag=True, help="NVIDIA's key set, to verify NRAS tokens offline.")
@click.option("--rim-service", metavar="URL", help="Another RIM service, e.g. a mirror (https).")
@click.option("--service-key-file", type=FILE, help="NVIDIA service key, sent to NVIDIA's RIM and OCSP services.")
@output_option
def fetch(**options: Any) -> int:
    """Fetch into the store. What fails is listed, the rest is kept; exit code 8 when anything failed.

    \b
    Examples:
      kata-gpu-kbs collateral fetch --store c --rim NV_GPU_DRIVER_GH100_580.95.05 --chain chain.pem
      kata-gpu-kbs collateral fetch --store c --rims-like NV_GPU_DRIVER_GH100_58 --amd Genoa --tdx 50806F000000
    """
    from attestation.ops.collect import Wanted, collect
    from attestation.sources.atomic import read_bounded
    from attestation.sources.collateral_store import CollateralStore
    from attestation.sources.nv_ocsp import NONCE_BYTES
    from attestation.sources.nv_rim import RIM_SERVICE

    fetcher = _fetcher(options["rim_service"], options["service_key_file"])
    service = options["rim_service"] or RIM_SERVICE
    wanted = Wanted(
        rim_ids=(*options["rims"], *_ids_like(fetcher, service, options["rims_like"])),
        chains=tuple(read_bounded(path, 1 << 20) for path in options["chains"]),
        revocation=options["revocation"],
        snp_reports=tuple(_snp(path) for path in options["snp_reports"]),
        amd_products=tuple(_product(name) for name in options["amd"]),
        fmspcs=tuple((fmspc, options["pck_ca"]) for fmspc in options["tdx"]),
        jwks=options["nras_keys"],
        rim_service=service,
    )
    nonce = (lambda: secrets.token_bytes(NONCE_BYTES)) if options["ocsp_nonce"] else None
    store = CollateralStore(options["store"])
    with _progress() as (begin, done):
        outcomes = collect(store, fetcher, wanted, now=utc_now(), new_nonce=nonce, begin=begin, done=done)
    click.echo(_outcomes(outcomes, options["output"]))
    return ExitCode.UNAVAILABLE if any(o.error for o in outcomes) else ExitCode.OK


def _fetcher(rim_service: str | None, service_key: Path | None) -> "Fetcher":
    from attestation.sources.atomic import read_bounded
    from attestation.sources.http import HTTPS_ORIGINS, Fetcher, origin_of

    key = read_bounded(service_key, _MAX_TOKEN_BYTES).decode("ascii", "replace").strip() if service_key else None
    bearer = dict.fromkeys((o for o in HTTPS_ORIGINS if "nvidia.com" in o), key) if key else {}
    extra = {origin_of(rim_service)} if rim_service else set()
    return Fetcher(https=HTTPS_ORIGINS | extra, bearer={o: k for o, k in bearer.items() if k})


def _ids_like(fetcher: "Fetcher", service: str, prefixes: Sequence[str]) -> tuple[str, ...]:
    from attestation.sources.nv_rim import MAX_IDS_BYTES, ids_url, parse_ids

    if not prefixes:
        return ()
    found = parse_ids(fetcher.get(ids_url(service), max_bytes=MAX_IDS_BYTES).body)
    return tuple(i for i in found if i.startswith(tuple(prefixes)) and not i.startswith("NV_NIC_"))


def _product(name: str) -> "Product":
    from attestation.formats.snp_tcb import Product

    return Product(name)


def _snp(path: Path) -> tuple["Product", "SnpReport"]:
    from attestation.formats.snp_report import parse_snp_report
    from attestation.formats.snp_tcb import product_of
    from attestation.sources.atomic import read_bounded

    report = parse_snp_report(read_bounded(path, 1 << 16))
    product = product_of(*report.cpuid[:2]) if report.cpuid is not None else None
    if product is None:
        raise Misconfigured("snp-product", "the report does not say its product", where=str(path), expected="version 3")
    return product, report


@contextmanager
def _progress() -> Iterator[tuple[Callable[[Sequence["Step"]], None], Callable[["Outcome"], None]]]:
    """One line on stderr, written over and over, for people; nothing where nobody looks."""
    shown = sys.stderr.isatty()
    wanted = finished = 0

    def begin(steps: Sequence["Step"]) -> None:
        nonlocal wanted
        wanted += len(steps)

    def done(outcome: "Outcome") -> None:
        nonlocal finished
        finished += 1
        if shown:
            click.echo(f"{_OVER}{finished}/{wanted} {outcome.step[:60]}", nl=False, err=True)

    try:
        yield begin, done
    finally:
        if shown:
            click.echo(_OVER, nl=False, err=True)


def _outcomes(outcomes: Sequence["Outcome"], output: str) -> str:
    if output == "json":
        rows = [
            {"step": o.step, "new": o.new, "error": {"code": o.error.code, "detail": str(o.error)} if o.error else None}
            for o in outcomes
        ]
        return json.dumps({"steps": rows, "failed": sum(1 for o in outcomes if o.error)}, indent=2)
    lines = [
        f"FAIL {o.step}: [{o.error.code}] {o.error}" if o.error else f"ok   {o.step}" + ("" if o.new else " (known)")
        for o in outcomes
    ]
    failed = sum(1 for o in outcomes if o.error)
    return "\n".join(
        [*lines, f"{sum(o.new for o in outcomes)} new documents, {failed} of {len(outcomes)} steps failed"]
    )
