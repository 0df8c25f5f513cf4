"""What a policy would do to workloads that were seen: the recorded attestations, judged again. Nothing is released."""

from dataclasses import dataclass
from datetime import datetime

from attestation.appraise.checks import Usage, check_release
from attestation.appraise.policy import KeyConditions, parse_conditions
from attestation.broker.session import Attested
from attestation.findings import Verdict
from attestation.ops.release import policy_text
from attestation.ops.world import World
from attestation.values import ResourcePath

MAX_RECORDED = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """One recorded attestation; no reasons means that it would get the key."""

    label: str
    jti: str
    reasons: tuple[str, ...]

    def to_json(self) -> dict[str, object]:
        """For output."""
        return {"workload": self.label, "jti": self.jti, "reasons": list(self.reasons)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """Workloads whose access changes, and how many keep theirs."""

    gain: tuple[str, ...]
    lose: tuple[str, ...]
    same: int


def judge_recorded(world: World, policy: str, *, now: datetime) -> tuple[Judged, ...]:
    """Every recorded attestation under a policy text."""
    conditions = parse_conditions(policy)
    return tuple(
        Judged(
            label=workload(attested),
            jti=attested.jti,
            reasons=tuple(finding.code for finding in _judge(world, attested, conditions, now).failures),
        )
        for attested in world.attestations.recent(MAX_RECORDED)
    )


def compare(world: World, path: ResourcePath, policy: str, *, now: datetime) -> Changes:
    """The policy in force for a key against a new one. Several attestations of one workload count once."""
    new = parse_conditions(policy)
    old_text = policy_text(world, path, world.keys.get(path))
    old = parse_conditions(old_text) if old_text else None
    before: dict[str, bool] = {}
    after: dict[str, bool] = {}
    for attested in world.attestations.recent(MAX_RECORDED):
        label = workload(attested)
        before[label] = before.get(label, False) or (old is not None and _judge(world, attested, old, now).trusted)
        after[label] = after.get(label, False) or _judge(world, attested, new, now).trusted
    return Changes(
        gain=tuple(sorted(label for label in after if after[label] and not before[label])),
        lose=tuple(sorted(label for label in after if before[label] and not after[label])),
        same=sum(after[label] == before[label] for label in after),
    )


def workload(attested: Attested) -> str:
    """A name for people: TEE, chip, number of devices, measurement, init-data."""
    facts = attested.facts
    init_data = str(facts.init_data_digest)[:19] if facts.init_data_digest else "none"
    return (
        f"{facts.cpu.tee} chip {facts.cpu.chip_id[:16] or '-'} devices {len(facts.devices)} "
        f"measurement {facts.cpu.measurement[:12] or '-'} init-data {init_data}"
    )


def _judge(world: World, attested: Attested, conditions: KeyConditions, now: datetime) -> Verdict:
    # Labels and counters belong to keys, not to policies: neither stands in the way of a comparison.
    usage = Usage(releases=0, test_key=True)
    return check_release(
        attested.facts,
        attested.appraisals,
        conditions,
        usage,
        simulated=attested.simulated,
        references=world.references.get,
        now=now,
    )
