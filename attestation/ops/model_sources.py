"""What is to be encrypted: names and files of a source folder, and each as one job that notices when it changes."""

import os
from dataclasses import dataclass
from pathlib import Path

from attestation.errors import Misconfigured, Unavailable
from attestation.formats.model_manifest import MAX_FILES, check_name, stored_name


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One file on its way."""

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

    def changed(self, got: object) -> Unavailable:
        """The error for a source that is not what it was."""
        return Unavailable(
            "source-changed",
            "source changes while it is read",
            where=str(self.source),
            expected=f"{self.size} bytes",
            got=got,
        )

    def require_size(self, fd: int) -> None:
        """Unavailable unless the open source still has the size it was planned with."""
        if (size := os.fstat(fd).st_size) != self.size:
            raise self.changed(size)


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


def plan_jobs(sources: dict[str, Path], out: Path) -> list[Job]:
    """One job a file, in the order of the manifest."""
    return [
        Job(source=path, name=name, size=path.stat().st_size, target=out / stored_name(index))
        for index, (name, path) in enumerate(sources.items())
    ]
