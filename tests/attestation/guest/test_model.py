"""Encrypting, decrypting, verifying and reading models; what happens when something between them was changed."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load, load_file

from attestation.crypto.stream import Header, Kind, seal_whole
from attestation.errors import AttestationError, Malformed, Misconfigured, Untrusted
from attestation.formats.model_manifest import MAX_NAME_CHARS, Manifest, ModelFile, parse_manifest
from attestation.guest.decrypt import MARKER, STAGING, decrypt_model
from attestation.guest.memory_fs import Exceptions, Proc
from attestation.guest.model import open_file, open_model, verify_file
from attestation.guest.tensors import read_tensor, read_tensors
from attestation.ops.model_sources import plan_sources
from attestation.values import Digest, Secret
from tests.attestation.guest.decoder import Refused, decode_model
from tests.attestation.guest.models import ANYWHERE, KEY, PROC, copy, encrypt, opened, tensors, tree

WEIGHTS = "model.safetensors"
LONG = "/".join(["d" * 100] * (MAX_NAME_CHARS // 100 + 1))


def test_round_trip_through_both_decoders(source: Path, encrypted: Path, memory: Path) -> None:
    """Every file comes back bit for bit, by our decoder and by the independent one."""
    model = opened(encrypted)
    warnings = decrypt_model(model, memory / "out", exceptions=ANYWHERE, proc=PROC)
    assert tree(memory / "out") == tree(source) == decode_model(encrypted, KEY.expose())
    assert (memory / "out" / MARKER).read_text().strip() == str(model.digest)
    assert not (memory / "out" / STAGING).exists()
    assert all("swap" in warning for warning in warnings)


def test_genuine_safetensors_reads_the_output(encrypted: Path, memory: Path) -> None:
    """The library that inference servers use, on our output."""
    decrypt_model(opened(encrypted), memory, exceptions=ANYWHERE, proc=PROC)
    loaded = load_file(memory / WEIGHTS)
    for name, tensor in tensors(0.5).items():
        assert np.array_equal(loaded[name].view(np.uint8), tensor.view(np.uint8))


def test_a_file_larger_than_a_span(tmp_path: Path, memory: Path) -> None:
    """Spans of one file by several threads; also with the last span short."""
    source = tmp_path / "big.bin"
    source.write_bytes(np.random.default_rng(1).bytes((33 << 20) + 12345))
    encrypt(source, tmp_path / "out", chunk_log2=18)
    decrypt_model(opened(tmp_path / "out"), memory, exceptions=ANYWHERE, proc=PROC, threads=3)
    assert (memory / "big.bin").read_bytes() == source.read_bytes()


def test_verify_reads_everything(encrypted: Path) -> None:
    """Sizes add up, and a wrong plaintext digest in an authentic manifest is still an error."""
    model = opened(encrypted)
    assert sum(verify_file(model, n) for n in range(len(model.manifest.files))) == model.manifest.size
    first = model.manifest.files[0]
    wrong = ModelFile(
        name=first.name, size=first.size, salt=first.salt, digest=first.digest, sha256=Digest("sha256", bytes(32))
    )
    forged = type(model)(
        folder=model.folder, manifest=Manifest((wrong, *model.manifest.files[1:])), digest=model.digest, key=model.key
    )
    with pytest.raises(Untrusted) as refused:
        verify_file(forged, 0)
    assert refused.value.code == "file-sha256"


# -- tampering with the folder ---------------------------------------------------------------------------------------


def patch(name: str, at: int) -> Callable[[Path], None]:
    """Flip a bit of a stored file; negative offsets count from the end."""

    def change(folder: Path) -> None:
        data = bytearray((folder / name).read_bytes())
        data[at] ^= 1
        (folder / name).write_bytes(data)

    return change


def exchange(first: str, second: str) -> Callable[[Path], None]:
    """Two files in each other's place."""

    def change(folder: Path) -> None:
        a, b = (folder / first).read_bytes(), (folder / second).read_bytes()
        (folder / first).write_bytes(b)
        (folder / second).write_bytes(a)

    return change


def cut(name: str, size: int) -> Callable[[Path], object]:
    """Cut a file off."""
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size])


