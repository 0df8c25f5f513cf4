"""Evidence in files, read as a platform that policies can be tried on. Nothing is released on it: it may be replayed.

Two kinds: the body of `POST /kbs/v0/attest` (verified here, against its own nonce), and the result of
`verify evidence --output json`, which was verified when it was made.
"""

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from attestation.appraise.facts import PlatformFacts
from attestation.broker.session import Attested, Challenged, Submission
from attestation.crypto.jwk import parse_tee_key
from attestation.errors import Malformed, Misconfigured, Untrusted
from attestation.formats.json_strict import parse_json, require_object, require_text
from attestation.ops.attest import appraise
from attestation.ops.world import PlatformVerifier, World
from attestation.values import BindingProfile, Tee

MAX_FILE_BYTES = 4 * 1024 * 1024
# What the three kinds of CPU evidence have and the others lack (keybroker.md 1.5 and 8.4).
_MARKS = {"attestation_report": Tee.SNP, "quote": Tee.TDX, "svn": Tee.SAMPLE}


def read_recorded(world: World, name: str, raw: bytes, verifier: PlatformVerifier, *, now: datetime) -> Attested:
    """One file as an attestation of this moment, appraised by the policies and reference values of the store."""
    document = require_object(parse_json(raw, max_bytes=MAX_FILE_BYTES, what=name), name)
    submission = None
    if "runtime-data" in document:
        submission = _submission(document, name)
        facts = _verified(submission, verifier, name, now)
    else:
        facts = _facts(document, name)
    return Attested(
        jti=name,
        issued=now,
        expires=now,
        nonce=submission.nonce if submission else "",
        tee_key=submission.tee_key.jwk if submission else {},
        facts=facts,
        appraisals=appraise(world, facts, submission, now),
        simulated=False,
    )


def _submission(document: Mapping[str, Any], name: str) -> Submission:
    runtime = require_object(document["runtime-data"], f"{name} runtime-data")
    evidence = require_object(document.get("tee-evidence"), f"{name} tee-evidence")
    init_data = document.get("init-data")
    return Submission(
        nonce=require_text(runtime.get("nonce"), f"{name} nonce"),
        tee_key=parse_tee_key(runtime.get("tee-pubkey")),
        init_data=None
        if init_data is None
        else require_text(require_object(init_data, "init-data").get("body"), "init-data"),
        primary=require_object(evidence.get("primary_evidence"), f"{name} primary_evidence"),
        additional=require_text(evidence.get("additional_evidence", ""), f"{name} additional_evidence"),
    )


def _verified(submission: Submission, verifier: PlatformVerifier, name: str, now: datetime) -> PlatformFacts:
    tee = next((tee for mark, tee in _MARKS.items() if mark in submission.primary), None)
    if tee is None:
        raise Malformed("recorded-tee", "unknown CPU evidence", where=name, expected="|".join(_MARKS))
    session = Challenged(tee=tee, nonce=submission.nonce, expires=now, profile=BindingProfile.TRUSTEE_RCAR)
    try:
        return PlatformFacts.of(verifier.verify(submission, session, now=now))
    except Untrusted as exc:
        if exc.code != "report-data-mismatch":
            raise
    # The body does not say which profile its session had agreed on.
    native = replace(session, profile=BindingProfile.CGPU_V1)
    return PlatformFacts.of(verifier.verify(submission, native, now=now))


def _facts(document: Mapping[str, Any], name: str) -> PlatformFacts:
    claims = document.get("claims")
    record = claims.get("facts") if isinstance(claims, Mapping) else None
    if not isinstance(record, Mapping):
        raise Misconfigured(
            "recorded-file",
            "neither evidence nor a result about it",
            where=name,
            expected="a body of POST /kbs/v0/attest, or output of `verify evidence --output json`",
        )
    try:
        return PlatformFacts.from_json(record)
    except (KeyError, TypeError, ValueError, AttributeError) as exc:
        raise Malformed("recorded-facts", "not the facts of a platform", where=name, got=str(exc)[:80]) from exc
