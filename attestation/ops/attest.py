"""`POST /kbs/v0/attest`: claim the nonce, verify, appraise, record, and only then hand out a token.

The nonce is claimed for the hash of this very body before anything is verified. The same body again gets the same
answer, on any replica; another body gets none; a body that fails burns the nonce.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from threading import BoundedSemaphore

from attestation.appraise import native
from attestation.appraise.ear import Appraisal, Status
from attestation.appraise.facts import CpuFacts, DeviceFacts, PlatformFacts
from attestation.appraise.rego import policy_input, tee_class, vector_of
from attestation.broker.session import Attested, Challenged, Submission, attested
from attestation.broker.token import render_token
from attestation.errors import AttestationError, Denied, Malformed, Unavailable, Untrusted, after_signature
from attestation.findings import Finding, Result
from attestation.ops.release import require_not_revoked
from attestation.ops.world import World
from attestation.sources.policy_store import PolicyKind, StoredPolicy
from attestation.sources.sessions import InProgress, LiveSession, Repeated, session_key
from attestation.values import JsonValue, Tee
from attestation.verify.bind import with_guest_measured

WAIT_S, POLL_S = 20.0, 0.02  # a twin request waits for the first; guests give up after 50 s
MAX_WAITING = 2  # of one process: half of the threads that serve guests (service/app.py)
_WAITING = BoundedSemaphore(MAX_WAITING)


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """The answer. `expires` is the session's, for the cookie."""

    token: str


def attest(
    world: World,
    *,
    cookie: str,
    submission: Submission,
    body_digest: str,
    now: datetime,
    network: str = "",
    on_claim: Callable[[Tee], None] | None = None,
) -> Token:
    """One handshake's second step. Untrusted, Malformed and Denied burn the nonce; Unavailable does not.

    `network` is where the evidence came from. `on_claim` learns the session's TEE, also of evidence that is refused
    afterwards.
    """
    key = session_key(cookie)
    claimed = _claim(world, key, body_digest, now)
    if isinstance(claimed, Repeated):
        return Token(token=claimed.token)
    if on_claim is not None:
        on_claim(claimed.tee)
    try:
        return Token(token=_answer(world, key, submission, claimed, now))
    except Unavailable:
        world.sessions.reopen(key)
        raise
    except (Untrusted, Malformed, Denied) as exc:
        _refuse(world, key, claimed, exc, network, now)
        raise
    except Exception:  # a defect of ours: nobody shall wait for this evidence, or try the nonce again
        with world.database.write() as connection:
            world.sessions.burn(connection, key)
        raise


def _answer(world: World, key: str, submission: Submission, claimed: Challenged, now: datetime) -> str:
    result = _verify(world, submission, claimed, now)
    token = render_token(result, world.authority)
    with world.database.write() as connection:
        world.sessions.finish(connection, key, jti=result.jti, token=token)
        world.attestations.add(connection, result)
        world.audit.append(connection, event="attested", subject=result.jti, body=_summary(result), now=now)
    world.attestations.remember(result)
    world.sessions.remember(key, LiveSession(jti=result.jti, expires=claimed.expires))
    return token


def _claim(world: World, key: str, body_digest: str, now: datetime) -> Challenged | Repeated:
    """Twins wait, few of them: each holds a worker, and the same evidence again costs its sender nothing."""
    claimed = world.sessions.claim(key, body_digest, now)
    if not isinstance(claimed, InProgress):
        return claimed
    if not _WAITING.acquire(blocking=False):
        raise _still_verifying()
    try:
        until = time.monotonic() + WAIT_S
        while isinstance(claimed, InProgress):
            if time.monotonic() > until:
                raise _still_verifying()
            time.sleep(POLL_S)
            claimed = world.sessions.claim(key, body_digest, now)
        return claimed
    finally:
        _WAITING.release()


def _still_verifying() -> Unavailable:
    return Unavailable("attest-in-progress", "the same evidence is still being verified")


