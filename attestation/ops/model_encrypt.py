"""Encrypt a model: a file or folder in, a folder of stored files and one manifest out (docs/model-format.md).

Crash-safe without trusting the disk: a run that starts again opens what is stored and compares it with the source, and
keeps only chunks that are still the encryption of what is there now (large files: `encrypt_journal`). A source that
changed gets a new salt and a new start. The manifest comes last: without it there is no encrypted model.
"""

import fcntl
import hashlib
import hmac
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from attestation.crypto.stream import (
    DEFAULT_CHUNK_LOG2,
    HEADER_BYTES,
    SALT_BYTES,
    TAG_BYTES,
    FileCipher,
    Header,
    Kind,
    parse_header,
    seal_whole,
)
from attestation.errors import AttestationError, Misconfigured, Unavailable
from attestation.formats.model_manifest import MANIFEST_NAME, MAX_FILES, Manifest, ModelFile, check_name, stored_name
from attestation.ops.encrypt_journal import (
    BATCH_BYTES,
    NONCE_BYTES,
    Journal,
    append_durably,
    load_journal,
    start_journal,
)
from attestation.sources.blocks import opened, read_exact, sync_folder, write_all
from attestation.values import Digest, Secret

MAX_THREADS = 16  # each holds three chunks of at most 4 MiB; more gains nothing on one disk