# manifest order: config.json, empty, model.safetensors, tokenizer/vocab.txt
CHANGES: list[tuple[str, Callable[[Path], object], str]] = [
    ("manifest-header", patch("manifest.kgm", 20), "header-tag"),
    ("manifest-salt", patch("manifest.kgm", 40), "header-tag"),
    ("manifest-tag", patch("manifest.kgm", 80), "header-tag"),
    ("manifest-body", patch("manifest.kgm", 100), "chunk-tag"),
    ("manifest-end", patch("manifest.kgm", -1), "chunk-tag"),
    ("manifest-cut", cut("manifest.kgm", 150), "stored-size"),
    ("manifest-gone", lambda f: (f / "manifest.kgm").unlink(), "no-manifest"),
    (
        "manifest-is-a-file",
        lambda f: (f / "manifest.kgm").write_bytes((f / "000000.kgf").read_bytes()),
        "kind",
    ),
    (
        "file-is-a-manifest",
        lambda f: (f / "000000.kgf").write_bytes((f / "manifest.kgm").read_bytes()),
        "kind",
    ),
    ("files-swapped", exchange("000000.kgf", "000003.kgf"), "file-swapped"),
    ("file-gone", lambda f: (f / "000003.kgf").unlink(), "stored-file"),
    ("file-cut", cut("000002.kgf", 70_000), "stored-size"),
    ("file-link", lambda f: _link(f), "stored-file"),
    ("weights-first-chunk", patch("000002.kgf", 96), "chunk-tag"),
    ("weights-middle", patch("000002.kgf", 200_000), "chunk-tag"),
    ("weights-last-tag", patch("000002.kgf", -1), "chunk-tag"),
    ("empty-file-tag", patch("000001.kgf", -1), "chunk-tag"),
]


def _link(folder: Path) -> None:
    (folder / "000000.kgf").rename(folder / "elsewhere")
    (folder / "000000.kgf").symlink_to("elsewhere")


@pytest.mark.parametrize(("change", "code"), [pytest.param(c, code, id=name) for name, c, code in CHANGES])
def test_a_changed_folder_is_refused_and_leaves_nothing(
    encrypted: Path, tmp_path: Path, memory: Path, change: Callable[[Path], object], code: str
) -> None:
    """No file under its final name, no staging folder, no marker."""
    folder = copy(encrypted, tmp_path / "model.kgm")
    change(folder)
    with pytest.raises(AttestationError) as refused:
        decrypt_model(opened(folder), memory / "out", exceptions=ANYWHERE, proc=PROC)
    assert refused.value.code == code
    assert not (memory / "out").exists() or list((memory / "out").iterdir()) == []


def other_manifest(folder: Path, **change: object) -> None:
    """An authentic manifest whose first entry says something else."""
    model = opened(folder)
    first, *rest = model.manifest.files
    plain = Manifest((replace(first, **change), *rest)).render()  # type: ignore[arg-type]
    header = Header(kind=Kind.MANIFEST, chunk_log2=16, size=len(plain), salt=bytes(range(32)))
    (folder / "manifest.kgm").write_bytes(seal_whole(KEY, header, plain))


@pytest.mark.parametrize(
    ("change", "code"),
    [
        pytest.param({"digest": Digest("sha256", bytes(32))}, "file-digest", id="digest"),
        pytest.param({"salt": bytes(range(32, 64))}, "file-swapped", id="salt"),
        pytest.param({"size": 17}, "file-swapped", id="size"),
    ],
)
@pytest.mark.parametrize("megabytes", [0.5, 33], ids=["small", "larger-than-a-span"])
def test_a_file_that_is_not_what_the_manifest_names(
    tmp_path: Path, memory: Path, megabytes: float, change: dict[str, object], code: str
) -> None:
    """Salt, size and digest of every file are part of the manifest; in both decoders."""
    source = tmp_path / "weights.bin"
    source.write_bytes(bytes(int(megabytes * (1 << 20))))
    folder = tmp_path / "model.kgm"
    encrypt(source, folder, chunk_log2=20)
    other_manifest(folder, **change)
    with pytest.raises(Untrusted) as refused:
        decrypt_model(opened(folder), memory / "out", exceptions=ANYWHERE, proc=PROC)
    assert refused.value.code == code
    assert list((memory / "out").iterdir()) == []
    with pytest.raises(Untrusted):
        verify_file(opened(folder), 0)
    with pytest.raises(Refused):
        decode_model(folder, KEY.expose())


