"""`kata-gpu initdata build|verify|digest|inspect`: the measured document that tells the guest whom to trust."""

import json
import sys
from pathlib import Path

import click

from kata_gpu.core.kata.agent_policy import with_devices
from kata_gpu.core.kata.initdata import (
    ANNOTATION,
    MAX_TOML_BYTES,
    Algorithm,
    Contents,
    InitData,
    appraise_initdata,
    build_initdata,
    parse_any,
)
from kata_gpu.errors import ExitCode, Misconfigured, Unavailable

_TEE_ALGORITHM = {"snp": Algorithm.SHA256, "tdx": Algorithm.SHA384}  # fill the field exactly: no cut, no padding
_output = click.option(
    "--output", type=click.Choice(["text", "json"]), default="text", show_default=True, help="Form of the result."
)


@click.group()
def initdata() -> None:
    """Build and check init-data: broker URL, its certificate and the agent policy, measured by the TEE.

    \b
    Example:
      kata-gpu initdata build --tee snp --kbs-url https://kbs --kbs-cert kbs.pem --agent-policy agent.rego -o init.toml
      kata-gpu initdata digest init.toml
    """


def _read(path: str) -> bytes:
    """File or `-`; one byte more than allowed, so that the parser sees that it is too large."""
    limit = 2 * MAX_TOML_BYTES + 1
    if path == "-":
        return sys.stdin.buffer.read(limit)
    try:
        with Path(path).open("rb") as file:
            return file.read(limit)
    except OSError as exc:
        raise Misconfigured("initdata-read", "cannot read", where=path, got=exc.strerror or exc) from exc


def _facts(document: InitData) -> dict[str, str]:
    return {
        "algorithm": str(document.algorithm),
        "digest": document.digest.hex(),
        "snp_host_data": document.host_data.hex(),
        "tdx_mr_config_id": document.mr_config_id.hex(),
    }


@initdata.command()
@click.option("--tee", type=click.Choice(["snp", "tdx"]), help="Choose the digest that fills this TEE's field exactly.")
@click.option(
    "--algorithm", type=click.Choice([a.value for a in Algorithm]), help="Digest algorithm, instead of --tee."
)
@click.option("--kbs-url", required=True, help="URL of the key broker as the guest reaches it.")
@click.option("--kbs-cert", type=click.Path(dir_okay=False), help="PEM certificate that the guest pins.")
@click.option("--agent-policy", "policy", required=True, type=click.Path(dir_okay=False), metavar="FILE",
              help="What Kata's agent allows the host (policy.rego).")  # fmt: skip
@click.option(
    "--vfio-devices",
    multiple=True,
    metavar="CONTAINER=COUNT",
    help="GPUs that claims give to container CONTAINER (0 is the pause container) in genpolicy's policy.",
)
@click.option("--add", "extra", multiple=True, metavar="NAME=FILE", help="Further entry of [data]; may be repeated.")
@click.option("--annotation", is_flag=True, help="Print the pod annotation instead of the document.")
@click.option(
    "-o", "--out", "out", type=click.Path(dir_okay=False, path_type=Path), help="Write here instead of stdout."
)
def build(
    tee: str | None, algorithm: str | None, kbs_url: str, kbs_cert: str | None, policy: str,
    vfio_devices: tuple[str, ...], extra: tuple[str, ...],
    annotation: bool, out: Path | None,
) -> int:  # fmt: skip
    """Write a document; the digests that policies and reports will carry go to stderr.

    \b
    Example:
      kata-gpu initdata build --tee snp --kbs-url https://kbs --kbs-cert kbs.pem --agent-policy agent.rego -o init.toml
    """
    if (tee is None) == (algorithm is None):
        raise Misconfigured("initdata-tee", "name the TEE or the algorithm", expected="either --tee or --algorithm")
    entries = {}
    for item in extra:
        name, sep, path = item.partition("=")
        if not sep or not name or name in ("aa.toml", "cdh.toml", "policy.rego"):
            raise Misconfigured("initdata-entry", "bad --add", where="--add", expected="NAME=FILE", got=repr(item))
        entries[name] = _text(path)
    rego = _text(policy)
    if vfio_devices:
        rego = with_devices(rego, dict(map(_count, vfio_devices)))
    document = build_initdata(
        Contents(kbs_url=kbs_url, kbs_cert_pem=_text(kbs_cert) if kbs_cert else "", policy_rego=rego, extra=entries),
        _TEE_ALGORITHM[tee] if tee else Algorithm(str(algorithm)),
    )
    body = f"{ANNOTATION}: {document.annotation}\n".encode() if annotation else document.raw
    if out is None:
        sys.stdout.buffer.write(body)
    else:
        try:
            out.write_bytes(body)
        except OSError as exc:
            raise Unavailable("write-failed", "cannot write the file", where=str(out), got=exc.strerror) from exc
    for name, value in _facts(document).items():
        click.echo(f"{name}: {value}", err=True)
    for problem in appraise_initdata(document):
        click.echo(f"warning[{problem.code}]: {problem.what}: {problem.symptom}", err=True)
    return ExitCode.OK


