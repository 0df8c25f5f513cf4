"""Backup and restore of a broker: one encrypted file with the store and, where they are files, its root keys.

A backup counts once it is verified: it opens, every stored secret opens with the root keys, the audit chain holds.
"""

import hashlib
import json
import os
import secrets
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import tomli_w
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from attestation.crypto.backup import Opener, Sealer, open_backup, seal_backup
from attestation.errors import Malformed, Misconfigured, Untrusted
from attestation.formats.json_strict import parse_json, require_object, require_text
from attestation.ops.open_world import ROOT_KEY_FILE
from attestation.ops.world import World
from attestation.sources.atomic import write_atomic
from attestation.sources.audit import AuditLog
from attestation.sources.configuration import UNSEALED, Configuration
from attestation.sources.db import Database
from attestation.sources.dump import MAX_ROW_BYTES, dump, load
from attestation.sources.envelope import KEY_BYTES, FileRootKey, OneRoot, RootRing, Vault
from attestation.sources.key_store import KeyStore
from attestation.sources.signing import SigningKeys
from attestation.values import JsonValue, Secret

ROOTS_FILE = "roots.toml"
_CONTEXT = "kata-gpu-kbs/backup/1"
MAX_BACKUP_BYTES = 2 * 1024**3  # it is sealed in memory; a million audit entries are 0.7 GB


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupReport:
    """What a backup holds, all of it opened and checked."""

    rows: Mapping[str, int]
    secrets: int
    audit_entries: int
    sealed: bool  # whether the audit log vouches for policies, labels, roles and revocations
    made: str
    root_key: Path | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Roots:
    """Root keys inside a backup: the broker's, and those of tenants and retired ones, all files."""

    by_name: Mapping[str, FileRootKey]
    first: str
    tenants: Mapping[str, str]

    def ring(self) -> RootRing:
        """Enough to open everything that files wrap."""
        if self.first not in self.by_name:
            raise Misconfigured(
                "root-key-missing", "the backup does not have its root key", expected="--root-key", got=self.first
            )
        return OneRoot(self.by_name[self.first], tuple(self.by_name.values()))

    def write(self, folder: Path) -> Path:
        """The key file, or several of them and the configuration that names them. Nothing is overwritten."""
        files = {name: ROOT_KEY_FILE for name in self.by_name if name == self.first}
        files |= {name: f"root-{name.rpartition(':')[2]}.key" for name in self.by_name if name != self.first}
        targets = [*files.values(), *([ROOTS_FILE] if len(files) > 1 else [])]
        for target in targets:
            if os.path.lexists(folder / target):
                raise Misconfigured("root-key-exists", "a file is there already", where=str(folder / target))
        for name, target in files.items():
            write_atomic(folder / target, self.by_name[name].key.expose(), mode=0o600)
        if len(files) == 1:
            return folder / ROOT_KEY_FILE
        in_use = {self.first, *self.tenants.values()}
        document = {
            "version": 1,
            "root": _file(files[self.first]),
            "tenants": {tenant: _file(files[name]) for tenant, name in self.tenants.items() if name in files},
            "retired": [_file(target) for name, target in files.items() if name not in in_use],
        }
        write_atomic(folder / ROOTS_FILE, tomli_w.dumps(document).encode(), mode=0o600)
        return folder / ROOTS_FILE


def create_backup(world: World, sealer: Sealer, *, now: datetime) -> bytes:
    """The file's bytes. Root keys of other providers than files are not in it, and cannot be."""
    ring = world.vault.ring
    header: dict[str, JsonValue] = {
        "made": now.isoformat(),
        "file_roots": {key.name: key.key.expose().hex() for key in ring.all() if isinstance(key, FileRootKey)},
        "root": ring.root.name,
        "tenants": {tenant: key.name for tenant, key in ring.tenants.items()},
    }
    rows = "\n".join(dump(world.database))
    signature = world.audit.sign(_statement(header, rows)).hex()
    content = f"{json.dumps(header | {'signature': signature})}\n{rows}".encode()
    if len(content) > MAX_BACKUP_BYTES:
        raise Misconfigured("backup-size", "the store is too large for one file", expected=MAX_BACKUP_BYTES)
    world.audit.record(event="backup-made", subject="backup", body={"bytes": len(content)}, now=now)
    return seal_backup(content, sealer, secrets.token_bytes)


