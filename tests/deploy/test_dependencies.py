"""Every dependency is imported, argued for, and declared where it is imported (docs/adr/0003-dependencies.md)."""

import ast
import re
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
BY_NAME = {"httptools", "psycopg"}  # uvicorn and sqlalchemy load them
UNDECLARED = {"kata-gpu", "opentelemetry-api"}  # ourselves; and what the operator installs with an SDK
PACKAGES = ("kata_gpu", "attestation", "runtimeclass")


def names(requirements: list[str]) -> set[str]:
    return {re.split(r"[><=\[]", requirement)[0] for requirement in requirements}


def imported() -> set[str]:
    """Distributions that a module of the product imports, wherever in it."""
    found = set()
    for path in (path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.partition(".")[0])
    distributions = packages_distributions()
    return {d.lower().replace("_", "-") for name in found for d in distributions.get(name, [])} - UNDECLARED


def test_what_is_declared_is_what_is_imported() -> None:
    extras = {name for extra in ("vault", "pkcs11") for name in names(PROJECT["optional-dependencies"][extra])}
    assert imported() | BY_NAME == names(PROJECT["dependencies"]) | extras


def test_extras_are_the_two_that_are_documented_and_ours() -> None:
    assert set(PROJECT["optional-dependencies"]) == {"vault", "pkcs11", "dev"}


def test_each_is_argued_for() -> None:
    """In the first column of the table, or among the optional ones below it."""
    text = (ROOT / "docs/adr/0003-dependencies.md").read_text().partition("**Not taken.**")[0]
    rows = "\n".join(line.split("|")[1] for line in text.splitlines() if line.startswith("|"))
    optional = text.partition("Optional, each in one module:")[2]
    missing = {name for name in names(PROJECT["dependencies"]) if not re.search(rf"`{name}[`\[]", rows)}
    extras = names(PROJECT["optional-dependencies"]["vault"] + PROJECT["optional-dependencies"]["pkcs11"])
    assert missing | {name for name in extras if f"`{name}`" not in optional} == set()
    assert set(re.findall(r"`([a-z0-9-]+)(?:\[\w+\])?`", rows)) == names(PROJECT["dependencies"])
