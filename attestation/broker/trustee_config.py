"""Upstream's `kbs-config.toml` option by option: what it is here, what is refused as unsafe, what has no equivalent.

keybroker.md 2.7 lists the options. An option that this table does not know is said to be unknown, never dropped.
"""

import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from attestation.errors import Misconfigured

MAX_CONFIG_BYTES = 256 * 1024


class Outcome(StrEnum):
    """What becomes of an option."""

    SAME = "same"
    CHANGED = "changed"  # there is something like it; the note says what to do
    UNSAFE = "unsafe"  # refused on purpose
    NONE = "none"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One option of theirs: what it says, what becomes of it, and options of `serve` that do the same."""

    option: str
    value: str
    outcome: Outcome
    note: str
    serve: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourceStore:
    """Where resources lie: a folder of files, or one JSON file."""

    kind: str  # LocalFs or LocalJson
    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MigrationPlan:
    """Every option, and the resource store where it is a local one."""

    rows: tuple[Row, ...]
    resources: ResourceStore | None

    @property
    def serve(self) -> tuple[str, ...]:
        """Options of `serve`, in the order of the file."""
        return tuple(part for row in self.rows for part in row.serve)


_Say = tuple[Outcome, str, tuple[str, ...]]
_Judge = Callable[[Any], _Say]


def plan_migration(text: str, *, where: str = "kbs-config.toml") -> MigrationPlan:
    """A configuration to a plan. Raises Misconfigured where it is no TOML."""
    if len(text.encode()) > MAX_CONFIG_BYTES:
        raise Misconfigured("trustee-config", "too long", where=where, expected=f"at most {MAX_CONFIG_BYTES} bytes")
    try:
        document = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as exc:
        raise Misconfigured("trustee-config", f"not TOML: {exc}", where=where) from exc
    rows = tuple(_row(option, value) for option, value in _flat("", document))
    return MigrationPlan(rows=rows, resources=_resources(document))


def _flat(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Dotted names of leaves; tables in lists lose their index, lists of plain values stay whole."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _flat(f"{prefix}.{name}".lstrip("."), inner)
    elif isinstance(value, list) and any(isinstance(inner, Mapping) for inner in value):
        for inner in value:
            yield from _flat(f"{prefix}[]", inner)
    else:
        yield prefix, value


def _row(option: str, value: Any) -> Row:
    judge = next((judge for pattern, judge in _TABLE if re.fullmatch(pattern, option)), None)
    shown = "(a secret)" if re.search(r"token|password|api_key|secret", option.rpartition(".")[2]) else str(value)[:120]
    if judge is None:
        note = "this program does not know the option"
        return Row(option=option, value=shown, outcome=Outcome.UNKNOWN, note=note)
    outcome, note, serve = judge(value)
    return Row(option=option, value=shown, outcome=outcome, note=note, serve=serve)


def _resources(document: Mapping[str, Any]) -> ResourceStore | None:
    """Upstream keeps resources in the namespace `repository`; type names are spelled in two ways."""
    storage = document.get("storage_backend")
    if not isinstance(storage, Mapping):
        return None
    kind = str(storage.get("storage_type", "")).replace("_", "").lower()
    backends = storage.get("backends")
    backends = backends if isinstance(backends, Mapping) else {}
    for name, backend, member, default in (
        ("LocalFs", "local_fs", "dir_path", "/opt/confidential-containers/storage/local_fs"),
        ("LocalJson", "local_json", "file_dir_path", "/opt/confidential-containers/storage/local_json"),
    ):
        if kind == name.lower():
            options = backends.get(backend)
            folder = options.get(member, default) if isinstance(options, Mapping) else default
            return ResourceStore(kind=name, path=f"{str(folder).rstrip('/')}/repository")
    return None


def _say(outcome: Outcome, note: str) -> _Judge:
    return lambda _value: (outcome, note, ())


def _passed(option: str, note: str = "") -> _Judge:
    """One option of `serve` for each value."""

    def judge(value: Any) -> _Say:
        values = value if isinstance(value, list) else [value]
        return Outcome.SAME, note or f"serve {option}", tuple(part for one in values for part in (option, str(one)))

    return judge


def _one_of(same: object, note: str, otherwise: _Say) -> _Judge:
    return lambda value: (Outcome.SAME, note, ()) if value == same else otherwise


def _sockets(value: Any) -> _Say:
    sockets = value if isinstance(value, list) and value else [""]
    more = "; one address is served, more need a proxy" if len(sockets) > 1 else ""
    note = f"guests' listener; administrators have their own (--admin-listen){more}"
    return Outcome.CHANGED, note, ("--listen", str(sockets[0]))


def _plain_http(value: Any) -> _Say:
    if value is True:
        return Outcome.UNSAFE, "admin tokens and policies would travel in the clear: give --tls-cert and --tls-key", ()
    return Outcome.SAME, "TLS by --tls-cert and --tls-key", ()


def _admin_mode(value: Any) -> _Say:
    mode = str(value).replace("_", "").lower()
    if mode == "insecureallowall":
        return Outcome.UNSAFE, "nobody administers without a token: `kata-gpu-kbs user add`, `user token`", ()
    if mode == "denyall":
        return Outcome.SAME, "no admin request is accepted", ("--deny-all-admins",)
    return Outcome.CHANGED, "users of this broker, or identity providers by --admin-issuer FILE", ()


def _jwk_sets(value: Any) -> _Say:
    sources = [str(source) for source in (value if isinstance(value, list) else [value])]
    local = [source.removeprefix("file://") for source in sources if not source.startswith("https://")]
    serve = tuple(part for source in local for part in ("--trusted-token-jwks", source))
    if len(local) == len(sources):
        return Outcome.SAME, "tokens of these services reach the resource policy, never a GPU key", serve
    return Outcome.CHANGED, "nothing is fetched at start: store the JWK set in a file, --trusted-token-jwks", serve


def _header_jwk(value: Any) -> _Say:
    if value is True:
        return Outcome.UNSAFE, "anybody could sign tokens: name certificates or JWK sets", ()
    return Outcome.SAME, "never", ()


def _service(value: Any) -> _Say:
    if value == "coco_as_builtin":
        return Outcome.SAME, "evidence is verified in the broker, offline: give --collateral", ()
    return (
        Outcome.CHANGED,
        "evidence is verified here; tokens of another service only by --trusted-token-certs or --trusted-token-jwks",
        (),
    )


def _storage(value: Any) -> _Say:
    kind = str(value).replace("_", "").lower()
    if kind in ("localfs", "localjson"):
        return Outcome.CHANGED, "resources are imported and encrypted at rest; the rest is set anew", ()
    if kind == "memory":
        return Outcome.CHANGED, "the store is durable: --store DIR", ()
    return Outcome.NONE, "read it out with upstream's tools; --store postgresql://... is another schema", ()


def _plugin(value: Any) -> _Say:
    if value == "resource":
        return Outcome.SAME, "built in", ()
    return Outcome.NONE, "only resources are served; unencrypted plugins on the guests' listener are refused", ()


def _plugin_backend(value: Any) -> _Say:
    if str(value).lower() == "kvstorage":
        return Outcome.SAME, "the store", ()
    return Outcome.NONE, "read the secrets out and `kata-gpu-kbs key add`", ()


_BUILT_IN = _say(Outcome.CHANGED, "fixed here")
_AS = r"attestation_service\.(attestation_token_config|attestation_token_broker)"
# First match wins. Patterns are over dotted names; `[]` is an element of a list of tables.
_TABLE: tuple[tuple[str, _Judge], ...] = (
    (r"http_server\.sockets", _sockets),
    (r"http_server\.insecure_http", _plain_http),
    (r"http_server\.private_key", _passed("--tls-key")),
    (r"http_server\.certificate", _passed("--tls-cert")),
    (r"http_server\.payload_request_size", _one_of(2, "2 MiB", (Outcome.NONE, "2 MiB, always", ()))),
    (r"http_server\.worker_count", _say(Outcome.NONE, "threads suit the processor; run replicas on one database")),
    (r"http_server\.tls_.*", _say(Outcome.CHANGED, "TLS 1.2 at least and the library's strong suites, always")),
    (r"attestation_token\.trusted_certs_paths",
     _passed("--trusted-token-certs", "tokens of these services reach the resource policy, never a GPU key")),
    (r"attestation_token\.trusted_jwk_sets", _jwk_sets),
    (r"attestation_token\.extra_teekey_paths", _passed("--trusted-token-key-path")),
    (r"attestation_token\.insecure_header_jwk", _header_jwk),
    (r"attestation_service\.type", _service),
    (r"attestation_service\.timeout", _one_of(5, "5 minutes", (Outcome.NONE, "a challenge lives 5 minutes", ()))),
    (rf"{_AS}\.duration_min", _one_of(5, "5 minutes", (Outcome.NONE, "a token lives 5 minutes", ()))),
    (rf"{_AS}\.issuer_name", _passed("--issuer")),
    (rf"{_AS}\.(developer_name|build_name|profile_name|policy_dir|type)", _BUILT_IN),
    (rf"{_AS}\.verbose_token", _say(Outcome.CHANGED, "claims stay on the server under the token's id")),
    (rf"{_AS}\.signer\.key_path",
     _say(Outcome.NONE, "the token key is made in the store and never leaves: certify it with `token-key csr`")),
    (rf"{_AS}\.signer\.cert_path", _say(Outcome.CHANGED, "certify the new key, then --token-cert")),
    (rf"{_AS}\.signer\.cert_url", _say(Outcome.NONE, "nobody should fetch what a token names")),
    (r"attestation_service\.rvps_config\.type",
     _one_of("BuiltIn", "`kata-gpu-kbs reference`; gRPC by `reference serve`",
             (Outcome.CHANGED, "reference values live in the store; import them with `reference import`", ()))),
    (r"attestation_service\.rvps_config\..*", _say(Outcome.CHANGED, "reference values live in the store")),
    (r"attestation_service\.verifier_config\.nvidia_verifier\.type",
     _one_of("Local", "verified offline against reference documents: give --collateral",
             (Outcome.CHANGED, "NVIDIA's service is not asked: `collateral fetch`, then --collateral", ()))),
    (r"attestation_service\.verifier_config\..*", _say(Outcome.CHANGED, "`collateral fetch`, then --collateral")),
    (r"attestation_service\.(as_addr|pool_size|base_url|api_key|certs_file|allow_unmatched_policy|policy_ids|work_dir)",
     _say(Outcome.NONE, "no other attestation service is asked")),
    (r"admin\.authorization_mode", _admin_mode),
    (r"admin\.authentication\.bearer_jwt\.identity_providers\[\]\.(issuer|audience|public_key_uri)",
     _say(Outcome.CHANGED, "one TOML file for each provider: --admin-issuer FILE")),
    (r"admin\.authentication\.bearer_jwt\.identity_providers\[\]\.jwk_set_uri",
     _say(Outcome.NONE, "nothing is fetched: give the public key in a file, --admin-issuer FILE")),
    (r"admin\.authorization\.regex_acl\.acls\[\]\..*",
     _say(Outcome.CHANGED, "rights are roles and repositories: [roles] of the --admin-issuer file, or `user add`")),
    (r"admin\.(insecure_api|auth_public_key)",
     _say(Outcome.UNSAFE, "self-signed tokens without a role are no longer accepted, nor requests without one")),
    (r"storage_backend\.storage_type", _storage),
    (r"(storage_backend\.)?backends\.local_(fs|json)\..*|storage_backend\.backends\.local_(fs|json)\..*",
     _say(Outcome.CHANGED, "imported once; the store is --store")),
    (r"storage_backend\.backends\..*", _say(Outcome.NONE, "another schema; see storage_type")),
    (r"session_storage_type", _say(Outcome.SAME, "sessions are in the store, shared by replicas")),
    (r"plugins\[\]\.name", _plugin),
    (r"plugins\[\]\.(storage_backend_type|type)", _plugin_backend),
    (r"plugins\[\]\.verify_ssl", _one_of(True, "n/a", (Outcome.UNSAFE, "certificates are always checked", ()))),
    (r"plugins\[\]\..*", _say(Outcome.NONE, "no such plugin here")),
)  # fmt: skip
