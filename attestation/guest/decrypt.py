"""Decrypt a model into memory: every chunk is authenticated before it is written, and nothing has its final name
before all of it is there."""

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from attestation.crypto.stream import MAX_CHUNK_LOG2
from attestation.errors import Misconfigured, Unavailable
from attestation.guest.memory_fs import Exceptions, Proc, require_memory
from attestation.guest.model import Buffers, EncryptedModel, StoredFile, new_buffers, open_file

STAGING = ".kata-gpu-partial"
MARKER = ".kata-gpu-complete"  # holds the model digest; there only while every file is there
MAX_THREADS = 16  # each holds two chunks of at most 4 MiB
_SPAN_BYTES = 32 << 20  # what a thread takes at a time from a large file
_PRIVATE = 0o600
_SPARE_BYTES = 1 << 20  # folders and marker on the memory filesystem

Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Chunks first..last of one file, which is open already when it is large."""

    index: int
    first: int
    last: int
    target: str
    large: "_Large | None" = None


@dataclass(slots=True, kw_only=True)
class _Large:
    """A file that several threads work on; the last of them closes it."""

    stored: StoredFile
    out: int
    close: ExitStack
    spans: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def done(self) -> None:
        with self.lock:
            self.spans -= 1
            last = self.spans == 0
        if last:
            self.stored.verify_digest()
            self.close.close()


def decrypt_model(
    model: EncryptedModel,
    target: Path,
    *,
    exceptions: Exceptions,
    proc: Proc,
    threads: int = 2,
    mode: int = _PRIVATE,
    progress: Progress = lambda _size: None,
) -> list[str]:
    """Put every file below `target`; returns warnings. On any error nothing of this run is left there.

    Raises Misconfigured where plaintext may not go, Untrusted for a changed model, Unavailable for I/O and no space.
    """
    staging = target / STAGING
    try:
        target.mkdir(parents=True, exist_ok=True)
        warnings = require_memory(target, exceptions, proc=proc)
        _require_space(target, model.manifest.size)
        (target / MARKER).unlink(missing_ok=True)
        shutil.rmtree(staging, ignore_errors=True)  # of a killed run; always on the same memory filesystem
        staging.mkdir(mode=0o700)
        try:
            _decrypt_all(model, staging, min(threads, MAX_THREADS), mode, progress)
            _make_folders(target, model)
            for entry in model.manifest.files:
                os.replace(f"{staging}/{entry.name}", f"{target}/{entry.name}")  # noqa: PTH105 - thousands of files
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        (target / MARKER).write_text(f"{model.digest}\n")
    except OSError as exc:
        raise Unavailable("decrypt-io", exc.strerror or "I/O error", where=str(exc.filename or target)) from exc
    return warnings


def _require_space(target: Path, size: int) -> None:
    space = os.statvfs(target)
    free = space.f_bavail * space.f_frsize
    if space.f_blocks and free < size + _SPARE_BYTES:  # ramfs and unlimited tmpfs say 0 blocks
        raise Misconfigured(
            "no-space",
            "the model does not fit (raise sizeLimit of the emptyDir and the memory limit)",
            where=str(target),
            expected=f"{size + _SPARE_BYTES} bytes free",
            got=free,
        )


def _make_folders(root: Path, model: EncryptedModel) -> None:
    for name in sorted({f.name.rpartition("/")[0] for f in model.manifest.files}):
        (root / name).mkdir(parents=True, exist_ok=True)


def _decrypt_all(model: EncryptedModel, staging: Path, threads: int, mode: int, progress: Progress) -> None:
    _make_folders(staging, model)
    with ExitStack() as stack:
        spans, lock, stop = _spans(model, staging, mode, stack), threading.Lock(), threading.Event()
        worker = _Worker(model=model, spans=spans, lock=lock, stop=stop, mode=mode, progress=progress)
        pool = ThreadPoolExecutor(max(1, threads))
        futures = [pool.submit(worker.run) for _ in range(max(1, threads))]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            stop.set()
            pool.shutdown()
        for future in futures:
            future.result()


def _spans(model: EncryptedModel, staging: Path, mode: int, stack: ExitStack) -> Iterator[Span]:
    for index, entry in enumerate(model.manifest.files):
        target = f"{staging}/{entry.name}"
        if entry.size <= _SPAN_BYTES:
            yield Span(index=index, first=0, last=-1, target=target)
            continue
        close = stack.enter_context(ExitStack())
        stored = close.enter_context(open_file(model, index))
        out = _create(target, mode)
        close.callback(os.close, out)
        step, chunks = _SPAN_BYTES >> stored.cipher.header.chunk_log2, stored.cipher.header.chunks
        large = _Large(stored=stored, out=out, close=close, spans=-(-chunks // step))
        for first in range(0, chunks, step):
            yield Span(index=index, first=first, last=min(first + step, chunks), target=target, large=large)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Worker:
    model: EncryptedModel
    spans: Iterator[Span]
    lock: threading.Lock
    stop: threading.Event
    mode: int
    progress: Progress

    def run(self) -> None:
        """Take spans until there are none, or until another thread failed."""
        buffers = new_buffers(1 << MAX_CHUNK_LOG2)  # once a thread, not once a file
        while not self.stop.is_set():
            with self.lock:
                span = next(self.spans, None)
            if span is None:
                return
            try:
                if span.large is None:
                    self._small(span, buffers)
                else:
                    self._copy(span.large.stored, span.large.out, span.first, span.last, buffers)
                    if not self.stop.is_set():
                        span.large.done()
            except BaseException:
                self.stop.set()
                raise

    def _small(self, span: Span, buffers: Buffers) -> None:
        with open_file(self.model, span.index) as stored:
            out = _create(span.target, self.mode)
            try:
                self._copy(stored, out, 0, stored.cipher.header.chunks, buffers)
                if not self.stop.is_set():
                    stored.verify_digest()
            finally:
                os.close(out)

    def _copy(self, stored: StoredFile, out: int, first: int, last: int, buffers: Buffers) -> None:
        at = first << stored.cipher.header.chunk_log2
        for view in stored.chunks(first, last, buffers):
            if self.stop.is_set():
                return
            write_all(out, view, at)
            at += len(view)
            self.progress(len(view))


def _create(path: str, mode: int) -> int:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _PRIVATE)
    if mode != _PRIVATE:
        os.fchmod(fd, mode)  # whatever the umask is
    return fd


def write_all(fd: int, view: memoryview, offset: int) -> None:
    """All of it, or an OSError."""
    done = 0
    while done < len(view):
        done += os.pwrite(fd, view[done:], offset + done)
