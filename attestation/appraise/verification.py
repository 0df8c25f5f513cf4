"""A verification policy: what the operator demands of genuine evidence, as strict TOML (docs/policies.md).

One document for every verifier: `serve` and `verify gpu|snp|tdx|evidence`, `--verification-policy`. Signatures,
chains, nonces, identities and the comparison of measurements have no field here, because nobody may switch them off.
"""

import hashlib
import tomllib
from dataclasses import dataclass
from datetime import timedelta

from attestation.appraise.fields import MAX_DAYS, Fields, bad
from attestation.appraise.policy import MAX_POLICY_BYTES
from attestation.appraise.verification_cpu import read_snp, read_tdx
from attestation.appraise.verification_nv import read_nvidia
from attestation.errors import Misconfigured
from attestation.values import Digest
from attestation.verify.bundle import BundleRule
from attestation.verify.nv_policy import NvPolicy
from attestation.verify.snp_policy import SnpPolicy
from attestation.verify.tdx_trust import TdxPolicy

VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class VerificationPolicy:
    """Rules by kind of evidence, the age of the collateral bundle, and every reason why something is not checked."""

    nvidia: NvPolicy
    snp: SnpPolicy
    tdx: TdxPolicy
    bundle: BundleRule | None
    waivers: tuple[str, ...]
    digest: Digest


def parse_verification_policy(raw: bytes, *, where: str = "verification policy") -> VerificationPolicy:
    """A document to rules. Raises Misconfigured with the path of the field."""
    if len(raw) > MAX_POLICY_BYTES:
        raise Misconfigured("policy-size", "policy is too long", where=where, expected=MAX_POLICY_BYTES, got=len(raw))
    try:
        document = tomllib.loads(raw.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise Misconfigured("policy-toml", f"not TOML: {exc}", where=where) from exc
    waivers: list[str] = []
    top = Fields(document, "", waivers)
    if (version := top.take("version")) != VERSION or isinstance(version, bool):
        raise bad("version", str(VERSION), version)
    policy = {
        "nvidia": read_nvidia(top.table("nvidia")),
        "snp": read_snp(top.table("snp")),
        "tdx": read_tdx(top.table("tdx")),
        "bundle": _bundle(top),
    }
    top.finish()
    digest = Digest("sha256", hashlib.sha256(raw).digest())
    return VerificationPolicy(**policy, waivers=tuple(waivers), digest=digest)  # type: ignore[arg-type]


def _bundle(top: Fields) -> BundleRule | None:
    """None where nothing is said, or waived: the age of a bundle is reported and not judged."""
    if not top.has("bundle") or top.waived("bundle") is not None:
        return None
    table = top.table("bundle")
    if not table.has("max_age_days"):
        raise bad("bundle.max_age_days", f"1..{MAX_DAYS}", None)
    max_age = table.days("max_age_days", timedelta(0))
    required = table.take("required")
    if required not in (None, True, False):
        raise bad("bundle.required", "true|false", required)
    return table.built(lambda: BundleRule(max_age=max_age, required=bool(required)))