def test_wrong_key(encrypted: Path) -> None:
    """Told at the manifest's header."""
    with pytest.raises(Untrusted, match="wrong model key"):
        opened(encrypted, Secret(bytes(31) + b"\x01"))


def test_pinned_digest_refuses_an_older_encryption(source: Path, encrypted: Path, tmp_path: Path) -> None:
    """Two complete encryptions under one key are told apart by their digest only."""
    newer = encrypt(source, tmp_path / "newer", seed="newer")
    open_model(tmp_path / "newer", KEY, expect=newer.digest)
    with pytest.raises(Untrusted) as refused:
        open_model(encrypted, KEY, expect=newer.digest)
    assert refused.value.code == "model-digest"


def test_second_version_under_the_same_key(source: Path, encrypted: Path, tmp_path: Path, memory: Path) -> None:
    """Every salt is new, no stored byte repeats, and a file of one version does not fit the other."""
    encrypt(source, tmp_path / "second", seed="second")
    first, second = opened(encrypted).manifest.files, opened(tmp_path / "second").manifest.files
    salts = {f.salt for f in (*first, *second)}
    assert len(salts) == len(first) + len(second)
    for index in range(len(first)):
        ours, theirs = ((f / f"{index:06d}.kgf").read_bytes()[32:] for f in (encrypted, tmp_path / "second"))
        assert ours[:16] != theirs[:16]
        assert ours[64:80] != theirs[64:80]
    mixed = copy(encrypted, tmp_path / "mixed")
    (mixed / "000002.kgf").write_bytes((tmp_path / "second" / "000002.kgf").read_bytes())
    with pytest.raises(Untrusted) as refused:
        decrypt_model(opened(mixed), memory / "out", exceptions=ANYWHERE, proc=PROC)
    assert refused.value.code == "file-swapped"


# -- reading parts ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offset", "length"),
    [(0, 0), (0, 1), (65535, 2), (65536, 65536), (100, 200_000), (0, None), (524_000, 10)],
)
def test_any_range(source: Path, encrypted: Path, offset: int, length: int | None) -> None:
    """Ranges inside, across and at the edges of chunks."""
    model, plain = opened(encrypted), (source / WEIGHTS).read_bytes()
    with open_file(model, model.index(WEIGHTS)) as stored:
        size = len(plain) if length is None else length
        assert b"".join(bytes(v) for v in stored.read(offset, size)) == plain[offset : offset + size]


@pytest.mark.parametrize(("offset", "length"), [(-1, 2), (0, 1 << 30), (1 << 30, 0)])
def test_ranges_outside_the_file(encrypted: Path, offset: int, length: int) -> None:
    """Refused before anything is read."""
    model = opened(encrypted)
    with open_file(model, model.index(WEIGHTS)) as stored, pytest.raises(Misconfigured, match="outside the file"):
        next(stored.read(offset, length))


def test_one_tensor_opens_only_its_chunks(encrypted: Path, tmp_path: Path) -> None:
    """A tensor is read although a chunk elsewhere in the file is damaged; one in the damaged chunk is not."""
    folder = copy(encrypted, tmp_path / "model.kgm")
    patch("000002.kgf", 400_000)(folder)
    model = opened(folder)
    with open_file(model, model.index(WEIGHTS)) as stored:
        listed = read_tensors(stored)
        assert sorted(listed) == sorted(tensors(0.5))
        expected = tensors(0.5)["model.norm.bias"]
        assert b"".join(bytes(v) for v in read_tensor(stored, "model.norm.bias")) == expected.tobytes()
        assert listed["model.norm.bias"].shape == expected.shape
        with pytest.raises(Untrusted):
            list(read_tensor(stored, "model.embed.weight"))
        with pytest.raises(Misconfigured, match="no such tensor"):
            read_tensor(stored, "model.other")


