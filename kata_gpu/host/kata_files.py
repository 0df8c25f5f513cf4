"""Finds and reads Kata's configuration files; writes our one drop-in. The only I/O of `kata-gpu kata`."""

import os
from pathlib import Path

from kata_gpu.core.kata.dropin import FILE_NAME
from kata_gpu.core.kata.effective import MAX_FILE_BYTES, MAX_LAYERS, Layer, parse_layer
from kata_gpu.errors import Misconfigured, Unavailable

DEFAULTS = "opt/kata/share/defaults/kata-containers"  # where kata-deploy installs (4.1.0)


class KataFiles:
    """Configuration of one handler under a root folder (`/` on a node, a bundle elsewhere)."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def locate(self, handler: str) -> Path:
        """The base configuration of a handler such as `kata-qemu-nvidia-gpu-snp`. Raises Misconfigured."""
        shim = handler.removeprefix("kata-")
        name = f"configuration-{shim}.toml"
        base = self._root / DEFAULTS
        candidates = [base / "runtimes" / shim / name, base / "runtime-rs" / name, base / name]
        for path in candidates:
            if path.is_file():
                return path
        raise Misconfigured(
            "kata-handler-missing",
            f"no Kata configuration for handler {handler}",
            expected=" or ".join(str(p) for p in candidates),
            hint="install kata-deploy with the NVIDIA handlers, or pass --config FILE",
        )

    def layers(self, base: Path) -> list[Layer]:
        """Base and every file of `config.d` in name order, as both runtimes read them."""
        return [parse_layer(_read(path), str(path)) for path in (base, *_dropins(base))]

    def read_dropin(self, base: Path) -> str | None:
        """Text of our drop-in, None where it does not exist."""
        path = base.parent / "config.d" / FILE_NAME
        return _read(path).decode("utf-8", "replace") if path.exists() else None

    def write_dropin(self, base: Path, text: str) -> Path:
        """Atomic: temporary file, fsync, rename. Returns the path. Raises Unavailable."""
        folder = base.parent / "config.d"
        path = folder / FILE_NAME
        temporary = folder / f".{FILE_NAME}.new"
        try:
            folder.mkdir(exist_ok=True)
            with temporary.open("w") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            temporary.chmod(0o644)
            temporary.replace(path)
        except OSError as exc:
            raise Unavailable(
                "kata-dropin-write", "cannot write the drop-in", where=str(path), got=exc.strerror or exc
            ) from exc
        return path


def _dropins(base: Path) -> list[Path]:
    folder = base.parent / "config.d"
    if not folder.is_dir():
        return []
    found = sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))
    if len(found) >= MAX_LAYERS:
        raise Misconfigured("kata-config-layers", "too many drop-ins", where=str(folder),
                            expected=f"under {MAX_LAYERS}", got=len(found))  # fmt: skip
    return found


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_FILE_BYTES + 1)
    except (FileNotFoundError, IsADirectoryError) as exc:
        raise Misconfigured("kata-config-read", "cannot read", where=str(path), got=exc.strerror) from exc
    except OSError as exc:
        raise Unavailable("kata-config-read", "cannot read", where=str(path), got=exc.strerror or exc) from exc
