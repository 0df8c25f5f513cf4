"""Open a store: database, root key, signing keys, and everything built on them."""

import os
import secrets
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from joserfc.jwk import ECKey

from attestation.broker.admin import AdminIssuer
from attestation.broker.cookie import ChallengeCookies
from attestation.broker.endorsement import TokenTrust
from attestation.broker.token import TokenAuthority, TokenKey
from attestation.errors import Misconfigured
from attestation.ops.world import Notifier, PlatformVerifier, World
from attestation.sources.attestations import AttestationStore
from attestation.sources.audit import AuditLog
from attestation.sources.configuration import Configuration
from attestation.sources.db import Database
from attestation.sources.envelope import FileRootKey, Vault
from attestation.sources.key_store import KeyStore
from attestation.sources.leases import LeaseStore
from attestation.sources.policy_store import PolicyStore
from attestation.sources.reference_store import ReferenceStore
from attestation.sources.rego_worker import RegoWorker
from attestation.sources.revocation_store import RevocationStore
from attestation.sources.roots.config import load_root_keys
from attestation.sources.sessions import SessionStore
from attestation.sources.signing import ADMIN, ATTESTATION, CHALLENGE, TOKEN, SigningKeys
from attestation.sources.tenants import TenantStore
from attestation.sources.users import UserStore
from attestation.sources.webhook import Silent
from attestation.values import Tee

ROOT_KEY_FILE = "root.key"


@dataclass(frozen=True, slots=True, kw_only=True)
class WorldOptions:
    """What the operator chose. `simulated` accepts forgeable evidence, and only on a store of `test` keys."""

    store: str
    root_key: Path | None = None
    issuer: str = "kata-gpu-kbs"
    audience: str = "kata-gpu-kbs"
    tees: frozenset[Tee] = frozenset({Tee.SNP, Tee.TDX})
    simulated: bool = False
    admin_issuers: tuple[AdminIssuer, ...] = ()
    deny_all_admins: bool = False
    token_certificates: bytes = b""  # PEM chain of the token key; empty for none
    external: TokenTrust | None = None
    webhook: Notifier | None = None


def open_world(options: WorldOptions, verifier: PlatformVerifier, *, now: datetime) -> World:
    """Open the store, creating an empty one with a new root key where a directory is named that is not there yet.

    Raises Misconfigured, also where forgeable evidence is to be accepted beside real keys.
    """
    root_path = _prepare(options)
    ring = load_root_keys(root_path, secrets.token_bytes)
    database = Database.open(options.store)
    vault = Vault(ring, secrets.token_bytes, reload=lambda: load_root_keys(root_path, secrets.token_bytes))
    signing = SigningKeys(database, vault)
    audit = AuditLog(database, signing.audit_key(now))
    configuration = Configuration(database, audit)
    keys = KeyStore(database, vault, configuration)
    forgeable = options.simulated or Tee.SAMPLE in options.tees
    if forgeable and not keys.only_test_keys():
        raise Misconfigured(
            "simulated-with-real-keys",
            "forgeable evidence is not accepted on a store that holds keys not labelled test",
            where=options.store,
            expected="only keys added with --label test",
        )
    current, *previous = (TokenKey.of(pem) for pem in signing.load(TOKEN, now))
    authority = TokenAuthority(
        issuer=options.issuer, audience=options.audience, current=current, previous=tuple(previous)
    )
    return World(
        database=database,
        vault=vault,
        cookies=ChallengeCookies(signing.load(CHALLENGE, now)[0]),
        sessions=SessionStore(database),
        attestations=AttestationStore(database, signing.load(ATTESTATION, now)[0]),
        configuration=configuration,
        keys=keys,
        policies=PolicyStore(configuration),
        references=ReferenceStore(configuration),
        revocations=RevocationStore(configuration),
        users=UserStore(configuration),
        audit=audit,
        signing=signing,
        verifier=verifier,
        rego=RegoWorker(),
        leases=LeaseStore(database),
        tenants=TenantStore(database, configuration),
        webhook=options.webhook or Silent(),
        authority=authority.certified(options.token_certificates) if options.token_certificates else authority,
        admin_key=ECKey.import_key(signing.load(ADMIN, now)[0]),
        random=secrets.token_bytes,
        tees=options.tees,
        simulated=forgeable,
        admin_issuers=options.admin_issuers,
        deny_all_admins=options.deny_all_admins,
        external=options.external,
    )


def close_world(world: World) -> None:
    """Return connections and end the policy worker."""
    world.webhook.close()
    world.rego.close()
    world.database.close()


def _prepare(options: WorldOptions) -> Path:
    if "://" in options.store:
        if options.root_key is None:
            raise Misconfigured("root-key-missing", "a database needs a root key file", expected="--root-key FILE")
        return options.root_key
    directory = Path(options.store)
    root_path = options.root_key or directory / ROOT_KEY_FILE
    if not directory.exists():
        try:
            directory.mkdir(mode=0o700, parents=True)
        except OSError as exc:
            raise Misconfigured("store-directory", f"cannot create: {exc.strerror}", where=str(directory)) from exc
    if not os.path.lexists(root_path) and not any(directory.glob("*.sqlite3")):
        FileRootKey.create(root_path, secrets.token_bytes)
    return root_path
