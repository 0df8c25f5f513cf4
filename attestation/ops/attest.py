"""`POST /kbs/v0/attest`: verify, appraise, record, and only then hand out a token.

A challenge is spent by the transaction that records what became of it, and by no other. The same body again gets the
same answer, on any replica; another body gets none; a body that fails burns the challenge.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from threading import BoundedSemaphore

from attestation.appraise import native
from attestation.appraise.ear import Appraisal, Status
from attestation.appraise.facts import CpuFacts, PlatformFacts, Submod
from attestation.appraise.rego import policy_input, tee_class, vector_of
from attestation.broker.session import Attested, Challenged, Submission, attested
from attestation.broker.token import render_token
from attestation.errors import AttestationError, Denied, Malformed, Unavailable, Untrusted, after_signature
from attestation.findings import Finding, Result
from attestation.ops.release import require_not_revoked
from attestation.ops.steps import Steps
from attestation.ops.world import World
from attestation.sources.db import Connection
from attestation.sources.policy_store import PolicyKind, StoredPolicy
from attestation.sources.sessions import Ended, InProgress, Session
from attestation.values import JsonValue, Tee
from attestation.verify.bind import with_guest_measured

WAIT_S, POLL_S = 20.0, 0.02  # a twin request waits for the first; guests give up after 50 s
MAX_WAITING = 1  # of one process: one of the threads that serve guests verifies, one waits (service/app.py)
_WAITING = BoundedSemaphore(MAX_WAITING)


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """The answer."""

    token: str


def attesting(
    world: World,
    *,
    cookie: str,
    submission: Submission,
    body_digest: str,
    now: datetime,
    network: str = "",
    on_claim: Callable[[Tee], None] | None = None,
) -> Steps[Token]:
    """One handshake's second step. Untrusted, Malformed and Denied burn the nonce; Unavailable does not.

    `network` is where the evidence came from. `on_claim` learns the session's TEE, also of evidence that is refused
    afterwards.
    """
    challenged = world.cookies.open(cookie, now=now)
    if challenged.tee not in world.tees:  # any more: the cookie is older than this process
        raise Denied("tee-disabled", "this TEE is not accepted here", where="tee", got=challenged.tee)
    session = Session.of(cookie, challenged)
    ended = _claim(world, session, body_digest)
    if ended is None:
        if on_claim is not None:
            on_claim(challenged.tee)
        ended = yield from _answer(world, session, submission, body_digest, challenged, network, now)
    return Token(token=ended.repeat(body_digest))


def _answer(
    world: World,
    session: Session,
    submission: Submission,
    body: str,
    challenged: Challenged,
    network: str,
    now: datetime,
) -> Steps[Ended]:
    try:
        return (yield from _attested(world, session, submission, body, challenged, now))
    except (Untrusted, Malformed, Denied) as exc:
        _refuse(world, session, body, challenged, exc, network, now)
        raise
    except Unavailable:  # we could not tell: the same guest may try this challenge again
        raise
    except Exception:  # a defect of ours: nobody shall wait for this evidence, or try the challenge again
        with world.database.write() as connection:
            _burn(world, connection, session, body)
        raise
    finally:
        world.sessions.leave(session)


def _attested(
    world: World, session: Session, submission: Submission, body: str, challenged: Challenged, now: datetime
) -> Steps[Ended]:
    result = _verify(world, submission, challenged, now)
    token = render_token(result, world.authority)
    ended = Ended(body=body, jti=result.jti, token=token)
    said = _summary(result)

    def write(connection: Connection) -> Ended | None:
        before = world.sessions.end(connection, session, ended)
        if before is None:
            world.attestations.add(connection, result)
            world.audit.append(connection, event="attested", subject=result.jti, body=said, now=now)
        return before

    before = yield write
    if before is None:
        world.attestations.remember(result)
    else:  # another replica was first
        ended = before
    world.sessions.remember(session, ended)
    return ended


def _claim(world: World, session: Session, body: str) -> Ended | None:
    """Twins wait, few of them: each holds a worker, and the same evidence again costs its sender nothing."""
    claimed = world.sessions.claim(session, body)
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
            claimed = world.sessions.claim(session, body)
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
        simulated=world.simulated or facts.forgeable,
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
    part: Submod,
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


def _burn(world: World, connection: Connection, session: Session, body: str) -> None:
    """Unless another replica has ended it. Remembered before the commit: this process verifies it no more."""
    ended = Ended(body=body)
    world.sessions.remember(session, world.sessions.end(connection, session, ended) or ended)


def _refuse(
    world: World,
    session: Session,
    body: str,
    challenged: Challenged,
    exc: AttestationError,
    network: str,
    now: datetime,
) -> None:
    if not world.refusals.singly(exc, network, now):
        with world.database.write() as connection:
            _burn(world, connection, session, body)
        return
    said: dict[str, JsonValue] = {
        "tee": str(challenged.tee),
        "code": exc.code,
        "where": exc.where,
        "reason": exc.what,
        "expected": exc.expected,
        "got": exc.got,
    }
    subject = session.key[:16]
    with world.database.write() as connection:
        _burn(world, connection, session, body)
        world.audit.append(connection, event="attest-refused", subject=subject, body=said, now=now)
    world.webhook.notify("attest-refused", subject, said, now)


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
        **({"sample_device": facts.sample_device.to_json()} if facts.sample_device else {}),
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