def test_no_such_file(encrypted: Path) -> None:
    """Named, not guessed."""
    with pytest.raises(Misconfigured, match="no such file"):
        opened(encrypted).index("other.bin")


def test_safetensors_from_memory(encrypted: Path) -> None:
    """What `cat` writes is the file."""
    model = opened(encrypted)
    with open_file(model, model.index(WEIGHTS)) as stored:
        loaded = load(b"".join(bytes(v) for v in stored.chunks()))
        stored.verify_digest()
    assert loaded["model.step"].tolist() == [12345]


# -- where plaintext may go ------------------------------------------------------------------------------------------


def fake_proc(root: Path, *, kind: str, folder: Path, swap: str = "") -> Proc:
    """Kernel tables that say what the filesystem of `folder` is."""
    device = folder.stat().st_dev
    (root / "self").mkdir(parents=True)
    major, minor = device >> 8 & 0xFFF, (device & 0xFF) | (device >> 12 & 0xFFF00)
    line = f"36 35 {major}:{minor} / /x rw,noatime master:1 - {kind} none rw\n" if kind else ""
    (root / "self" / "mountinfo").write_text(f"1 1 0:999 / / rw - proc proc rw\n{line}")
    (root / "swaps").write_text(f"Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n{swap}")
    return Proc(root)


SWAP = "/dev/sda2 partition 1048572 0 -2\n"


@pytest.mark.parametrize(
    ("kind", "swap", "exceptions", "code", "warnings"),
    [
        pytest.param("tmpfs", "", Exceptions(), "", 0, id="tmpfs"),
        pytest.param("ramfs", SWAP, Exceptions(), "", 0, id="ramfs-is-never-swapped"),
        pytest.param("tmpfs", SWAP, Exceptions(), "swap-on", 0, id="tmpfs-with-swap"),
        pytest.param("tmpfs", SWAP, Exceptions(swap=True), "", 1, id="tmpfs-with-swap-allowed"),
        pytest.param("ext4", "", Exceptions(), "not-memory", 0, id="ext4"),
        pytest.param("overlay", "", Exceptions(swap=True), "not-memory", 0, id="overlay"),
        pytest.param("", "", Exceptions(), "not-memory", 0, id="unknown"),
        pytest.param("ext4", "", Exceptions(disk=True), "", 1, id="ext4-allowed"),
        pytest.param("ext4", SWAP, Exceptions(disk=True), "swap-on", 0, id="ext4-allowed-but-swap"),
        pytest.param("ext4", SWAP, Exceptions(disk=True, swap=True), "", 2, id="both-allowed"),
    ],
)
def test_plaintext_goes_to_memory_only(
    encrypted: Path, tmp_path: Path, kind: str, swap: str, exceptions: Exceptions, code: str, warnings: int
) -> None:
    """The kernel's tables decide; a refusal leaves nothing."""
    target = tmp_path / "target"
    target.mkdir()
    proc = fake_proc(tmp_path / "proc", kind=kind, folder=target, swap=swap)
    if code:
        with pytest.raises(Misconfigured) as refused:
            decrypt_model(opened(encrypted), target, exceptions=exceptions, proc=proc)
        assert refused.value.code == code
        assert list(target.iterdir()) == []
    else:
        assert len(decrypt_model(opened(encrypted), target, exceptions=exceptions, proc=proc)) == warnings


def test_a_restarted_container_decrypts_again(source: Path, encrypted: Path, memory: Path) -> None:
    """Over what an earlier run left: complete files are replaced, a half-done staging folder goes away."""
    (memory / STAGING).mkdir()
    (memory / STAGING / WEIGHTS).write_bytes(b"half")
    (memory / WEIGHTS).write_bytes(b"older version")
    decrypt_model(opened(encrypted), memory, exceptions=ANYWHERE, proc=PROC, mode=0o440)
    assert tree(memory) == tree(source)
    assert (memory / WEIGHTS).stat().st_mode & 0o777 == 0o440


