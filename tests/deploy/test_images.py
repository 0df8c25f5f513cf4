"""What the Containerfiles put into each image is enough to start its program, and nothing of another trust domain."""

import ast
import json
import re
import shutil
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from deploy.build_images import BASE, BUILDERS, FOLDER, commands, main
from kata_gpu.core.manifests.values import VALUES

ROOT = FOLDER.parents[1]
FILES = sorted(FOLDER.glob("*.Containerfile"))


def assemble(containerfile: Path, target: Path) -> None:
    """Carry out the COPY lines of the first stage, and the removals after them."""
    text = containerfile.read_text().replace("\\\n", " ")
    for line in text.splitlines():
        if line.startswith("COPY --from"):
            break
        if line.startswith("COPY "):
            *sources, folder = line.split()[1:]
            for source in sources:
                into = target / folder
                if (ROOT / source).is_dir():
                    shutil.copytree(
                        ROOT / source, into, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True
                    )
                else:
                    into.mkdir(parents=True, exist_ok=True)
                    shutil.copy(ROOT / source, into)
        for removed in re.findall(r"rm -rf ((?:attestation|kata_gpu)\S*(?: (?:attestation|kata_gpu)\S*)*)", line):
            for name in removed.split():
                path = target / name
                shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.mark.parametrize(("image", "module", "argv", "foreign"), [
    pytest.param("node", "kata_gpu.cli.main", ["agent", "run", "--help"], "attestation", id="node"),
    pytest.param("node", "kata_gpu.cli.main", ["bridge", "run", "--help"], "attestation", id="bridge"),
    pytest.param("kbs", "attestation.cli.main", ["serve", "--help"], "kata_gpu", id="kbs"),
    pytest.param("kbs", "attestation.cli.main", ["root-key", "install", "--help"], "kata_gpu", id="root-key"),
    pytest.param("guest", "attestation.guest.main", ["model", "decrypt", "--help"], "kata_gpu", id="guest"),
])  # fmt: skip
def test_an_image_starts_with_what_is_copied(
    image: str, module: str, argv: list[str], foreign: str, tmp_path: Path
) -> None:
    assemble(FOLDER / f"{image}.Containerfile", tmp_path)
    assert not (tmp_path / foreign).exists()
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from {module} import main; main()"
    done = subprocess.run([sys.executable, "-P", "-c", code, *argv], cwd=tmp_path, capture_output=True, text=True,
                          check=False)  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert "Usage:" in done.stdout