def _verify(world: World, submission: Submission, challenged: Challenged, now: datetime) -> Attested:
    if submission.nonce != challenged.nonce:
        raise Untrusted("nonce-mismatch", "the nonce is not this session's", where="runtime-data.nonce")
    platform = world.verifier.verify(submission, challenged, now=now)
    with after_signature():
        return _judge(world, PlatformFacts.of(platform), submission, now)


def _judge(world: World, facts: PlatformFacts, submission: Submission, now: datetime) -> Attested:
    appraisals = appraise(world, facts, submission, now)
    measured = native.guest_measured(appraisals)
    result = attested(
        replace(facts, binding=with_guest_measured(facts.binding, measured)),
        appraisals,
        nonce=submission.nonce,
        tee_key=submission.tee_key.jwk,
        simulated=world.simulated,
        random=world.random,
        now=now,
    )
    require_not_revoked(world, result)
    return result


def appraise(world: World, facts: PlatformFacts, submission: Submission | None, now: datetime) -> tuple[Appraisal, ...]:
    """Native appraisal, or the stored Rego policy `default_<class>` of a submodule's class where there is one."""
    stored = world.policies.names(PolicyKind.REGO_ATTESTATION)
    if not stored:
        return native.appraise_platform(facts, references=world.references.get, now=now)
    values = world.references.all_raw(now)
    out: list[Appraisal] = []
    for name, part in facts.submods():
        policy = None
        if (policy_id := f"default_{tee_class(part)}") in stored:
            policy = world.policies.get(PolicyKind.REGO_ATTESTATION, policy_id)
        if policy is not None:
            out.append(_rego(world, name, part, facts, submission, policy, values))
        elif isinstance(part, CpuFacts):
            out.append(native.appraise_cpu(part, references=world.references.get, now=now))
        else:
            out.append(native.appraise_device(name, part, cpu_status=out[0].status))
    return tuple(out)


def _rego(
    world: World,
    name: str,
    part: CpuFacts | DeviceFacts,
    facts: PlatformFacts,
    submission: Submission | None,
    policy: StoredPolicy,
    values: Mapping[str, JsonValue],
) -> Appraisal:
    runtime: dict[str, JsonValue] | None = None
    if submission is not None:
        runtime = {"nonce": submission.nonce, "tee-pubkey": submission.tee_key.jwk}
    answer = world.rego.appraise(policy.text, policy_input(part, facts, runtime), values)
    return Appraisal(submod=name, vector=vector_of(answer), policy_id=f"{policy.name}@{policy.version}")


def _refuse(world: World, key: str, challenged: Challenged, exc: AttestationError, network: str, now: datetime) -> None:
    if not world.refusals.singly(exc, network, now):
        with world.database.write() as connection:
            world.sessions.burn(connection, key)
        return
    body: dict[str, JsonValue] = {
        "tee": str(challenged.tee),
        "code": exc.code,
        "where": exc.where,
        "reason": exc.what,
        "expected": exc.expected,
        "got": exc.got,
    }
    with world.database.write() as connection:
        world.sessions.burn(connection, key)
        world.audit.append(connection, event="attest-refused", subject=key[:16], body=body, now=now)
    world.webhook.notify("attest-refused", key[:16], body, now)


def _summary(result: Attested) -> dict[str, JsonValue]:
    facts = result.facts
    return {
        "status": str(result.status),
        "tee": str(facts.cpu.tee),
        "product": facts.cpu.product,
        "chip_id": facts.cpu.chip_id,
        "measurement": facts.cpu.measurement,
        "init_data": None if facts.init_data_digest is None else str(facts.init_data_digest),
        "devices": [
            {"kind": str(d.kind), "chip_id": d.chip_id, "level": str(d.level), "evidence": d.evidence}
            for d in facts.devices
        ],
        "collateral": facts.binding.get("collateral"),
        "simulated": result.simulated,
        "findings": [
            {"submod": a.submod, **_brief(f)}
            for a in result.appraisals
            if a.status is not Status.AFFIRMING
            for f in a.findings
            if f.result is Result.FAIL
        ],
    }


def _brief(finding: Finding) -> dict[str, str]:
    return {"check": finding.check, "code": finding.code, "expected": finding.expected, "got": finding.got}
