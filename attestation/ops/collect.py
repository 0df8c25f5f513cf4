"""Fetching collateral into a store: what is wanted, one step each, and what became of every step.

A step that fails is reported and does not stop the others: half a fetch is better than none, and nothing that was in
the store before is lost. Reference documents and revocation answers are verified before they are kept.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from itertools import pairwise

from cryptography import x509

from attestation.errors import AttestationError, Malformed
from attestation.formats.certs import parse_bundle
from attestation.formats.collateral import MAX_DOCUMENT_BYTES, Document, Kind
from attestation.formats.rim_signature import parse_signed_rim
from attestation.formats.snp_report import SnpReport
from attestation.formats.snp_tcb import Product, parse_tcb
from attestation.sources.amd_kds import fetch_authorities, fetch_vcek
from attestation.sources.collateral_store import CollateralStore
from attestation.sources.crls import distribution_points, fetch_crl
from attestation.sources.http import Fetcher
from attestation.sources.intel_pcs import fetch_tdx
from attestation.sources.nv_ocsp import OCSP_SERVICE, Pair, fetch_ocsp
from attestation.sources.nv_rim import MAX_ANSWER_BYTES, RIM_SERVICE, parse_rim_answer, rim_url
from attestation.verify.nras_token import parse_jwks
from attestation.verify.rim import verify_rim
from attestation.verify.roots import Anchors, NvTrust
from attestation.verify.snp_trust import LeafKind
from attestation.verify.unreadable import UNREADABLE

NRAS_HOST = "nras.attestation.nvidia.com"
NRAS_JWKS = f"https://{NRAS_HOST}/.well-known/jwks.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What to fetch. `chains` are PEM device chains whose CAs' revocation is asked for."""

    rim_ids: tuple[str, ...] = ()
    chains: tuple[bytes, ...] = ()
    revocation: bool = True
    snp_reports: tuple[tuple[Product, SnpReport], ...] = ()
    amd_products: tuple[Product, ...] = ()
    fmspcs: tuple[tuple[str, str], ...] = ()  # (FMSPC, PCK CA)
    jwks: bool = False
    rim_service: str = RIM_SERVICE
    ocsp_service: str = OCSP_SERVICE
    rim_roots: Anchors = field(default_factory=lambda: NvTrust.production().rim_roots)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One step: how many documents were new, or why there are none."""

    step: str
    new: int = 0
    error: AttestationError | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """A name for people, and the documents that doing it brings."""

    name: str
    fetch: Callable[[], Iterable[Document]]


def collect(
    store: CollateralStore,
    fetcher: Fetcher,
    wanted: Wanted,
    *,
    now: datetime,
    new_nonce: Callable[[], bytes] | None,
    begin: Callable[[Sequence[Step]], None],
    done: Callable[[Outcome], None],
) -> list[Outcome]:
    """Fetch everything; revocation comes second, because reference documents name the signers to ask about.

    `new_nonce` gives OCSP nonces, None asks without. `begin` hears of each batch of steps, `done` of each outcome.
    """
    outcomes = []
    for batch in (_documents, _revocations):
        steps = list(batch(store, fetcher, wanted, now, new_nonce))
        begin(steps)
        for step in steps:
            outcome = _run(store, step)
            outcomes.append(outcome)
            done(outcome)
    return outcomes


def _run(store: CollateralStore, step: Step) -> Outcome:
    try:
        return Outcome(step=step.name, new=sum(store.add(document) for document in step.fetch()))
    except AttestationError as exc:
        return Outcome(step=step.name, error=exc)


def _documents(
    _store: CollateralStore,
    fetcher: Fetcher,
    wanted: Wanted,
    now: datetime,
    _new_nonce: Callable[[], bytes] | None,
) -> Iterator[Step]:
    for rim_id in wanted.rim_ids:
        yield Step(f"reference document {rim_id}", partial(_rim, fetcher, rim_id, wanted, now))
    for product, report in wanted.snp_reports:
        yield Step(f"VCEK {report.chip_id.hex()[:16]}", partial(_vcek, fetcher, product, report, now))
    for product in sorted({*wanted.amd_products, *(p for p, _ in wanted.snp_reports)}):
        for kind in LeafKind:
            yield Step(f"AMD {product} {kind} authorities", partial(fetch_authorities, fetcher, product, kind, now=now))
    for fmspc, ca in wanted.fmspcs:
        yield Step(f"TDX {fmspc} {ca}", partial(_tdx, fetcher, fmspc, ca, now))
    if wanted.jwks:
        yield Step("NRAS key set", partial(_jwks, fetcher, now))


def _rim(fetcher: Fetcher, rim_id: str, wanted: Wanted, now: datetime) -> list[Document]:
    url = rim_url(rim_id, wanted.rim_service)
    content = parse_rim_answer(fetcher.get(url, max_bytes=MAX_ANSWER_BYTES).body, rim_id)
    verify_rim(content, anchors=wanted.rim_roots)
    return [Document(kind=Kind.RIM, id=rim_id, content=content, first_seen=now, source=url)]


def _vcek(fetcher: Fetcher, product: Product, report: SnpReport, now: datetime) -> list[Document]:
    tcb = parse_tcb(report.reported_tcb, product, "reported_tcb")
    return [fetch_vcek(fetcher, product, report.chip_id, tcb, now=now)]


def _tdx(fetcher: Fetcher, fmspc: str, ca: str, now: datetime) -> list[Document]:
    return [fetch_tdx(fetcher, fmspc, ca, now=now)]


def _jwks(fetcher: Fetcher, now: datetime) -> list[Document]:
    body = fetcher.get(NRAS_JWKS, max_bytes=MAX_DOCUMENT_BYTES[Kind.JWKS]).body
    parse_jwks(body)
    return [Document(kind=Kind.JWKS, id=NRAS_HOST, content=body, first_seen=now, source=NRAS_JWKS)]


def _revocations(
    store: CollateralStore,
    fetcher: Fetcher,
    wanted: Wanted,
    now: datetime,
    new_nonce: Callable[[], bytes] | None,
) -> Iterator[Step]:
    if not wanted.revocation:
        return
    asked: set[str] = set()
    for name, pair in _pairs(store, wanted):
        yield Step(f"OCSP {name}", partial(_ocsp, fetcher, pair, wanted, now, new_nonce))
        for url in distribution_points(pair.certificate):
            if url not in asked:
                asked.add(url)
                yield Step(f"CRL {url}", partial(_crl, fetcher, pair, url, now))


def _ocsp(
    fetcher: Fetcher, pair: Pair, wanted: Wanted, now: datetime, new_nonce: Callable[[], bytes] | None
) -> list[Document]:
    nonce = new_nonce() if new_nonce is not None else None
    return [fetch_ocsp(fetcher, pair, nonce=nonce, now=now, service=wanted.ocsp_service)]


def _crl(fetcher: Fetcher, pair: Pair, url: str, now: datetime) -> list[Document]:
    return [fetch_crl(fetcher, pair.certificate, pair.issuer, url, now=now)]


def _pairs(store: CollateralStore, wanted: Wanted) -> Iterator[tuple[str, Pair]]:
    """Signers of every stored reference document, and the CAs of device chains; each once.

    Device leaves are left out: the responder says GOOD for device serials that it never saw (gpu-attestation.md 2.4).
    """
    seen: set[tuple[bytes, bytes]] = set()
    chains = [ders[1:] for ders in map(parse_bundle, wanted.chains)]
    if store.root.is_dir():
        collateral = store.load()
        for rim_id in collateral.ids(Kind.RIM):
            chains += [parse_signed_rim(document).certificates for document in collateral.rims(rim_id)]
    for chain in chains:
        for certificate, issuer in pairwise(chain):
            if (certificate, issuer) not in seen:
                seen.add((certificate, issuer))
                yield _pair(certificate, issuer)


def _pair(certificate: bytes, issuer: bytes) -> tuple[str, Pair]:
    try:
        pair = Pair(x509.load_der_x509_certificate(certificate), x509.load_der_x509_certificate(issuer))
        return pair.certificate.subject.rfc4514_string(), pair
    except UNREADABLE as exc:
        raise Malformed("certificate", "unreadable certificate", where="chain", got=str(exc)[:80]) from exc
