"""Root key configuration: one key file, or a TOML document that names providers, retired keys and keys of tenants.

    version = 1
    [root]                     # wraps everything that no tenant's key wraps
    provider = "file"
    path = "root-2.key"        # beside this document, or absolute
    [[retired]]                # opens what it wrapped, wraps nothing any more
    provider = "file"
    path = "root.key"
    [tenants.acme]             # repository `acme`
    provider = "transit"
    url = "https://vault.example:8200"
    key = "kata-gpu-acme"
    token_file = "/run/vault/token"
    [tenants.bank]
    provider = "pkcs11"
    module = "/usr/lib/softhsm/libsofthsm2.so"
    token = "kbs"
    key = "bank"
    pin_file = "bank.pin"

A cloud KMS is an installed package with an entry point in the group `kata_gpu.root_keys`: a function that takes the
table (without `provider`) as keyword arguments and returns a `RootKey`. The provider's name is the entry point's.
"""

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from attestation.crypto.jwe import RandomBytes
from attestation.errors import Malformed, Misconfigured
from attestation.sources.atomic import read_bounded
from attestation.sources.envelope import FileRootKey, RootKey
from attestation.sources.roots.hsm import HsmKey, HsmRootKey
from attestation.sources.roots.transit import TransitRootKey
from attestation.values import ResourcePath

SUFFIX = ".toml"
ENTRY_POINTS = "kata_gpu.root_keys"
MAX_CONFIG_BYTES = 64 * 1024
MAX_RETIRED = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class RootKeys:
    """The root keys in use: the broker's, those of tenants by repository, and retired ones."""

    root: RootKey
    tenants: Mapping[str, RootKey] = field(default_factory=dict)
    retired: tuple[RootKey, ...] = ()

    def all(self) -> tuple[RootKey, ...]:
        """Every key, those that wrap first."""
        return (self.root, *self.tenants.values(), *self.retired)


def load_root_keys(path: Path, random: RandomBytes) -> RootKeys:
    """A key file, or the document above where the name ends in `.toml`. Misconfigured names the field."""
    if path.suffix != SUFFIX:
        return RootKeys(root=FileRootKey.load(path, random))
    try:
        document = tomllib.loads(read_bounded(path, MAX_CONFIG_BYTES).decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise Misconfigured("root-key-config", "not TOML", where=str(path)) from exc
    tables = {"root", "retired", "tenants"}
    if document.get("version") != 1 or not set(document) <= {"version", *tables}:
        raise Misconfigured("root-key-config", "unknown version or table", where=str(path), expected="version = 1")
    retired, tenants = document.get("retired", []), document.get("tenants", {})
    if not isinstance(retired, list) or not isinstance(tenants, dict) or len(retired) > MAX_RETIRED:
        raise Misconfigured("root-key-config", "not tables", where=str(path), expected="[[retired]], [tenants.NAME]")
    for name in tenants:
        _check_repository(name)
    make = _Maker(path.parent, random)
    return RootKeys(
        root=make(document.get("root"), "root"),
        tenants={name: make(table, f"tenants.{name}") for name, table in tenants.items()},
        retired=tuple(make(table, f"retired.{index}") for index, table in enumerate(retired)),
    )


def _check_repository(name: str) -> None:
    try:
        ResourcePath(name, "x", "x")
    except Malformed as exc:
        raise Misconfigured("root-key-config", "not a repository", where=f"tenants.{name[:128]}") from exc


class _Maker:
    """A table to a root key. Paths are relative to the document."""

    def __init__(self, folder: Path, random: RandomBytes) -> None:
        self._folder, self._random = folder, random
        self._providers: dict[str, Callable[[dict[str, Any]], RootKey]] = {
            "file": self._file,
            "transit": self._transit,
            "pkcs11": self._pkcs11,
        }

    def __call__(self, table: object, where: str) -> RootKey:
        if not isinstance(table, dict) or not all(isinstance(value, str) for value in table.values()):
            raise Misconfigured("root-key-config", "not a table of texts", where=where)
        fields = dict(table)
        provider = fields.pop("provider", None)
        make = self._providers.get(str(provider)) or _installed(str(provider), where)
        try:
            return make(fields)
        except (TypeError, KeyError) as exc:
            raise Misconfigured("root-key-config", f"wrong fields: {exc}", where=where, expected=provider) from exc

    def _file(self, fields: dict[str, Any]) -> RootKey:
        return FileRootKey.load(self._folder / _only(fields, "path")["path"], self._random)

    def _transit(self, fields: dict[str, Any]) -> RootKey:
        for name in ("token_file", "ca_file"):
            if name in fields:
                fields[name] = self._folder / fields[name]
        return TransitRootKey(**fields)

    def _pkcs11(self, fields: dict[str, Any]) -> RootKey:
        given = _only(fields, "module", "token", "key", "pin_file")
        where = HsmKey(
            module=Path(given["module"]),
            token=given["token"],
            label=given["key"],
            pin_file=self._folder / given["pin_file"],
        )
        return HsmRootKey(where, self._random)


def _only(fields: dict[str, Any], *names: str) -> dict[str, Any]:
    if set(fields) != set(names):
        raise KeyError(f"{', '.join(sorted(fields))} instead of {', '.join(names)}")
    return fields


def _installed(provider: str, where: str) -> Callable[[dict[str, Any]], RootKey]:
    found = entry_points(group=ENTRY_POINTS, name=provider)
    if not found:
        raise Misconfigured(
            "root-key-provider", "no such provider", where=where, expected="file|transit|pkcs11", got=provider[:40]
        )
    factory = next(iter(found)).load()
    return lambda fields: _checked(factory(**fields), where)


def _checked(made: Any, where: str) -> RootKey:
    if not all(hasattr(made, member) for member in ("name", "wrap", "unwrap")):
        raise Misconfigured("root-key-provider", "the provider made no root key", where=where)
    key: RootKey = made
    return key
