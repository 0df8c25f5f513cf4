"""`kata-gpu-kbs key`: keys, their versions and their release policies."""

import os
import sys
from pathlib import Path
from typing import Any

import click

from attestation.cli.office import office, office_options
from attestation.cli.store import NO_POLICY, moment, opened, operator, read_bytes, read_text, short, show, store_options
from attestation.errors import Misconfigured
from attestation.values import ResourcePath, Secret


@click.group()
def key() -> None:
    """Keys that attested guests may get, each under its own policy.

    \b
    Example:
      kata-gpu-kbs key add default/model/llama --store /var/lib/kbs --policy llama.toml
    """


@key.command()
@click.argument("path")
@click.argument("file", required=False, type=click.Path())
@click.option("--policy", type=click.Path(), help="Release policy (TOML).")
@click.option("--label", "labels", multiple=True, help="A label; `test` lets forgeable evidence have the key.")
@click.option("--bundle", is_flag=True, help="FILE is a JSON array of key paths: one GET returns all of them.")
@store_options
def add(
    path: str,
    file: str | None,
    policy: str | None,
    labels: tuple[str, ...],
    bundle: bool,
    store: str,
    root_key: Path | None,
    output: str,
) -> None:
    """Store FILE (`-` for standard input) under PATH, or make a 32-byte model key where no FILE is given.

    An existing key gets a new version, which is what guests receive from then on; it keeps its labels.

    \b
    Example:
      head -c 32 /dev/urandom | kata-gpu-kbs key add default/model/kek - --store kbs --policy gpu.toml --label test
    """
    from attestation.broker.keys import KeyKind
    from attestation.ops.administer import put_key

    if bundle and file is None:
        raise Misconfigured("bundle-file", "a bundle needs a file", where="--bundle", expected="FILE")
    kind = KeyKind.BUNDLE if bundle else KeyKind.MODEL_KEY if file is None else KeyKind.RESOURCE
    at = ResourcePath.parse(path)
    with opened(store, root_key, new=True) as world:
        had = world.keys.get(at) is not None
        version = put_key(
            world,
            operator(),
            at,
            None if file is None else Secret(read_bytes(file)),
            kind=kind,
            labels=labels,
            policy=None if policy is None else read_text(policy),
            now=moment(None),
        )
    stored = f"stored {path} version {version} ({kind}){'' if policy or had else f', {NO_POLICY}'}"
    show({"path": path, "version": version, "kind": kind}, output, [stored])


@key.command("list")
@click.option("--repository", help="Only this repository.")
@store_options
def list_(repository: str | None, store: str, root_key: Path | None, output: str) -> None:
    """List keys; never their secrets.

    \b
    Example:
      kata-gpu-kbs key list --store kbs
    """
    with opened(store, root_key) as world:
        records = [record.to_json() for record in world.keys.list(repository)]
    lines = [
        f"{r['path']}  v{r['version']}  {r['kind']}  {r['releases']} releases"
        f"{'' if r['has_policy'] else '  NO POLICY OF ITS OWN'}{'  ' + ','.join(r['labels']) if r['labels'] else ''}"
        for r in records
    ]
    show({"keys": records}, output, lines or ["no keys"])


@key.command("show")
@click.argument("path")
@store_options
def show_(path: str, store: str, root_key: Path | None, output: str) -> None:
    """One key: versions, policy in force, and who got it.

    \b
    Example:
      kata-gpu-kbs key show default/model/llama --store kbs
    """
    from attestation.ops.release import policy_text

    with opened(store, root_key) as world:
        at = ResourcePath.parse(path)
        record = _existing(world, at)
        policy = policy_text(world, at, record)
        body = record.to_json() | {"versions": list(world.keys.versions(at)), "policy": policy}
        body["released_to"] = [e.to_json()["body"] for e in world.audit.about(path, "released")[-20:]]
    lines = [f"{name}: {body[name]}" for name in ("path", "kind")]
    lines += [f"{name}: {', '.join(map(str, body[name])) or '-'}" for name in ("labels", "versions")]
    lines += [f"{name}: {body[name]}" for name in ("releases", "created")]
    lines += ["policy:", *(f"  {line}" for line in policy.strip().splitlines() or ["(none: released to nobody)"])]
    lines += [f"released to: chip {short(r['chip_id'])} devices {', '.join(r['devices'])}" for r in body["released_to"]]
    show(body, output, lines)


@key.command()
@click.argument("path")
@store_options
def rotate(path: str, store: str, root_key: Path | None, output: str) -> None:
    """Make a new version of a model key.

    \b
    Example:
      kata-gpu-kbs key rotate default/model/llama --store kbs
    """
    from attestation.ops.administer import rotate_key

    with opened(store, root_key) as world:
        version = rotate_key(world, operator(), ResourcePath.parse(path), now=moment(None))
    show({"path": path, "version": version}, output, [f"{path} is now version {version}"])