@pytest.mark.parametrize("image", ["node", "kbs", "guest"])
def test_every_module_of_an_image_finds_what_it_imports(image: str, tmp_path: Path) -> None:
    assemble(FOLDER / f"{image}.Containerfile", tmp_path)
    modules = sorted(
        str(p.relative_to(tmp_path).with_suffix("")).replace("/", ".")
        for p in tmp_path.rglob("*.py")
        if p.name not in {"__init__.py", "__main__.py", "env.py"} and "versions" not in p.parts
    )
    assert len(modules) > 20
    code = (
        f"import sys, importlib; sys.path.insert(0, {str(tmp_path)!r}); [importlib.import_module(m) for m in {modules}]"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_guest_image_has_only_modules_that_the_client_imports(tmp_path: Path) -> None:
    """It is measured with the guest: what is copied is `attestation.guest` and what that reaches."""
    assemble(FOLDER / "guest.Containerfile", tmp_path)
    copied = {str(path.relative_to(tmp_path)) for path in (tmp_path / "attestation").rglob("*.py")}
    todo, reached = [path for path in copied if path.startswith("attestation/guest/")], set()
    while todo:
        path = todo.pop()
        reached.add(path)
        todo += {
            name
            for node in ast.walk(ast.parse((tmp_path / path).read_text()))
            if isinstance(node, ast.ImportFrom) and node.module
            for module in (node.module, *(f"{node.module}.{alias.name}" for alias in node.names))
            for name in (f"{module.replace('.', '/')}.py", f"{module.replace('.', '/')}/__init__.py")
            if name in copied - reached
        }
    packages = {path for path in copied if path.endswith("__init__.py")}
    assert copied - packages <= reached


EXTRAS = {"hvac", "opentelemetry", "pkcs11"}  # optional, and not in the image: `kata-gpu[vault]`, `[pkcs11]`, tracing


@pytest.mark.parametrize("image", ["node", "kbs", "guest"])
def test_the_requirements_of_an_image_are_what_it_imports(image: str, tmp_path: Path) -> None:
    assemble(FOLDER / f"{image}.Containerfile", tmp_path)
    (lock,) = (tmp_path / "requirements").glob("*.lock")
    locked = set(re.findall(r"^([a-z0-9._-]+)(?:\[\w+\])?==", lock.read_text(), re.MULTILINE))
    asked = set(re.findall(r"^([a-z0-9-]+)", (ROOT / f"requirements/{image}.in").read_text(), re.MULTILINE))
    distributions = packages_distributions()
    imported = {
        distribution.lower().replace("_", "-")
        for path in tmp_path.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        for name in imported_names(node)
        for distribution in distributions.get(name, [])
        if name not in EXTRAS
    } - {"kata-gpu"}
    assert imported <= locked
    assert asked - imported <= {"httptools", "psycopg", "setuptools"}, "loaded by name, or for the build"


def imported_names(node: ast.AST) -> set[str]:
    """Top-level packages that a statement imports."""
    if isinstance(node, ast.Import):
        return {alias.name.split(".")[0] for alias in node.names}
    if isinstance(node, ast.ImportFrom) and node.module and not node.level:
        return {node.module.split(".")[0]}
    return set()


def test_the_broker_cannot_forge(tmp_path: Path) -> None:
    assemble(FOLDER / "kbs.Containerfile", tmp_path)
    assert not list(tmp_path.rglob("simulate*"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_containerfiles_are_minimal(path: Path) -> None:
    text = path.read_text()
    assert text.count("--require-hashes") == 1
    assert re.findall(r"^ARG (.+)$", text, re.MULTILINE) == [f"BASE_IMAGE={BASE}"]
    assert re.findall(r"^FROM (\S+)", text, re.MULTILINE) == ["${BASE_IMAGE}", "${BASE_IMAGE}"]
    assert "ADD " not in text
    users = re.findall(r"^USER (\S+)", text, re.MULTILINE)
    assert users == ([] if path.stem == ["node", "Containerfile"][0] else ["65532:65532"])


def test_what_is_copied_is_what_reaches_the_builder() -> None:
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {
        source.split("/")[0]
        for path in FILES
        for line in path.read_text().splitlines()
        if line.startswith("COPY ") and "--from" not in line
        for source in line.split()[1:-1]
    }
    assert kept == copied


def test_images_are_built_under_the_names_that_are_deployed() -> None:
    tags = [argv[argv.index("--tag") + 1] for argv in commands("podman", BASE)]
    assert {VALUES["node"]["image"], VALUES["broker"]["image"]} <= set(tags)
    assert len(tags) == len(FILES) == 3


def test_without_a_builder_there_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    assert main([]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert all(program in line for program in BUILDERS)


PINNED = f"base@sha256:{'0' * 64}"


@pytest.mark.parametrize(("fails", "base", "built", "says"), [
    pytest.param("", PINNED, 3, "", id="builds"),
    pytest.param("", "base", 3, "not pinned", id="unpinned"),
    pytest.param("inspect", PINNED, 3, "", id="base-is-pulled"),
    pytest.param("inspect pull", PINNED, 0, "cannot pull", id="no-base"),
    pytest.param("info", PINNED, 0, "no builder answers", id="engine-down"),
    pytest.param("build", PINNED, 1, "", id="build-fails"),
])  # fmt: skip
def test_images_are_built_where_builder_and_base_are_there(
    fails: str, base: str, built: int, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    log = tmp_path / "log"
    for program in ("podman", "docker"):
        stub = tmp_path / program
        stub.write_text(f'#!/bin/sh\necho "$@" >> {log}\n[ "$1" = image ] && shift\n'
                        f'case " {fails} " in *" $1 "*) exit 1;; esac\nexit 0\n')  # fmt: skip
        stub.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["--base", base]) == (1 if fails == "build" else 0)
    calls = [c for c in log.read_text().splitlines() if c.startswith("build ")]
    assert len(calls) == built
    assert all(f"--build-arg BASE_IMAGE={base} " in c for c in calls)
    said = "".join(capsys.readouterr())
    assert len(said.splitlines()) == bool(says)
    assert says in said


def test_the_bill_of_materials_lists_every_pinned_requirement(tmp_path: Path) -> None:
    out = tmp_path / "sbom.json"
    recipe = re.search(r"^sbom:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert recipe is not None
    (command,) = [line for line in recipe[1].splitlines() if "requirements/runtime.lock" in line]
    argv = command.strip().removeprefix("@").replace("$(BIN)/", f"{Path(sys.executable).parent}/").split()
    argv[argv.index("out/sbom.json")] = str(out)
    subprocess.run(argv, cwd=ROOT, check=True, capture_output=True)
    document = json.loads(out.read_text())
    assert (document["bomFormat"], document["metadata"]["component"]["name"]) == ("CycloneDX", "kata-gpu")
    pinned = re.findall(r"^([a-z0-9._-]+)==(\S+)", (ROOT / "requirements/runtime.lock").read_text(), re.MULTILINE)
    found = {(c["name"], c["version"]) for c in document["components"]}
    assert len(found) > 30
    assert {(n, v.rstrip(";")) for n, v in pinned} <= found
