"""`kata-gpu-kbs policy`: write release policies with open eyes."""

from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import click

from attestation.cli.output import output_option
from attestation.cli.store import moment, opened, operator, read_bytes, read_text, show, store_options
from attestation.cli.verification import simulated_roots_option
from attestation.errors import ExitCode, Misconfigured
from attestation.values import ResourcePath

F = TypeVar("F", bound=Callable[..., Any])


@click.group()
def policy() -> None:
    """Release policies: check, try on recorded attestations, explain, compare, store.

    \b
    Example:
      kata-gpu-kbs policy check llama.toml
    """


@policy.command()
@click.argument("file", type=click.Path())
@output_option
def check(file: str, output: str) -> None:
    """Parse a policy and say what it demands and what it waives.

    \b
    Example:
      kata-gpu-kbs policy check llama.toml
    """
    from attestation.appraise.policy_toml import parse_conditions

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
@click.argument("file", type=click.Path())
@click.option("--expected-version", type=int, help="Fail if somebody stored another version meanwhile.")
@click.option("--allow-rollback", is_flag=True, help="Store the text of an earlier version again.")
@store_options
def set_(
    name: str,
    file: str,
    expected_version: int | None,
    allow_rollback: bool,
    store: str,
    root_key: Path | None,
    output: str,
) -> None:
    """Store the policy of a repository, or `default` for keys that have none of their own.

    Refused: the text of an earlier version, and an `epoch` that does not grow once there is one.

    \b
    Example:
      kata-gpu-kbs policy set default gpu.toml --store kbs
    """
    from attestation.ops.administer import set_release_policy

    with opened(store, root_key, new=True) as world:
        version = set_release_policy(
            world,
            operator(),
            name,
            read_text(file),
            expected=expected_version,
            allow_rollback=allow_rollback,
            now=moment(None),
        )
    show({"name": name, "version": version}, output, [f"policy {name} is now version {version}"])


@policy.command()
@click.argument("name")
@store_options
def history(name: str, store: str, root_key: Path | None, output: str) -> None:
    """Every version of a stored policy: who wrote it and when.

    \b
    Example:
      kata-gpu-kbs policy history default --store kbs
    """
    from attestation.sources.policy_store import PolicyKind

    with opened(store, root_key) as world:
        found = world.policies.history(PolicyKind.RELEASE, name)
    rows = [{"version": p.version, "author": p.author, "created": p.created.isoformat(), "text": p.text} for p in found]
    lines = [f"version {row['version']}  {row['created']}  {row['author']}" for row in rows]
    show({"name": name, "versions": rows}, output, lines or [f"no policy {name}"])


def _seen_options(command: F) -> F:
    """Whose access is judged: what the store remembers, or files."""
    for option in (
        click.option("--at", metavar="RFC3339", help="Judge at this time instead of now."),
        click.option(
            "--unsafe-sample-tee", "sample", is_flag=True, help="Files may hold evidence of sample TEE and device."
        ),
        simulated_roots_option,
        click.option("--collateral", type=click.Path(path_type=Path), help="Collateral store for evidence in files."),
        click.option(
            "--evidence",
            "files",
            multiple=True,
            type=click.Path(),
            metavar="FILE",
            help="Attest bodies, or results of `verify evidence --output json`, instead of recorded attestations.",
        ),
    ):
        command = option(command)
    return command


@policy.command()
@click.argument("file", type=click.Path())
@_seen_options
@store_options
def test(file: str, store: str, root_key: Path | None, output: str, **seen: Any) -> int:
    """Judge every recorded attestation by a policy that is not in force yet. Exit code 1 where any would be denied.

    \b
    Example:
      kata-gpu-kbs policy test new.toml --store kbs --evidence body.json --collateral store/
    """
    from attestation.ops.what_if import judge

    now = moment(seen["at"])
    with opened(store, root_key) as world:
        rows = judge(world, _seen(world, seen, now), read_text(file), now=now)
    lines = [f"{'allow' if not row.reasons else 'DENY '} {row.label}  {', '.join(row.reasons)}" for row in rows]
    show({"results": [row.to_json() for row in rows]}, output, lines or ["no attestation is recorded"])
    return ExitCode.NEGATIVE if any(row.reasons for row in rows) else ExitCode.OK


@policy.command()
@click.argument("path")
@click.argument("jti", required=False)
@_seen_options
@store_options
def explain(path: str, jti: str | None, store: str, root_key: Path | None, output: str, **seen: Any) -> int:
    """Every finding for one key and one recorded attestation (the audit log has its token id) or --evidence FILE.

    \b
    Example:
      kata-gpu-kbs policy explain default/model/llama 3q2-7w... --store kbs
    """
    from attestation.ops.release import explain as explain_release

    if (jti is None) != (len(seen["files"]) == 1):
        raise Misconfigured("explain-what", "name one attestation", expected="a token id, or one --evidence FILE")
    now = moment(seen["at"])
    with opened(store, root_key) as world:
        attested = world.attestations.get(jti) if jti is not None else _seen(world, seen, now)[0]
        if attested is None:
            raise Misconfigured("attestation-unknown", "no such attestation is recorded", where=str(jti)[:80])
        verdict = explain_release(world, attested, ResourcePath.parse(path), now=now)
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
@click.argument("target")
@click.argument("file", type=click.Path())
@_seen_options
@store_options
def diff(target: str, file: str, store: str, root_key: Path | None, output: str, **seen: Any) -> int:
    """Which recorded workloads would gain or lose which keys. Exit code 1 where any would lose one.

    TARGET is what the policy in FILE would be set for: the path of a key, a repository, or `default`.

    \b
    Example:
      kata-gpu-kbs policy diff default/model/llama new.toml --store kbs
    """
    from attestation.ops.what_if import compare

    now = moment(seen["at"])
    with opened(store, root_key) as world:
        changes = compare(world, _seen(world, seen, now), target, read_text(file), now=now)
    lines = []
    for change in changes:
        lines += [f"{change.path}: gains {label}" for label in change.gain]
        lines += [f"{change.path}: LOSES {label}" for label in change.lose]
        lines.append(f"{change.path}: unchanged {change.same}")
    show({"keys": [change.to_json() for change in changes]}, output, lines or ["no key would be governed by it"])
    return ExitCode.NEGATIVE if any(change.lose for change in changes) else ExitCode.OK


def _seen(world: Any, options: Mapping[str, Any], now: datetime) -> Any:
    from attestation.ops.what_if import recorded

    if not options["files"]:
        return recorded(world)
    from attestation.cli.platform import platform_verifier
    from attestation.ops.recorded import read_recorded

    verifier = platform_verifier(
        collateral=options["collateral"], simulated_roots=options["simulated_roots"], sample=options["sample"]
    )
    return [read_recorded(world, file, read_bytes(file), verifier, now=now) for file in options["files"]]
