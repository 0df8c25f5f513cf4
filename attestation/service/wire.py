"""Wire models of the KBS protocol, exactly as upstream's serde reads them; the next line turns them into core types."""

from typing import Annotated, Any, TypeVar

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from attestation.broker.session import Submission
from attestation.crypto.jwk import parse_tee_key
from attestation.errors import Malformed, Untrusted

MAX_NONCE_CHARS = 1024  # ours are 44; whatever is longer is compared and refused
MAX_LABELS = 16
MAX_BODY_BYTES = 2 * 1024 * 1024  # upstream's default payload limit
MAX_ADMIN_BODY_BYTES = 4 * 1024 * 1024  # a secret of 2 MiB, or a policy in base64


class _Wire(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="ignore", populate_by_name=False)


class AuthRequest(_Wire):
    """`POST /kbs/v0/auth`. Unknown members are ignored, `extra-params` may be any JSON (keybroker.md 4.2, 9 and 10)."""

    version: str
    tee: str
    extra_params: Annotated[Any, Field(alias="extra-params")]


class InitData(_Wire):
    """The host's init-data document."""

    format: str
    body: str


class RuntimeData(_Wire):
    """What the CPU report covers."""

    nonce: Annotated[str, Field(max_length=MAX_NONCE_CHARS)]
    tee_pubkey: Annotated[dict[str, Any], Field(alias="tee-pubkey")]


class TeeEvidence(_Wire):
    """Snake case here is real (keybroker.md 1.5)."""

    primary_evidence: dict[str, Any]
    additional_evidence: str = ""


class AttestRequest(_Wire):
    """`POST /kbs/v0/attest`."""

    init_data: Annotated[InitData | None, Field(alias="init-data")] = None
    runtime_data: Annotated[RuntimeData, Field(alias="runtime-data")]
    tee_evidence: Annotated[TeeEvidence, Field(alias="tee-evidence")]

    def submission(self) -> Submission:
        """To core types."""
        if self.init_data is not None and self.init_data.format != "toml":
            raise Untrusted("init-data-format", "unknown init-data format", expected="toml")
        return Submission(
            nonce=self.runtime_data.nonce,
            tee_key=parse_tee_key(self.runtime_data.tee_pubkey),
            init_data=None if self.init_data is None else self.init_data.body,
            primary=self.tee_evidence.primary_evidence,
            additional=self.tee_evidence.additional_evidence,
        )


class PolicyUpload(_Wire):
    """`POST resource-policy` and `attestation-policy`: base64url text; `type` is ignored as upstream does."""

    policy: str
    policy_id: str = "default_cpu"


class KeyUpload(_Wire):
    """`PUT /api/v1/keys/...`: base64 of the secret, labels that the key must have, its release policy as TOML."""

    model_config = ConfigDict(extra="forbid")

    secret: str
    labels: Annotated[tuple[str, ...], Field(max_length=MAX_LABELS)] = ()
    policy: str | None = None


class RevocationUpload(_Wire):
    """`POST /api/v1/revocations`."""

    model_config = ConfigDict(extra="forbid")

    kind: str
    value: str
    reason: str


_Limit = Annotated[int, Field(ge=0, lt=2**63)] | None  # a BIGINT column


class QuotaUpload(_Wire):
    """`PUT /api/v1/tenants/...`; null, or not given, is no limit."""

    model_config = ConfigDict(extra="forbid")

    max_keys: _Limit = None
    releases_per_hour: _Limit = None
    attestations_per_minute: _Limit = None


M = TypeVar("M", bound=_Wire)


def parse_body(model: type[M], body: bytes) -> M:
    """JSON bytes to a model, or Malformed naming the first field."""
    try:
        return model.model_validate_json(body)
    except ValidationError as exc:
        raise _bad_body(exc) from exc


def parse_step(model: type[M], body: bytes) -> M:
    """Likewise for the steps of a handshake, whose models have no types that JSON lacks: in half of the time."""
    try:
        return model.model_validate(orjson.loads(body))
    except orjson.JSONDecodeError as exc:
        raise Malformed("body", f"bad request body: Invalid JSON: {exc}"[:200]) from exc
    except ValidationError as exc:
        raise _bad_body(exc) from exc


def _bad_body(exc: ValidationError) -> Malformed:
    first = exc.errors(include_url=False, include_input=False, include_context=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    return Malformed("body", f"bad request body: {first['msg']}"[:200], where=where[:200])
