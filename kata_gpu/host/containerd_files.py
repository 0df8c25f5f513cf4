"""Reads containerd's main file and what it imports. The only I/O of `kata-gpu kata containerd`."""

from pathlib import Path

from kata_gpu.core.kata.effective import MAX_FILE_BYTES, MAX_LAYERS, Layer, parse_layer
from kata_gpu.errors import Malformed, Unavailable


def read_layers(root: Path, main: str) -> list[Layer]:
    """The main file, then its imports in the order that containerd reads them: by pattern, then by name.

    Paths are of the host below `root`. Raises Malformed and Unavailable.
    """
    layers = [parse_layer(_read(root, main), main)]
    patterns = layers[0].values.get("imports")
    for pattern in patterns if isinstance(patterns, list) else []:
        absolute = Path(main).parent / str(pattern)  # an absolute pattern stays as it is
        for path in sorted(root.glob(str(absolute).lstrip("/"))):
            name = f"/{path.relative_to(root)}"
            if len(layers) >= MAX_LAYERS:
                raise Malformed("containerd-imports", "too many imports", where=main, expected=f"under {MAX_LAYERS}")
            layers.append(parse_layer(_read(root, name), name))
    return layers


def _read(root: Path, path: str) -> bytes:
    try:
        with (root / path.lstrip("/")).open("rb") as file:
            return file.read(MAX_FILE_BYTES + 1)
    except OSError as exc:
        raise Unavailable("containerd-read", "cannot read", where=path, got=exc.strerror or exc) from exc
