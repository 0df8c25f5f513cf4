"""What a policy would do to workloads that were seen: recorded attestations and evidence in files, judged again.

Nothing is released and nothing is counted.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from attestation.appraise.checks import Usage, check_release
from attestation.appraise.policy import KeyConditions
from attestation.appraise.policy_toml import parse_conditions
from attestation.broker.session import Attested
from attestation.findings import Verdict
from attestation.ops.release import DEFAULT_POLICY, policy_text
from attestation.ops.world import World
from attestation.sources.policy_store import PolicyKind
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
    """Workloads whose access to one key changes, and how many keep theirs."""

    path: ResourcePath
    gain: tuple[str, ...]
    lose: tuple[str, ...]
    same: int

    def to_json(self) -> dict[str, object]:
        """For output."""
        return {"path": str(self.path), "gain": list(self.gain), "lose": list(self.lose), "same": self.same}


def recorded(world: World) -> tuple[Attested, ...]:
    """What the store remembers."""
    return world.attestations.recent(MAX_RECORDED)


def judge(world: World, seen: Sequence[Attested], policy: str, *, now: datetime) -> tuple[Judged, ...]:
    """Every attestation under a policy text."""
    conditions = parse_conditions(policy)
    return tuple(
        Judged(
            label=workload(attested),
            jti=attested.jti,
            reasons=tuple(finding.code for finding in explain(world, attested, conditions, now=now).failures),
        )
        for attested in seen
    )


def compare(world: World, seen: Sequence[Attested], target: str, policy: str, *, now: datetime) -> tuple[Changes, ...]:
    """A new policy for one key, for a repository, or `default`: every key that it would govern, and what changes."""
    new = parse_conditions(policy)
    after = _access(world, seen, new, now)
    before: dict[str, dict[str, bool]] = {"": dict.fromkeys(after, False)}
    changes = []
    for path, text in _governed(world, target):
        if text not in before:  # most keys share a policy
            before[text] = _access(world, seen, parse_conditions(text), now)
        old = before[text]
        changes.append(
            Changes(
                path=path,
                gain=tuple(sorted(label for label in after if after[label] and not old[label])),
                lose=tuple(sorted(label for label in after if old[label] and not after[label])),
                same=sum(after[label] == old[label] for label in after),
            )
        )
    return tuple(changes)


def explain(world: World, attested: Attested, conditions: KeyConditions, *, now: datetime) -> Verdict:
    """Every finding. Labels and counters belong to keys, not to policies: neither stands in the way here."""
    return check_release(
        attested.facts,
        attested.appraisals,
        conditions,
        Usage(releases=0, test_key=True),
        simulated=attested.simulated,
        references=world.references.get,
        now=now,
    )


def workload(attested: Attested) -> str:
    """A name for people: TEE, chip, number of devices, measurement, init-data."""
    facts = attested.facts
    init_data = str(facts.init_data_digest)[:19] if facts.init_data_digest else "none"
    chip = f"{facts.cpu.chip_id[:12]}..." if facts.cpu.chip_id else "-"  # as no command would take it for a whole one
    return (
        f"{facts.cpu.tee} chip {chip} devices {len(facts.devices)} "
        f"measurement {facts.cpu.measurement[:12] or '-'} init-data {init_data}"
    )


def _access(world: World, seen: Sequence[Attested], conditions: KeyConditions, now: datetime) -> dict[str, bool]:
    """Who would get a key. Several attestations of one workload count once."""
    found: dict[str, bool] = {}
    for attested in seen:
        label = workload(attested)
        found[label] = found.get(label, False) or explain(world, attested, conditions, now=now).trusted
    return found


def _governed(world: World, target: str) -> list[tuple[ResourcePath, str]]:
    """The keys that a policy of this name would govern, with the policy that governs each now."""
    if "/" in target:
        path = ResourcePath.parse(target)
        return [(path, policy_text(world, path, world.keys.get(path)))]
    named = world.policies.names(PolicyKind.RELEASE)
    return [
        (record.path, policy_text(world, record.path, record))
        for record in world.keys.list(None if target == DEFAULT_POLICY else target)
        if not record.policy and (target != DEFAULT_POLICY or record.path.repository not in named)
    ]
