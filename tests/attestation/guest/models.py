"""Models for tests: a folder with a genuine safetensors file, encrypted; and the RNG that makes it repeatable."""

import hashlib
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from safetensors.numpy import save_file

from attestation.guest.memory_fs import Exceptions, Proc
from attestation.guest.model import EncryptedModel, open_model
from attestation.ops.model_encrypt import Encrypted, Options, encrypt_model
from attestation.ops.model_sources import plan_sources
from attestation.values import Secret

KEY = Secret(bytes(range(32)))
MEMORY = Path("/dev/shm")
ANYWHERE = Exceptions(disk=True, swap=True)  # the rule itself has tests of its own
PROC = Proc()


def counting(seed: str = "test") -> Callable[[int], bytes]:
    """Repeatable bytes, never twice the same."""
    calls = iter(range(1 << 30))
    return lambda size: hashlib.shake_256(f"{seed} {next(calls)}".encode()).digest(size)


def tensors(megabytes: float) -> dict[str, np.ndarray]:
    """Three tensors of different types."""
    rows = max(2, int(megabytes * 1024 * 1024 / 4 / 256))
    generator = np.random.default_rng(7)
    return {
        "model.embed.weight": generator.integers(0, 1 << 32, (rows, 256), dtype=np.uint32).view(np.float32).copy(),
        "model.norm.bias": np.arange(37, dtype=np.float16),
        "model.step": np.array([12345], dtype=np.int64),
    }


def make_source(folder: Path, *, megabytes: float = 0.5) -> Path:
    """A small model: weights, two JSON files, an empty file, a nested one."""
    source = folder / "source"
    (source / "tokenizer").mkdir(parents=True)
    save_file(tensors(megabytes), source / "model.safetensors")
    (source / "config.json").write_text('{"hidden": 256}')
    (source / "tokenizer" / "vocab.txt").write_text("a\nb\n")
    (source / "empty").touch()
    return source


def encrypt(
    source: Path, out: Path, *, key: Secret = KEY, seed: str = "test", chunk_log2: int = 16, sha256: bool = False
) -> Encrypted:
    """With small chunks, so that small models have many."""
    options = Options(threads=2, chunk_log2=chunk_log2, sha256=sha256)
    return encrypt_model(plan_sources(source), out, key, random=counting(seed), options=options)


def opened(folder: Path, key: Secret = KEY) -> EncryptedModel:
    return open_model(folder, key)


def tree(folder: Path) -> dict[str, bytes]:
    """Content of every file below a folder, without our own dot files."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".kata-gpu")
    }


@contextmanager
def memory_folder() -> Iterator[Path]:
    """A folder on tmpfs where there is one; pytest's own temporary folder may be on a disk."""
    with TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None, prefix="kata-gpu-test-") as name:
        yield Path(name)


def copy(folder: Path, to: Path) -> Path:
    """A copy to change."""
    shutil.copytree(folder, to)
    return to
