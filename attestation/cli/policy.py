"""`kata-gpu-kbs policy`: write release policies with open eyes."""

from pathlib import Path
from typing import Any

import click

from attestation.cli.store import moment, opened, operator, read_text, show, store_options
from attestation.errors import ExitCode, Misconfigured
from attestation.values import ResourcePath


@click.group()
def policy() -> None:
    """Release policies: check, try on recorded attestations, explain, compare, store.

    \b
    Example:
      kata-gpu-kbs policy check llama.toml
    """


@policy.command()
@click.argument("file")
@click.option("--output", type=click.Choice(["text", "json"]), default="text", help="How to print the result.")
def check(file: str, output: str) -> None:
    """Parse a policy and say what it demands and what it waives.

    \b
    Example:
      kata-gpu-kbs policy check llama.toml
    """
    from attestation.appraise.policy import parse_conditions

    conditions = parse_conditions(read_text(file), where=file)
    gpus = conditions.gpus
    result: dict[str, Any] = {
        "digest": str(conditions.digest),
        "tee": [str(tee) for tee in conditions.cpu.tees],
        "gpus": None if gpus is None else f"{'at least ' if gpus.at_least else ''}{gpus.count}",
        "waivers": list(conditions.waivers),
    }
    lines = [f"ok: {file}", f"CPU TEE: {', '.join(result['tee'])}", f"GPUs: {result['gpus'] or 'none required'}"]
    lines += [f"WAIVED: {reason}" for reason in conditions.waivers] or ["nothing is waived"]
    show(result, output, lines)


@policy.command("set")
@click.argument("name")
@click.argument("file")
@click.option("--expected-version", type=int, help="Fail if somebody stored another version meanwhile.")
@store_options
def set_(name: str, file: str, expected_version: int | None, store: str, root_key: Path | None, output: str) -> None:
    """Store the policy of a repository, or `default` for keys that have none of their own.

    \b
    Example:
      kata-gpu-kbs policy set default gpu.toml --store kbs
    """
    from attestation.ops.administer import set_release_policy

    with opened(store, root_key) as world:
        version = set_release_policy(
            world, operator(), name, read_text(file), expected=expected_version, now=moment(None)
        )
    show({"name": name, "version": version}, output, [f"policy {name} is now version {version}"])


@policy.command()
@click.argument("file")
@click.option("--at", metavar="RFC3339", help="Judge at this time instead of now.")
@store_options
def test(file: str, at: str | None, store: str, root_key: Path | None, output: str) -> int:
    """Judge every recorded attestation by a policy that is not in force yet. Exit code 1 where any would be denied.

    \b
    Example:
      kata-gpu-kbs policy test new.toml --store kbs
    """
    from attestation.ops.what_if import judge_recorded

    with opened(store, root_key) as world:
        rows = judge_recorded(world, read_text(file), now=moment(at))
    lines = [f"{'allow' if not row.reasons else 'DENY '} {row.label}  {', '.join(row.reasons)}" for row in rows]
    show({"results": [row.to_json() for row in rows]}, output, lines or ["no attestation is recorded"])
    return ExitCode.NEGATIVE if any(row.reasons for row in rows) else ExitCode.OK


@policy.command()
@click.argument("path")
@click.argument("jti")
@click.option("--at", metavar="RFC3339", help="Judge at this time instead of now.")
@store_options
def explain(path: str, jti: str, at: str | None, store: str, root_key: Path | None, output: str) -> int:
    """Every finding for one key and one recorded attestation (its token id is in the audit log).

    \b
    Example:
      kata-gpu-kbs policy explain default/model/llama 3q2-7w... --store kbs
    """
    from attestation.ops.release import explain as explain_release

    with opened(store, root_key) as world:
        attested = world.attestations.get(jti)
        if attested is None:
            raise Misconfigured("attestation-unknown", "no such attestation is recorded", where=jti[:80])
        verdict = explain_release(world, attested, ResourcePath.parse(path), now=moment(at))
    lines = [
        f"{finding.result:<8}{finding.subject:<9}{finding.check:<18}"
        f"expected {finding.expected or '-'}, got {finding.got or '-'}{'  ' + finding.hint if finding.hint else ''}"
        for finding in verdict.findings
    ]
    lines.append("would be released" if verdict.trusted else "would be denied")
    findings = [finding.to_json() for finding in verdict.findings]
    show({"released": verdict.trusted, "findings": findings}, output, lines)
    return ExitCode.OK if verdict.trusted else ExitCode.NEGATIVE


@policy.command()
@click.argument("path")
@click.argument("file")
@click.option("--at", metavar="RFC3339", help="Judge at this time instead of now.")
@store_options
def diff(path: str, file: str, at: str | None, store: str, root_key: Path | None, output: str) -> int:
    """Which recorded workloads would gain or lose a key with a new policy. Exit code 1 where any would lose it.

    \b
    Example:
      kata-gpu-kbs policy diff default/model/llama new.toml --store kbs
    """
    from attestation.ops.what_if import compare

    with opened(store, root_key) as world:
        changes = compare(world, ResourcePath.parse(path), read_text(file), now=moment(at))
    lines = [f"gains {label}" for label in changes.gain] + [f"LOSES {label}" for label in changes.lose]
    lines.append(f"unchanged: {changes.same}")
    show({"gain": list(changes.gain), "lose": list(changes.lose), "same": changes.same}, output, lines)
    return ExitCode.NEGATIVE if changes.lose else ExitCode.OK