Progress = Callable[[int], None]
RandomBytes = Callable[[int], bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to encrypt. `sha256` adds a digest of the plaintext to the manifest, which takes longer than the rest."""

    threads: int = 2
    chunk_log2: int = DEFAULT_CHUNK_LOG2
    sha256: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Encrypted:
    """What a run made. `digest` names this encryption as a whole: SHA-256 of the stored manifest."""

    manifest: Manifest
    digest: Digest
    kept_bytes: int  # plaintext bytes that an earlier run had already encrypted


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    source: Path
    name: str
    size: int
    target: Path

    @property
    def partial(self) -> Path:
        """Stored file in the making."""
        return self.target.with_suffix(".partial")

    @property
    def journal(self) -> Path:
        """Records of a large file in the making."""
        return self.target.with_suffix(".journal")


def plan_sources(source: Path) -> dict[str, Path]:
    """Name to path of every file below `source`, sorted; a single file is a model of one file.

    Links to files are followed (model caches are made of them), links to folders are refused.
    """
    if source.is_file():
        check_name(source.name)
        return {source.name: source}
    if not source.is_dir():
        raise Misconfigured("source", "no such file or folder", where=str(source))
    found: dict[str, Path] = {}
    for folder, folders, files in os.walk(source):
        for name in folders:
            if Path(folder, name).is_symlink():
                raise Misconfigured("source-link", "links to folders are not followed", where=str(Path(folder, name)))
        for name in files:
            path = Path(folder, name)
            relative = path.relative_to(source).as_posix()
            check_name(relative)
            if not path.is_file():
                raise Misconfigured("source-special", "not a regular file", where=str(path))
            found[relative] = path
        if len(found) > MAX_FILES:
            raise Misconfigured("source-files", "too many files", where=str(source), expected=f"at most {MAX_FILES}")
    if not found:
        raise Misconfigured("source-empty", "no files to encrypt", where=str(source))
    return dict(sorted(found.items()))


def encrypt_model(
    sources: dict[str, Path],
    out: Path,
    model_key: Secret,
    *,
    random: RandomBytes,
    options: Options,
    progress: Progress = lambda _size: None,
) -> Encrypted:
    """Encrypt every source into `out`, going on where an earlier run with the same key and sources stopped."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with opened(out, os.O_RDONLY | os.O_DIRECTORY) as lock:
            _lock(lock, out)
            jobs = [
                _Job(source=path, name=name, size=path.stat().st_size, target=out / stored_name(index))
                for index, (name, path) in enumerate(sources.items())
            ]
            with _Encrypter(model_key, random, options, progress) as encrypter:
                manifest = Manifest(tuple(encrypter.run(jobs)))
            digest = _write_manifest(out, manifest, model_key, random(SALT_BYTES), options.chunk_log2)
    except OSError as exc:
        raise Unavailable("encrypt-io", exc.strerror or "I/O error", where=str(exc.filename or out)) from exc
    return Encrypted(manifest=manifest, digest=digest, kept_bytes=encrypter.kept_bytes)


def _lock(fd: int, out: Path) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as exc:
        raise Misconfigured("out-busy", "another run encrypts into this folder", where=str(out)) from exc
    if (out / MANIFEST_NAME).exists():
        raise Misconfigured("out-complete", "holds a complete encrypted model", where=str(out), expected="a new folder")


def _write_manifest(out: Path, manifest: Manifest, key: Secret, salt: bytes, chunk_log2: int) -> Digest:
    plain = manifest.render()
    stored = seal_whole(key, Header(kind=Kind.MANIFEST, chunk_log2=chunk_log2, size=len(plain), salt=salt), plain)
    sync_folder(out)
    partial = out / f"{MANIFEST_NAME}.partial"
    with opened(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as fd:
        write_all(fd, stored, 0)
        os.fsync(fd)
    partial.rename(out / MANIFEST_NAME)
    sync_folder(out)
    return Digest("sha256", hashlib.sha256(stored).digest())


@dataclass(frozen=True, slots=True)
class _Buffers:
    """Three chunks of one thread."""

    plain: memoryview
    sealed: memoryview
    opened: memoryview


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stored:
    """A stored file in the making, or one to compare with: collects the tags that its digest is made of."""

    fd: int
    cipher: FileCipher
    tags: bytearray

    def seal(self, index: int, plain: memoryview, buffers: _Buffers) -> None:
        """Encrypt and write one chunk."""
        view = buffers.sealed[: len(plain) + TAG_BYTES]
        self.cipher.seal_into(index, plain, view)
        write_all(self.fd, view, self.cipher.header.offset(index))
        self._note(index, view)

    def holds(self, index: int, plain: memoryview, buffers: _Buffers) -> bool:
        """Whether the stored chunk is durable, authentic and equal to this plaintext."""
        view, out = buffers.sealed[: len(plain) + TAG_BYTES], buffers.opened[: len(plain)]
        try:
            read_exact(self.fd, view, self.cipher.header.offset(index), "stored chunk")
            self.cipher.open_into(index, view, out)
        except AttestationError:
            return False
        self._note(index, view)
        return hmac.compare_digest(out, plain)

    def _note(self, index: int, view: memoryview) -> None:
        self.tags[index * TAG_BYTES : (index + 1) * TAG_BYTES] = view[-TAG_BYTES:]


class _Encrypter:
    """Threads and buffers of one run. Files of a batch or less go to one thread each; larger ones are pipelined."""

    def __init__(self, key: Secret, random: RandomBytes, options: Options, progress: Progress) -> None:
        self._key, self._random, self._options, self._progress = key, random, options, progress
        self._pool = ThreadPoolExecutor(max(1, min(options.threads, MAX_THREADS)))
        self._local = threading.local()
        self._lock = threading.Lock()
        self.kept_bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def run(self, jobs: list[_Job]) -> list[ModelFile]:
        """Manifest entries in the order of the jobs."""
        small = {job.name: self._pool.submit(self._file, job) for job in jobs if job.size <= BATCH_BYTES}
        return [small[job.name].result() if job.name in small else self._file(job) for job in jobs]

    def _file(self, job: _Job) -> ModelFile:
        with opened(job.source, os.O_RDONLY) as source:
            _require_size(source, job)
            done = self._finished(job, source)
            if done is None:
                done = self._large(job, source) if job.size > BATCH_BYTES else self._small(job, source)
            _require_size(source, job)
        return done

    def _finished(self, job: _Job, source: int) -> ModelFile | None:
        """The entry of a stored file that an earlier run finished, if it is the encryption of this very source."""
        if not job.target.exists():
            return None
        with opened(job.target, os.O_RDONLY) as fd:
            cipher = self._same_header(fd, job)
            if cipher is None or os.fstat(fd).st_size != cipher.header.stored_size:
                return None
            stored, sha256 = _stored(fd, cipher), self._sha256()
            buffers = self._buffers()
            for index, view in self._plain_chunks(job, source, cipher):
                if not stored.holds(index, view, buffers):
                    return None
                sha256.update(view)
        self._keep(job.size)
        return _entry(job, stored, sha256)

    def _small(self, job: _Job, source: int) -> ModelFile:
        cipher, sha256, buffers = self._fresh(job), self._sha256(), self._buffers()
        with opened(job.partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as fd:
            stored = _stored(fd, cipher)
            write_all(fd, cipher.render_header(), 0)
            for index, view in self._plain_chunks(job, source, cipher):
                sha256.update(view)
                stored.seal(index, view, buffers)
                self._progress(len(view))
            os.fsync(fd)
        job.partial.rename(job.target)
        return _entry(job, stored, sha256)

    def _large(self, job: _Job, source: int) -> ModelFile:
        """Two batches alternate: while one is read and recorded, the other is sealed and written by the threads."""
        journal = self._resumable(job, source) or start_journal(job.journal, job.partial, self._fresh(job), self._key)
        sha256 = self._sha256()
        batches = [memoryview(bytearray(BATCH_BYTES)) for _ in range(2)]
        pending: list[list[Future[None]]] = [[], []]
        with opened(job.partial, os.O_RDWR) as fd, opened(job.journal, os.O_WRONLY | os.O_APPEND) as log:
            stored = _stored(fd, journal.cipher)
            try:
                for number, start in enumerate(range(0, job.size, BATCH_BYTES)):
                    turn = number % 2
                    _collect(pending[turn])
                    batch = batches[turn][: min(BATCH_BYTES, job.size - start)]
                    read_exact(source, batch, start, job.name)
                    sha256.update(batch)
                    known = number < len(journal.records)
                    if known and not journal.holds(number, batch):
                        raise _changed(job, "other bytes than a moment ago")
                    if not known:
                        append_durably(log, journal.record(number, batch, self._random(NONCE_BYTES)))
                    pending[turn] = self._submit(stored, start, batch, known)
                for futures in pending:
                    _collect(futures)
            finally:
                wait([future for futures in pending for future in futures])  # they read the buffers and the descriptor
            os.fsync(fd)
        job.partial.rename(job.target)
        job.journal.unlink()
        return _entry(job, stored, sha256)

    def _resumable(self, job: _Job, source: int) -> Journal | None:
        """Journal of an interrupted run whose every record still matches the source."""
        if not (job.partial.exists() and job.journal.exists()):
            return None
        with opened(job.journal, os.O_RDONLY) as fd:
            cipher = self._same_header(fd, job)
        journal = load_journal(job.journal, job.partial, cipher, self._key) if cipher else None
        return journal if journal and journal.matches(source, job.size, job.name) else None

    def _submit(self, stored: _Stored, start: int, batch: memoryview, known: bool) -> list[Future[None]]:
        chunk = stored.cipher.header.chunk_bytes
        return [
            self._pool.submit(self._chunk, stored, (start + at) // chunk, batch[at : at + chunk], known)
            for at in range(0, len(batch), chunk)
        ]

    def _chunk(self, stored: _Stored, index: int, plain: memoryview, known: bool) -> None:
        buffers = self._buffers()
        if known and stored.holds(index, plain, buffers):
            self._keep(len(plain))
        else:
            stored.seal(index, plain, buffers)
            self._progress(len(plain))

    def _fresh(self, job: _Job) -> FileCipher:
        salt, log2 = self._random(SALT_BYTES), self._options.chunk_log2
        return FileCipher(self._key, Header(kind=Kind.FILE, chunk_log2=log2, size=job.size, salt=salt))

    def _same_header(self, fd: int, job: _Job) -> FileCipher | None:
        """Cipher of a stored header that this key wrote for a source of this size; None for any other."""
        try:
            cipher = parse_header(os.pread(fd, HEADER_BYTES, 0), self._key, kind=Kind.FILE)
        except AttestationError:
            return None
        same = cipher.header.size == job.size and cipher.header.chunk_log2 == self._options.chunk_log2
        return cipher if same else None

    def _plain_chunks(self, job: _Job, source: int, cipher: FileCipher) -> Iterator[tuple[int, memoryview]]:
        for index in range(cipher.header.chunks):
            view = self._buffers().plain[: cipher.header.plain_length(index)]
            read_exact(source, view, index << cipher.header.chunk_log2, job.name)
            yield index, view

    def _keep(self, size: int) -> None:
        with self._lock:
            self.kept_bytes += size
        self._progress(size)

    def _sha256(self) -> "_Sha256":
        return _Sha256(hashlib.sha256() if self._options.sha256 else None)

    def _buffers(self) -> _Buffers:
        """Buffers of the calling thread, made once."""
        held: _Buffers | None = getattr(self._local, "buffers", None)
        if held is None:
            chunk = 1 << self._options.chunk_log2
            held = _Buffers(*(memoryview(bytearray(n)) for n in (chunk, chunk + TAG_BYTES, chunk)))
            self._local.buffers = held
        return held


@dataclass(frozen=True, slots=True)
class _Sha256:
    """Plaintext digest, or nothing where nobody asked for it."""

    state: "hashlib._Hash | None"

    def update(self, view: memoryview) -> None:
        if self.state:
            self.state.update(view)

    def digest(self) -> Digest | None:
        return Digest("sha256", self.state.digest()) if self.state else None


def _stored(fd: int, cipher: FileCipher) -> _Stored:
    return _Stored(fd=fd, cipher=cipher, tags=bytearray(cipher.header.chunks * TAG_BYTES))


def _entry(job: _Job, stored: _Stored, sha256: _Sha256) -> ModelFile:
    digest = Digest("sha256", stored.cipher.digest(stored.tags))
    return ModelFile(
        name=job.name, size=job.size, salt=stored.cipher.header.salt, digest=digest, sha256=sha256.digest()
    )


def _collect(futures: list[Future[None]]) -> None:
    for future in futures:
        future.result()
    futures.clear()


def _changed(job: _Job, got: object) -> Unavailable:
    return Unavailable(
        "source-changed",
        "source changes while it is read",
        where=str(job.source),
        expected=f"{job.size} bytes",
        got=got,
    )


def _require_size(fd: int, job: _Job) -> None:
    if (size := os.fstat(fd).st_size) != job.size:
        raise _changed(job, size)
