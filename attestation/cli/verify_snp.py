"""`kata-gpu-kbs verify snp`: an AMD SEV-SNP report against its chain, policy and what it must commit to."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from attestation.cli.verification import FILE, Basis, load_store, read_policy, warn_simulated
from attestation.cli.verify_cpu import MAX_FILE_BYTES, CpuAsked, cpu_options, run_cpu
from attestation.errors import Misconfigured
from attestation.sources.atomic import read_bounded

if TYPE_CHECKING:
    from attestation.formats.snp_evidence import SnpEvidence
    from attestation.formats.snp_tcb import Product
    from attestation.sources.collateral import Collateral
    from attestation.verify.expected import CpuExpected
    from attestation.verify.snp_policy import SnpPolicy, TcbFloors
    from attestation.verify.snp_trust import AmdCollateral, AmdTrust
    from attestation.verify.verified import VerifiedCpu

_DEFAULT_CRL = "if-present"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked(CpuAsked):
    """The command line, typed."""

    report: Path | None
    leaf: Path | None
    chain: tuple[Path, ...]
    products: tuple[str, ...]
    versions: tuple[int, ...]
    chips: tuple[str, ...]
    csps: tuple[str, ...]
    vmpls: tuple[int, ...]
    min_tcb: tuple[str, ...]
    crl: str
    provisional: bool
    masked: bool

    @property
    def sets_rules(self) -> bool:
        """Whether options say what a policy file would."""
        lists = (self.products, self.versions, self.chips, self.csps, self.vmpls, self.min_tcb)
        return any(lists) or self.provisional or self.masked or self.crl != _DEFAULT_CRL


@click.command("snp")
@click.option("--report", type=FILE, help="The 1184 bytes of the report.")
@click.option("--leaf", type=FILE, help="Its VCEK or VLEK, DER or PEM.")
@click.option("--chain", type=FILE, multiple=True, help="ARK, ASK or ASVK, DER or PEM; several in a file are fine.")
@cpu_options
@click.option("--product", "products", type=click.Choice(["milan", "genoa", "turin"]), multiple=True,
              help="Accept this product. [default: genoa, turin]  Milan also needs --chip.")  # fmt: skip
@click.option("--report-version", "versions", type=click.IntRange(2, 5), multiple=True,
              help="Accept this report version. [default: 3, 5]")  # fmt: skip
@click.option("--chip", "chips", metavar="HEX", multiple=True, help="Accept only these chip ids.")
@click.option("--csp", "csps", metavar="ID", multiple=True, help="Accept VLEKs of this provider.")
@click.option("--vmpl", "vmpls", type=click.IntRange(0, 3), multiple=True, help="Accept this VMPL. [default: 0]")
@click.option("--min-tcb", metavar="PRODUCT:NAME=N,...", multiple=True,
              help="Floor of the reported and committed TCB, such as genoa:bootloader=10,snp=23.")  # fmt: skip
@click.option(
    "--crl",
    type=click.Choice(["require", "if-present", "off"]),
    default=_DEFAULT_CRL,
    show_default=True,
    help="Revocation list of the vendor: demanded, used where present, or ignored.",
)
@click.option("--allow-provisional-firmware", "provisional", is_flag=True, help="Accept firmware not yet committed.")
@click.option("--allow-masked-chip", "masked", is_flag=True, help="Accept reports that hide the chip id.")
def snp(**options: object) -> int:
    """Verify an AMD SEV-SNP report, offline.

    Level `authentic`: signed by a genuine chip. Level `trusted`: also allowed by policy, committed to --report-data,
    and of a --measurement that you know. Exit code 0 when the required level is reached, 1 when not.

    \b
    Examples:
      kata-gpu-kbs verify snp --report report.bin --leaf vcek.der --chain cert_chain.pem --require authentic
      kata-gpu-kbs verify snp --evidence evidence.json --collateral store/ --report-data 9f2c... --measurement 5ab1...
    """
    asked = _Asked(**options)  # type: ignore[arg-type]  # click made them by these names
    now = asked.now
    from attestation.verify.snp import verify_snp

    given = read_policy(asked.policy, instead_of=asked.sets_rules)
    stored = load_store(asked.collateral)
    trust, collateral = _trust(asked, stored)
    policy = given.snp if given else _policy(asked)

    def verify(expected: "CpuExpected") -> "tuple[VerifiedCpu, str]":
        cpu = verify_snp(
            _evidence(asked), trust=trust, collateral=collateral, policy=policy, expected=expected, now=now
        )
        return cpu, f"AMD SEV-SNP, {cpu.product}, chip {cpu.chip_id or 'not named'}"

    return run_cpu(asked, Basis.of(given, stored.bundle if stored else None), now, verify)


def _evidence(asked: _Asked) -> "SnpEvidence":
    from attestation.formats.snp_evidence import CertKind, SnpEvidence, parse_snp_evidence
    from attestation.formats.snp_report import REPORT_BYTES, parse_snp_report

    if asked.evidence is not None and asked.report is None:
        return parse_snp_evidence(read_bounded(asked.evidence, MAX_FILE_BYTES))
    if asked.evidence is not None or asked.report is None:
        raise Misconfigured("evidence-options", "what to verify", expected="--report and --leaf, or --evidence")
    report = read_bounded(asked.report, REPORT_BYTES)
    if asked.leaf is None:
        return SnpEvidence(report=report, certificates={})
    kind = CertKind.VLEK if parse_snp_report(report).signing_key == 1 else CertKind.VCEK
    return SnpEvidence(report=report, certificates={kind: read_bounded(asked.leaf, MAX_FILE_BYTES)})


def _trust(asked: _Asked, stored: "Collateral | None") -> "tuple[AmdTrust, AmdCollateral]":
    from attestation.verify.snp_trust import AmdTrust, StaticAmdCollateral

    if asked.simulated_roots is not None:
        from attestation.simulate.amd_pki import simulated_amd_collateral, simulated_amd_trust

        warn_simulated()
        return simulated_amd_trust(), simulated_amd_collateral()
    if stored is not None:
        return AmdTrust.production(), stored
    chain = [read_bounded(path, MAX_FILE_BYTES) for path in asked.chain]
    return AmdTrust.production(), StaticAmdCollateral(chain=chain)


def _policy(asked: _Asked) -> "SnpPolicy":
    from attestation.formats.snp_tcb import Product
    from attestation.verify.snp_policy import SnpPolicy
    from attestation.verify.snp_trust import ChainRules, CrlMode, LeafKind

    default = SnpPolicy()
    return SnpPolicy(
        products=frozenset(Product(name.capitalize()) for name in asked.products) or default.products,
        versions=frozenset(asked.versions) or default.versions,
        leaf_kinds=frozenset(LeafKind) if asked.csps else default.leaf_kinds,
        csp_ids=frozenset(asked.csps),
        chain=ChainRules(crl=CrlMode(asked.crl)),
        floors=dict(_floor(text) for text in asked.min_tcb),
        vmpls=frozenset(asked.vmpls) or default.vmpls,
        provisional_firmware=asked.provisional,
        masked_chip=asked.masked,
        chip_allow=frozenset(chip.lower() for chip in asked.chips) or None,
    )


def _floor(text: str) -> "tuple[Product, TcbFloors]":
    from attestation.formats.snp_tcb import Product, Tcb
    from attestation.verify.snp_policy import TcbFloors

    name, _, parts = text.partition(":")
    try:
        product = Product(name.capitalize())
        numbers = {key: int(number) for key, _, number in (part.partition("=") for part in parts.split(","))}
    except ValueError as exc:
        raise _bad_floor(text) from exc
    lowest = {"bootloader": 0, "tee": 0, "snp": 0, "microcode": 0} | ({"fmc": 0} if product.has_fmc else {})
    if not numbers.keys() <= lowest.keys():
        raise _bad_floor(text)
    tcb = Tcb(**lowest | numbers)
    return product, TcbFloors(reported=tcb, committed=tcb)


def _bad_floor(text: str) -> Misconfigured:
    return Misconfigured("min-tcb", "--min-tcb", expected="genoa:bootloader=10,snp=23", got=repr(text[:80]))
