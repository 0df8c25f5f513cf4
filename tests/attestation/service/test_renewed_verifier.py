"""Collateral that changes under a running broker: used at once, never half, and an empty shelf is not ready."""

from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest

from attestation.cli.platform import platform_verifier, stored_verifier
from attestation.cli.verification import BUILTIN
from attestation.errors import Malformed, Unavailable
from attestation.formats.collateral import Document, Kind, State
from attestation.ops.renewed_verifier import RenewedVerifier
from attestation.simulate.nv_products import PRODUCTS
from attestation.simulate.nvidia import NvidiaForge
from attestation.sources.collateral_store import CollateralStore
from attestation.values import Architecture
from tests.attestation.broker.broker import NOW
from tests.attestation.service.certificates import make

CHAIN = make("some authority")[0]
DOCUMENT = Document(kind=Kind.AMD_CA, id="Genoa-vcek", content=CHAIN, first_seen=NOW, source="test")


@pytest.fixture
def store(tmp_path: Path) -> CollateralStore:
    made = CollateralStore(tmp_path / "collateral")
    made.add(DOCUMENT)
    return made


def test_new_documents_are_used_without_a_restart(store: CollateralStore) -> None:
    """Once, and only where something changed."""
    verifier = RenewedVerifier(store, stored_verifier)
    first = verifier.current
    assert not verifier.renew()
    assert verifier.current is first
    store.add(replace(DOCUMENT, id="Turin-vcek"))
    assert verifier.renew()
    assert verifier.current is not first
    assert sorted(entry.id for entry in verifier.shelf) == ["Genoa-vcek", "Turin-vcek"]
    assert not verifier.renew()


def test_simulated_roots_take_the_documents_of_the_store(tmp_path: Path) -> None:
    """So that retiring one can be rehearsed; the simulator's own shelf is for a broker without a store."""
    store, forge = CollateralStore(tmp_path / "collateral"), NvidiaForge()
    rim_id, content = PRODUCTS[Architecture.HOPPER].driver_rim, forge.rim(Architecture.HOPPER, driver=True)
    document = Document(kind=Kind.RIM, id=rim_id, content=content, first_seen=NOW, source="test")
    store.add(document)
    verifier = RenewedVerifier(store, partial(stored_verifier, simulated_roots=BUILTIN))
    before = verifier.current
    assert before.trust.simulated
    assert before.collateral.rims.rims(rim_id) == (content,)
    assert (
        before.collateral_digest
        == store.load().digest()
        != platform_verifier(collateral=None, simulated_roots=BUILTIN).collateral_digest
    )
    store.set_state(document.kind, rim_id, document.sha256, State.RETIRED)
    assert verifier.renew()
    assert verifier.current.collateral.rims.rims(rim_id) == ()


def test_a_damaged_store_leaves_the_old_state_in_use(store: CollateralStore) -> None:
    """And says so every time, until it is mended."""
    verifier = RenewedVerifier(store, stored_verifier)
    first = verifier.current
    store.add(replace(DOCUMENT, id="Turin-vcek"))
    [path] = [p for p in (store.root / "amd-ca" / "Turin-vcek").iterdir() if p.suffix == ""]
    path.write_bytes(b"something else")
    for _ in range(2):
        with pytest.raises(Malformed):
            verifier.renew()
    assert verifier.current is first


def test_readiness_needs_something_usable(store: CollateralStore) -> None:
    """Until the last document has ended."""
    verifier = RenewedVerifier(store, stored_verifier)
    [entry] = verifier.shelf
    assert entry.ends is not None
    verifier.require_usable(entry.ends - timedelta(seconds=1))
    with pytest.raises(Unavailable) as caught:
        verifier.require_usable(entry.ends)
    assert caught.value.code == "collateral"


def test_an_unreadable_document_counts_as_ended(tmp_path: Path) -> None:
    """It does not keep the broker from starting."""
    store = CollateralStore(tmp_path / "collateral")
    store.add(replace(DOCUMENT, content=b"no certificate"))
    verifier = RenewedVerifier(store, stored_verifier)
    assert verifier.shelf[0].ends == NOW
    with pytest.raises(Unavailable):
        verifier.require_usable(NOW)