def verify_backup(
    file: bytes, opener: Opener, ring: RootRing | None, *, origin: Ed25519PublicKey | None = None, now: datetime
) -> BackupReport:
    """Restore into a store that is thrown away, and check that. `ring` is needed where root keys are no files."""
    with tempfile.TemporaryDirectory(prefix="kbs-verify-") as folder:
        return restore_backup(file, opener, folder, ring, keys=None, origin=origin, now=now)


def restore_backup(
    file: bytes,
    opener: Opener,
    store: str,
    ring: RootRing | None,
    *,
    keys: Path | None,
    origin: Ed25519PublicKey | None = None,
    now: datetime,
) -> BackupReport:
    """Fill an empty store and check it; then write the root key files to `keys` where no `ring` is given.

    `origin` is the audit key of the broker that the backup must be of; a backup to a recipient proves none by itself.
    Raises Misconfigured for a store that is not empty, Malformed and Untrusted for what does not verify; the store is
    then not to be used.
    """
    try:
        first, _, rows = open_backup(file, opener).decode("utf-8").partition("\n")
    except UnicodeDecodeError as exc:
        raise Malformed("backup", "not text", where="backup") from exc
    header = dict(require_object(parse_json(first, max_bytes=MAX_ROW_BYTES, what="backup"), "backup"))
    signature = header.pop("signature", "")
    if origin is not None:
        _require_origin(origin, signature, _statement(header, rows))
    made, roots = _header(header)
    given = ring or roots.ring()
    if "://" not in store:
        Path(store).mkdir(mode=0o700, parents=True, exist_ok=True)
    database = Database.connect(store)
    try:
        counts = load(database, iter(rows.split("\n")))
        vault = Vault(given, secrets.token_bytes)
        log = AuditLog(database, SigningKeys(database, vault).audit_key(now))
        configuration = Configuration(database, log)
        opened = KeyStore(database, vault, configuration).open_all()
        entries, sealed = log.verify(), _sealed(configuration)
    finally:
        database.close()
    written = roots.write(keys) if ring is None and keys is not None else None
    return BackupReport(rows=counts, secrets=opened, audit_entries=entries, sealed=sealed, made=made, root_key=written)


def _sealed(configuration: Configuration) -> bool:
    """Whether the rows are those that the log names; false for a backup of a version that did not say. Or Untrusted."""
    problem = configuration.survey().problem
    if problem is not None and problem.code != UNSEALED:
        raise Untrusted(problem.code, problem.what, where=problem.where)
    return problem is None


def _statement(header: Mapping[str, JsonValue], rows: str) -> bytes:
    """What the audit key signs of a backup: all of it."""
    digest = hashlib.sha256(f"{json.dumps(header, sort_keys=True)}\n{rows}".encode()).hexdigest()
    return json.dumps([_CONTEXT, digest]).encode()


def _require_origin(key: Ed25519PublicKey, signature: object, statement: bytes) -> None:
    try:
        key.verify(bytes.fromhex(require_text(signature, "signature")), statement)
    except (InvalidSignature, ValueError) as exc:
        raise Untrusted(
            "backup-origin", "the broker with this audit key did not make this backup", where="backup"
        ) from exc


def _header(header: Mapping[str, JsonValue]) -> tuple[str, _Roots]:
    files = require_object(header.get("file_roots"), "file_roots")
    tenants = require_object(header.get("tenants"), "tenants")
    roots = _Roots(
        by_name={name: _root(name, require_text(text, name)) for name, text in files.items()},
        first=require_text(header.get("root"), "root"),
        tenants={tenant: require_text(name, tenant) for tenant, name in tenants.items()},
    )
    return require_text(header.get("made"), "made"), roots


def _root(name: str, text: str) -> FileRootKey:
    try:
        raw = bytes.fromhex(text)
    except ValueError as exc:
        raise Malformed("backup", "not a root key", where=name[:80]) from exc
    key = FileRootKey(Secret(raw), secrets.token_bytes) if len(raw) == KEY_BYTES else None
    if key is None or key.name != name:
        raise Malformed("backup", "not the root key that it is named", where=name[:80])
    return key


def _file(path: str) -> dict[str, str]:
    return {"provider": "file", "path": path}