# -- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "/abs",
        "a/../b",
        "a//b",
        "a/",
        "./a",
        "a\\b",
        "a\nb",
        "a\0b",
        "x" * 256,
        "ü" * 128,
        LONG,
        "\ud800",
    ],
)
def test_names_that_leave_the_folder(name: str) -> None:
    """A manifest cannot name them, even an authentic one."""
    with pytest.raises(Malformed) as refused:
        ModelFile(name=name, size=0, salt=bytes(32), digest=Digest("sha256", bytes(32)))
    assert refused.value.code == "manifest-name"


def entry(name: str) -> ModelFile:
    return ModelFile(name=name, size=0, salt=bytes(32), digest=Digest("sha256", bytes(32)))


@pytest.mark.parametrize(
    ("names", "code"),
    [
        ((), "manifest-files"),
        (("a", "a"), "manifest-order"),
        (("b", "a"), "manifest-order"),
        (("a", "a/b"), "manifest-name"),
        (("a", "a-", "a/b"), "manifest-name"),
    ],
)
def test_manifests_that_cannot_be(names: tuple[str, ...], code: str) -> None:
    """Empty, unsorted, twice, file and folder at once."""
    with pytest.raises(Malformed) as refused:
        Manifest(tuple(entry(name) for name in names))
    assert refused.value.code == code


@pytest.mark.parametrize(
    ("change", "code"),
    [
        pytest.param(lambda t: t.replace(b'"version":1', b'"version":2'), "manifest-version", id="version"),
        pytest.param(lambda t: t.replace(b'"version":1', b'"version": 1'), "manifest-canonical", id="spelling"),
        pytest.param(lambda t: t.replace(b'"size":0', b'"size":-1'), "manifest-file", id="negative"),
        pytest.param(lambda t: t.replace(b'"size":0', b'"size":0.0'), "manifest-members", id="float"),
        pytest.param(lambda t: t.replace(b'"size":0', b'"size":true'), "manifest-members", id="bool"),
        pytest.param(lambda t: t.replace(b'"size":0', b'"size":0,"mode":1'), "manifest-members", id="unknown"),
        pytest.param(lambda t: t.replace(b'"size":0', b'"size":0,"size":0'), "manifest-canonical", id="twice"),
        pytest.param(lambda t: t.replace(b'"files"', b'"fails"'), "manifest-members", id="member"),
        pytest.param(lambda t: t[:-1], "manifest-json", id="cut"),
        pytest.param(lambda _t: b"[]", "manifest-members", id="list"),
        pytest.param(lambda _t: b"[" * 100_000, "manifest-json", id="deep"),
        pytest.param(lambda t: t + b" " * (17 << 20), "manifest-size", id="large"),
        pytest.param(lambda t: t.replace(b"00" * 32, b"zz" * 32, 1), "digest-text", id="digest"),
        pytest.param(lambda t: t.replace(b'"salt":"00', b'"salt":"0'), "manifest-salt", id="salt"),
    ],
)
def test_manifest_text_is_strict(change: Callable[[bytes], bytes], code: str) -> None:
    """One spelling, exact members."""
    text = Manifest((entry("a"),)).render()
    assert parse_manifest(text).files == (entry("a"),)
    with pytest.raises(Malformed) as refused:
        parse_manifest(change(text))
    assert refused.value.code == code


def test_sources_follow_links_to_files_only(tmp_path: Path) -> None:
    """Model caches are folders of links to blobs; a link to a folder could be a loop."""
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "abc").write_bytes(b"weights")
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot" / "model.bin").symlink_to("../blobs/abc")
    assert list(plan_sources(tmp_path / "snapshot")) == ["model.bin"]
    (tmp_path / "snapshot" / "loop").symlink_to(".")
    with pytest.raises(Misconfigured) as refused:
        plan_sources(tmp_path / "snapshot")
    assert refused.value.code == "source-link"


@pytest.mark.parametrize("case", ["missing", "empty", "dangling"])
def test_sources_that_are_none(tmp_path: Path, case: str) -> None:
    """Nothing is skipped silently."""
    folder = tmp_path / "source"
    if case != "missing":
        folder.mkdir()
    if case == "dangling":
        (folder / "gone").symlink_to("nowhere")
    with pytest.raises(Misconfigured):
        plan_sources(folder)
