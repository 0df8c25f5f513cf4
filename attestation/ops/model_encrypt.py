"""Encrypt a model: a file or folder in, a folder of stored files and one manifest out (docs/model-format.md).

Crash-safe without trusting the disk: a run that starts again opens what is stored and compares it with the source, and
keeps only chunks that are still the encryption of what is there now (large files: `encrypt_journal`). A source that
changed gets a new salt and a new start. The manifest comes last: without it there is no encrypted model.
"""

import fcntl
import hashlib
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
from attestation.formats.model_manifest import MANIFEST_NAME, Manifest, ModelFile
from attestation.ops.encrypt_journal import (
    BATCH_BYTES,
    NONCE_BYTES,
    Journal,
    append_durably,
    load_journal,
    start_journal,
)
from attestation.ops.model_sources import Job, plan_jobs
from attestation.ops.stored_file import Buffers, PlainDigest, StoredFile, stored_file
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
            with _Encrypter(model_key, random, options, progress) as encrypter:
                manifest = Manifest(tuple(encrypter.run(plan_jobs(sources, out))))
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

    def run(self, jobs: list[Job]) -> list[ModelFile]:
        """Manifest entries in the order of the jobs."""
        shared = [self._pool.submit(self._files, group) for group in _groups(jobs)]
        done = {job.name: self._file(job) for job in jobs if job.size > BATCH_BYTES}
        done |= {entry.name: entry for future in shared for entry in future.result()}
        return [done[job.name] for job in jobs]

    def _files(self, group: list[Job]) -> list[ModelFile]:
        return [self._file(job) for job in group]

    def _file(self, job: Job) -> ModelFile:
        with opened(job.source, os.O_RDONLY) as source:
            job.require_size(source)
            done = self._finished(job, source)
            if done is None:
                done = self._large(job, source) if job.size > BATCH_BYTES else self._small(job, source)
            job.require_size(source)
        return done

    def _finished(self, job: Job, source: int) -> ModelFile | None:
        """The entry of a stored file that an earlier run finished, if it is the encryption of this very source."""
        if not job.target.exists():
            return None
        with opened(job.target, os.O_RDONLY) as fd:
            cipher = self._same_header(fd, job)
            if cipher is None or os.fstat(fd).st_size != cipher.header.stored_size:
                return None
            stored, sha256 = stored_file(fd, cipher), self._sha256()
            buffers = self._buffers()
            for index, view in self._plain_chunks(job, source, cipher):
                if not stored.holds(index, view, buffers):
                    return None
                sha256.update(view)
        self._keep(job.size)
        return _entry(job, stored, sha256)

    def _small(self, job: Job, source: int) -> ModelFile:
        cipher, sha256, buffers = self._fresh(job), self._sha256(), self._buffers()
        with opened(job.partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as fd:
            stored = stored_file(fd, cipher)
            write_all(fd, cipher.render_header(), 0)
            for index, view in self._plain_chunks(job, source, cipher):
                sha256.update(view)
                stored.seal(index, view, buffers)
                self._progress(len(view))
            os.fsync(fd)
        job.partial.rename(job.target)
        return _entry(job, stored, sha256)

    def _large(self, job: Job, source: int) -> ModelFile:
        """Two batches alternate: while one is read and recorded, the other is sealed and written by the threads."""
        changed = os.fstat(source).st_mtime_ns
        journal = self._resumable(job, source, changed)
        if journal is None:
            journal = start_journal(job.journal, job.partial, self._fresh(job), self._key, changed)
        sha256 = self._sha256()
        batches = [memoryview(bytearray(BATCH_BYTES)) for _ in range(2)]
        pending: list[list[Future[None]]] = [[], []]
        with opened(job.partial, os.O_RDWR) as fd, opened(job.journal, os.O_WRONLY | os.O_APPEND) as log:
            stored = stored_file(fd, journal.cipher)
            try:
                for number, start in enumerate(range(0, job.size, BATCH_BYTES)):
                    turn = number % 2
                    _collect(pending[turn])
                    batch = batches[turn][: min(BATCH_BYTES, job.size - start)]
                    read_exact(source, batch, start, job.name)
                    sha256.update(batch)
                    known = number < len(journal.records)
                    if known and not journal.holds(number, batch):
                        raise job.changed("other bytes than a moment ago")
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

    def _resumable(self, job: Job, source: int, changed: int) -> Journal | None:
        """Journal of an interrupted run whose every record still matches the source."""
        if not (job.partial.exists() and job.journal.exists()):
            return None
        with opened(job.journal, os.O_RDONLY) as fd:
            cipher = self._same_header(fd, job)
        journal = load_journal(job.journal, job.partial, cipher, self._key, changed) if cipher else None
        return journal if journal and journal.matches(source, job.size, job.name) else None

    def _submit(self, stored: StoredFile, start: int, batch: memoryview, known: bool) -> list[Future[None]]:
        chunk = stored.cipher.header.chunk_bytes
        return [
            self._pool.submit(self._chunk, stored, (start + at) // chunk, batch[at : at + chunk], known)
            for at in range(0, len(batch), chunk)
        ]

    def _chunk(self, stored: StoredFile, index: int, plain: memoryview, known: bool) -> None:
        buffers = self._buffers()
        if known and stored.holds(index, plain, buffers):
            self._keep(len(plain))
        else:
            stored.seal(index, plain, buffers)
            self._progress(len(plain))

    def _fresh(self, job: Job) -> FileCipher:
        salt, log2 = self._random(SALT_BYTES), self._options.chunk_log2
        return FileCipher(self._key, Header(kind=Kind.FILE, chunk_log2=log2, size=job.size, salt=salt))

    def _same_header(self, fd: int, job: Job) -> FileCipher | None:
        """Cipher of a stored header that this key wrote for a source of this size; None for any other."""
        try:
            cipher = parse_header(os.pread(fd, HEADER_BYTES, 0), self._key, kind=Kind.FILE)
        except AttestationError:
            return None
        same = cipher.header.size == job.size and cipher.header.chunk_log2 == self._options.chunk_log2
        return cipher if same else None

    def _plain_chunks(self, job: Job, source: int, cipher: FileCipher) -> Iterator[tuple[int, memoryview]]:
        for index in range(cipher.header.chunks):
            view = self._buffers().plain[: cipher.header.plain_length(index)]
            read_exact(source, view, index << cipher.header.chunk_log2, job.name)
            yield index, view

    def _keep(self, size: int) -> None:
        with self._lock:
            self.kept_bytes += size
        self._progress(size)

    def _sha256(self) -> PlainDigest:
        return PlainDigest(hashlib.sha256() if self._options.sha256 else None)

    def _buffers(self) -> Buffers:
        """Buffers of the calling thread, made once."""
        held: Buffers | None = getattr(self._local, "buffers", None)
        if held is None:
            chunk = 1 << self._options.chunk_log2
            held = Buffers(*(memoryview(bytearray(n)) for n in (chunk, chunk + TAG_BYTES, chunk)))
            self._local.buffers = held
        return held


def _groups(jobs: list[Job]) -> Iterator[list[Job]]:
    """The small files, as many in a group as make a batch: what hands a file to a thread costs as much as the file."""
    group: list[Job] = []
    room = BATCH_BYTES
    for job in jobs:
        if job.size > BATCH_BYTES:
            continue
        if group and job.size > room:
            yield group
            group, room = [], BATCH_BYTES
        group.append(job)
        room -= job.size
    if group:
        yield group


def _entry(job: Job, stored: StoredFile, sha256: PlainDigest) -> ModelFile:
    salt = stored.cipher.header.salt
    return ModelFile(name=job.name, size=job.size, salt=salt, digest=stored.digest, sha256=sha256.digest())


def _collect(futures: list[Future[None]]) -> None:
    for future in futures:
        future.result()
    futures.clear()