def _count(item: str) -> tuple[int, int]:
    container, _, count = item.partition("=")
    if not (container.isdecimal() and count.isdecimal()):
        raise Misconfigured("initdata-devices", "bad count", where="--vfio-devices", expected="1=1", got=repr(item))
    return int(container), int(count)


def _text(path: str) -> str:
    try:
        return _read(path).decode("utf-8")
    except UnicodeDecodeError as exc:
        raise Misconfigured("initdata-text", "not UTF-8 text", where=path) from exc


@initdata.command()
@click.argument("file", type=click.Path())
@_output
def digest(file: str, output: str) -> int:
    """Print the digest and the TEE fields that it predicts. FILE is the document or the annotation's value; - is stdin.

    \b
    Example:
      kata-gpu initdata digest init.toml --output json
    """
    facts = _facts(parse_any(_read(file), where=file))
    click.echo(json.dumps(facts) if output == "json" else "\n".join(f"{k}: {v}" for k, v in facts.items()))
    return ExitCode.OK


@initdata.command()
@click.argument("file", type=click.Path())
@click.option("--host-data", help="Hex HOST_DATA of an SNP report that must match.")
@click.option("--mr-config-id", help="Hex MRCONFIGID of a TDX quote that must match.")
@_output
def verify(file: str, host_data: str | None, mr_config_id: str | None, output: str) -> int:
    """Check a document: broker named once, certificate pinned, policy present and not permissive, TEE field equal.

    Permissive is a rule that lets the host in, and an entry of genpolicy's policy_data.request_defaults that does:
    one that is true, a command or expression of ExecProcessRequest, a CopyFileRequest outside the container's folder.

    \b
    Example:
      kata-gpu initdata verify init.toml --host-data 5b1e...
    """
    document = parse_any(_read(file), where=file)
    problems = [p.to_json() for p in appraise_initdata(document)]
    fields = (("HOST_DATA", host_data, document.host_data), ("MRCONFIGID", mr_config_id, document.mr_config_id))
    for name, given, field in fields:
        if given is not None and given.lower().removeprefix("0x") != field.hex():
            problems.append(
                {
                    "code": "field-mismatch",
                    "what": f"{name}: expected {field.hex()}, got {given}",
                    "symptom": "this is not the document that the VM was started with",
                }
            )
    if output == "json":
        click.echo(json.dumps({"ok": not problems, "problems": problems, **_facts(document)}))
    else:
        for p in problems:
            click.echo(f"WRONG [{p['code']}] {p['what']}\n      {p['symptom']}")
        click.echo(f"{len(problems)} problems" if problems else f"ok, {document.algorithm}:{document.digest.hex()}")
    return ExitCode.NEGATIVE if problems else ExitCode.OK


@initdata.command()
@click.argument("file", type=click.Path())
def inspect(file: str) -> int:
    """Print every entry of a document as text, whichever form it comes in.

    \b
    Example:
      kubectl get pod p -o jsonpath='{.metadata.annotations.io\\.katacontainers\\.config\\.hypervisor\\.cc_init_data}' |
        kata-gpu initdata inspect -
    """
    document = parse_any(_read(file), where=file)
    for name, value in _facts(document).items():
        click.echo(f"# {name}: {value}")
    for name, text in document.data.items():
        click.echo(f"# --- {name} ({len(text)} characters)\n{text.rstrip()}")
    return ExitCode.OK
