"""The store directory: keyed by content, several documents an id, first-seen kept, damage refused."""

import json
import multiprocessing
from pathlib import Path

import pytest

from attestation.errors import Malformed, Misconfigured, Unavailable, Untrusted
from attestation.formats.bundle import parse_bundle
from attestation.formats.collateral import Document, Kind, State
from attestation.sources.atomic import read_bounded, write_atomic
from attestation.sources.bundle import build_bundle, import_bundle, read_signer, write_key_pair
from attestation.sources.collateral import Collateral, crl_id, ocsp_id
from attestation.sources.collateral_store import KEPT_ANSWERS, CollateralStore
from attestation.verify.bundle import load_bundle_key, verify_bundle
from attestation.verify.revocation import RevocationPolicy, RevocationStatus, check_revocation
from tests.attestation.collateral.conftest import DAY, NOW, Pki
from tests.attestation.collateral.test_bundle import document
from tests.attestation.forged_revocation import delegate, forge_crl, forge_ocsp

OLD, NEW = b"<rim issue='june'/>", b"<rim issue='december'/>"


@pytest.fixture
def store(tmp_path: Path) -> CollateralStore:
    return CollateralStore(tmp_path / "store")


def test_several_documents_of_one_id(store: CollateralStore) -> None:
    assert store.add(document(content=OLD))
    assert store.add(document(content=NEW, first_seen=NOW))
    assert not store.add(document(content=OLD, first_seen=NOW)), "known"
    collateral = store.load()
    assert collateral.rims("NV_GPU_DRIVER_GH100_1") == (NEW, OLD), "newest first"
    assert [d.first_seen for d in collateral.get(Kind.RIM, "NV_GPU_DRIVER_GH100_1")] == [NOW, NOW - 9 * DAY]
    assert collateral.rims("other") == ()


@pytest.mark.parametrize(
    ("state", "used"),
    [
        pytest.param(State.PINNED, (NEW,), id="gpu-137-older-reissue-excluded-by-pin"),
        pytest.param(State.RETIRED, (OLD,), id="retired"),
        pytest.param(State.ACTIVE, (NEW, OLD), id="active"),
    ],
)
def test_pin_and_retire(store: CollateralStore, state: State, used: tuple[bytes, ...]) -> None:
    store.add(document(content=OLD))
    store.add(newer := document(content=NEW, first_seen=NOW))
    changed = store.set_state(Kind.RIM, newer.id, newer.sha256, state)
    assert changed.state is state
    assert store.load().rims(newer.id) == used
    with pytest.raises(Misconfigured) as caught:
        store.set_state(Kind.RIM, newer.id, "00" * 32, state)
    assert caught.value.code == "not-stored"


def test_answers_are_pruned_and_rims_are_not(store: CollateralStore) -> None:
    for day in range(KEPT_ANSWERS + 3):
        store.add(document("1001", b"%d" % day, kind=Kind.OCSP, first_seen=NOW + day * DAY))
        store.add(document("rim", b"%d" % day, first_seen=NOW + day * DAY))
    assert len(store.load().get(Kind.OCSP, "1001")) == KEPT_ANSWERS
    assert store.load().get(Kind.OCSP, "1001")[0].first_seen == NOW + (KEPT_ANSWERS + 2) * DAY
    assert len(store.load().rims("rim")) == KEPT_ANSWERS + 3


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b" ")


@pytest.mark.parametrize(
    ("pattern", "content"),
    [
        pytest.param("rim/*/*[!n]", b"<other/>", id="content"),
        pytest.param("rim/*/*.json", b"{", id="not-json"),
        pytest.param("rim/*/*.json", b"{}", id="members"),
        pytest.param(
            "rim/*/*.json",
            json.dumps({"first_seen": "x", "source": "", "state": "active", "from_bundle": False}).encode(),
            id="time",
        ),
        pytest.param(
            "rim/*/*.json",
            json.dumps({"first_seen": NOW.isoformat(), "source": "", "state": "x", "from_bundle": False}).encode(),
            id="state",
        ),
    ],
)
def test_damage_is_refused(store: CollateralStore, pattern: str, content: bytes) -> None:
    store.add(document())
    (path,) = store.root.glob(pattern)
    path.write_bytes(content)
    with pytest.raises(Malformed) as caught:
        store.load()
    assert caught.value.code == "store-corrupt"


def test_missing_store(store: CollateralStore) -> None:
    with pytest.raises(Misconfigured) as caught:
        store.load()
    assert caught.value.code == "no-store"


def test_read_only_copy(store: CollateralStore) -> None:
    store.add(document())
    (store.root / ".lock").unlink()
    assert store.load().ids(Kind.RIM) == ("NV_GPU_DRIVER_GH100_1",)


def test_orphan_content_is_invisible(store: CollateralStore) -> None:
    """A crash between content and meta leaves content without a name: it does not exist."""
    store.add(document())
    (meta,) = store.root.glob("rim/*/*.json")
    meta.unlink()
    assert store.load().ids(Kind.RIM) == ()
    assert store.add(document()), "and can be added again"


def bundle_file(tmp_path: Path, documents: list[Document], *, day: int = 0) -> Path:
    if not (tmp_path / "key.pem").exists():
        write_key_pair(tmp_path / "key.pem", tmp_path / "key.pub")
    path = tmp_path / f"{day}.kgpubundle"
    path.write_bytes(build_bundle(documents, read_signer(tmp_path / "key.pem"), issued_at=NOW + day * DAY))
    return path