@key.command()
@click.argument("path")
@click.option("--yes", is_flag=True, help="Do not ask.")
@store_options
def delete(path: str, yes: bool, store: str, root_key: Path | None, output: str) -> None:
    """Shred every version of a key. It cannot be taken back.

    \b
    Example:
      kata-gpu-kbs key delete default/model/llama --store kbs
    """
    from attestation.ops.administer import delete_key

    if not yes:
        click.confirm(f"Shred {path} for ever?", abort=True, err=True)
    with opened(store, root_key) as world:
        delete_key(world, operator(), ResourcePath.parse(path), now=moment(None))
    show({"path": path, "deleted": True}, output, [f"shredded {path}"])


@key.command("set-policy")
@click.argument("path")
@click.argument("policy", type=click.Path())
@store_options
def set_policy(path: str, policy: str, store: str, root_key: Path | None, output: str) -> None:
    """Replace the release policy of a key.

    \b
    Example:
      kata-gpu-kbs key set-policy default/model/llama llama.toml --store kbs
    """
    from attestation.ops.administer import set_key_policy

    with opened(store, root_key) as world:
        set_key_policy(world, operator(), ResourcePath.parse(path), read_text(policy), now=moment(None))
    show({"path": path, "policy": policy}, output, [f"{path} is released under {policy}"])


@key.command()
@click.argument("path")
@office_options
def history(path: str, output: str, **where: Any) -> None:
    """Who gave the key which release policy when, from the audit log; digests are those that releases name.

    \b
    Example:
      kata-gpu-kbs key history default/model/llama --store kbs
    """
    with office(where) as place:
        rows = place.policy_history(path)
    lines = [f"{row['at']}  {row['by']}  {row['policy']}  audit entry {row['seq']}" for row in rows]
    show({"path": path, "changes": rows}, output, lines or [f"no release policy of {path} is in the audit log"])


@key.command()
@click.argument("path")
@click.argument("file", type=click.Path())
@store_options
def wrap(path: str, file: str, store: str, root_key: Path | None, output: str) -> None:
    """Encrypt FILE, a data key (`-` for standard input), under the model key PATH, which stays in the broker.

    The result is an annotation that stock guests open after they were given the key.

    \b
    Example:
      kata-gpu-kbs key wrap default/model/llama shard.key --store kbs > shard.wrapped
    """
    from attestation.ops.model_keys import wrap_key

    with opened(store, root_key) as world:
        version, packet = wrap_key(world, operator(), ResourcePath.parse(path), read_bytes(file), now=moment(None))
    show({"path": path, "version": version, "annotation": packet}, output, [packet])


@key.command()
@click.argument("path")
@click.argument("file", type=click.Path())
@click.option(
    "--out", type=click.Path(), required=True, help="New file for the data key, mode 0600; `-` for standard output."
)
@store_options
def unwrap(path: str, file: str, out: str, store: str, root_key: Path | None, output: str) -> None:
    """Decrypt FILE, which `key wrap` made under any version of PATH.

    \b
    Example:
      kata-gpu-kbs key unwrap default/model/llama shard.wrapped --out shard.key --store kbs
    """
    from attestation.ops.model_keys import unwrap_key

    packet = read_text(file).strip()
    with opened(store, root_key) as world:
        version, data = unwrap_key(world, operator(), ResourcePath.parse(path), packet, now=moment(None))
    _give(data, out)
    if out != "-":
        show({"path": path, "version": version, "file": out}, output, [f"wrote {out}, wrapped by version {version}"])


@key.command()
@click.argument("path")
@click.argument("label")
@click.option(
    "--out", type=click.Path(), required=True, help="New file for the shard key, mode 0600; `-` for standard output."
)
@store_options
def derive(path: str, label: str, out: str, store: str, root_key: Path | None, output: str) -> None:
    """The key of one shard, as guests get it from `kbs:///PATH?derive=LABEL`.

    \b
    Example:
      kata-gpu-kbs key derive default/model/llama shard-00001 --out shard.key --store kbs
    """
    from attestation.ops.model_keys import derive_key

    with opened(store, root_key) as world:
        version, secret = derive_key(world, operator(), ResourcePath.parse(path), label, now=moment(None))
    _give(secret, out)
    if out != "-":
        show({"path": path, "version": version, "file": out}, output, [f"wrote {out}, from version {version}"])


def _give(secret: Secret, out: str) -> None:
    if out == "-":
        sys.stdout.buffer.write(secret.expose())
        sys.stdout.flush()
        return
    try:
        with os.fdopen(os.open(out, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
            file.write(secret.expose())
    except OSError as exc:
        raise Misconfigured("file", f"cannot write: {exc.strerror}", where=out) from exc


@key.command()
@store_options
def rewrap(store: str, root_key: Path | None, output: str) -> None:
    """Wrap every data key with the current root key.

    \b
    Example:
      kata-gpu-kbs key rewrap --store kbs
    """
    with opened(store, root_key) as world:
        count = world.keys.rewrap()
    show({"rewrapped": count}, output, [f"{count} versions rewrapped"])


def _existing(world: Any, path: ResourcePath) -> Any:
    record = world.keys.get(path)
    if record is None:
        raise Misconfigured("key-unknown", "no such key (`key list` has their names)", where=str(path))
    return record