def test_bundle_replaces_its_predecessor_only(store: CollateralStore, tmp_path: Path) -> None:
    store.add(document("local"))
    retired = document("retired-here", first_seen=NOW)
    store.add(retired)
    store.set_state(Kind.RIM, retired.id, retired.sha256, State.RETIRED)
    first = bundle_file(tmp_path, [document("a"), document("b"), document("retired-here")])
    info, new = import_bundle(store, first, tmp_path / "key.pub", now=NOW)
    assert new == 2
    assert store.load().bundle == info
    assert store.load().ids(Kind.RIM) == ("a", "b", "local")
    second = bundle_file(tmp_path, [document("b"), document("c")], day=1)
    info, new = import_bundle(store, second, tmp_path / "key.pub", now=NOW + DAY)
    assert new == 1
    assert store.load().ids(Kind.RIM) == ("b", "c", "local")
    by_id = {s.document.id: s.document for s in store.stored()}
    assert by_id["retired-here"].first_seen == NOW - 9 * DAY, "the earlier first-seen time is the truth"
    with pytest.raises(Untrusted) as caught:
        import_bundle(store, first, tmp_path / "key.pub", now=NOW + DAY)
    assert caught.value.code == "bundle-rollback"
    assert store.load().bundle == info
    back, _ = import_bundle(store, first, tmp_path / "key.pub", now=NOW + DAY, allow_rollback=True)
    assert store.load().bundle == back
    assert store.load().ids(Kind.RIM) == ("a", "b", "local")


def test_two_imports_at_once(store: CollateralStore, tmp_path: Path) -> None:
    """Rollback is judged against the bundle in use; if that changes meanwhile, nothing is imported."""
    path = bundle_file(tmp_path, [document("a")])
    key = load_bundle_key((tmp_path / "key.pub").read_bytes())
    late = verify_bundle(path.read_bytes(), key, in_use=None, now=NOW + DAY)
    newer, _ = import_bundle(store, bundle_file(tmp_path, [document("b")], day=1), tmp_path / "key.pub", now=NOW + DAY)
    with pytest.raises(Unavailable) as caught:
        store.import_bundle(late, replacing=None)
    assert caught.value.code == "store-changed"
    assert (store.load().bundle, store.load().ids(Kind.RIM)) == (newer, ("b",))


def test_store_to_bundle_to_store(store: CollateralStore, tmp_path: Path) -> None:
    for item in (document("a"), document("b", NEW, state=State.ACTIVE), document("77", b"x", kind=Kind.TDX)):
        store.add(item)
    path = bundle_file(tmp_path, [s.document for s in store.stored()])
    other = CollateralStore(tmp_path / "other")
    import_bundle(other, path, tmp_path / "key.pub", now=NOW)
    assert other.load().documents == store.load().documents
    rebuilt = build_bundle([s.document for s in other.stored()], read_signer(tmp_path / "key.pem"), issued_at=NOW)
    assert rebuilt == path.read_bytes()
    assert parse_bundle(rebuilt).digest == other.load().bundle.digest  # type: ignore[union-attr]


def test_revocation_from_the_store(store: CollateralStore, pki: Pki) -> None:
    leaf, ca = pki.leaf.certificate, pki.ca.certificate
    ocsp = forge_ocsp(leaf, ca, delegate(pki.ca, now=NOW - 2 * DAY), this_update=NOW - DAY, next_update=NOW + 6 * DAY)
    crl = forge_crl(
        pki.ca, {pki.other_leaf.certificate.serial_number: None}, last_update=NOW - DAY, next_update=NOW + DAY
    )
    store.add(document(ocsp_id(leaf.serial_number), ocsp, kind=Kind.OCSP))
    store.add(document(crl_id(ca.subject), crl, kind=Kind.CRL))
    collateral = store.load()
    rule = RevocationPolicy().rim
    status = [
        check_revocation(c.certificate, ca, collateral, rule=rule, now=NOW).status for c in (pki.leaf, pki.other_leaf)
    ]
    assert status == [RevocationStatus.GOOD, RevocationStatus.REVOKED]
    assert check_revocation(ca, pki.root.certificate, collateral, rule=rule, now=NOW).reason == "absent"


def _add_many(root: Path, start: int) -> None:
    store = CollateralStore(root)
    for number in range(start, start + 20):
        store.add(document("shared", b"%d" % number))


def test_two_writers(store: CollateralStore) -> None:
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_add_many, args=(store.root, start)) for start in (0, 10)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [w.exitcode for w in writers] == [0, 0]
    assert len(store.load().rims("shared")) == 30


def test_atomic_write_failure_keeps_the_old(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old")
    with pytest.raises(Unavailable):
        write_atomic(path / "below-a-file", b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    with pytest.raises(Malformed):
        read_bounded(path, 2)
    with pytest.raises(Misconfigured):
        read_bounded(tmp_path / "absent", 2)


def test_retired_documents_are_not_found() -> None:
    collateral = Collateral.of([document("gone", state=State.RETIRED), document("77", b"{}", kind=Kind.TDX)])
    assert collateral.ids(Kind.RIM) == ()
    assert collateral.tdx("77") == (b"{}",)
    assert collateral.first_seen() == {}
    assert Collateral.of([known := document()]).first_seen() == {known.sha256: NOW - 9 * DAY}
