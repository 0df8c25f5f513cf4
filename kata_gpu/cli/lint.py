"""`kata-gpu lint FILE...`: what would go wrong with these pods and claims, before the cluster finds out."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kata_gpu.core.lint.lint import lint as lint_objects
from kata_gpu.core.yaml12 import MAX_BYTES, load_all
from kata_gpu.errors import ExitCode, Malformed, Misconfigured

if TYPE_CHECKING:
    from kata_gpu.core.lint.rule import Violation


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(allow_dash=True))
@click.option("--live", is_flag=True, help="Also look up classes, claims and nodes in the cluster.")
@click.option("--kubeconfig", type=click.Path(path_type=Path, exists=True, dir_okay=False), metavar="FILE",
              help="With --live; without it the pod's service account.")  # fmt: skip
@click.option("--server", default="", hidden=True, help="Plain URL of an API server, for tests.")
@click.option("--namespace", default="default", show_default=True, help="Of objects that name none.")
@click.option(
    "--output", type=click.Choice(["text", "json"]), default="text", show_default=True, help="Form of the result."
)
def lint(
    files: tuple[str, ...], live: bool, kubeconfig: Path | None, server: str, namespace: str, output: str
) -> int:  # fmt: skip
    """Check pods, workloads, claims and claim templates in YAML FILES (- is stdin).

    The same rules run in the API server as ValidatingAdmissionPolicies (`kata-gpu lint` names each by its id).

    \b
    Example:
      kata-gpu lint pod.yaml claim.yaml
      kubectl get pod inference -o yaml | kata-gpu lint -
      kata-gpu lint --live --kubeconfig ~/.kube/config pod.yaml
    """
    objects: list[Any] = []
    for name in files:
        for document in load_all(_read(name), where=name):
            items = document.get("items") if isinstance(document, dict) else None
            if document is not None:  # between two `---` of a rendered chart
                objects += _objects(items if isinstance(items, list) else [document], name)
    if not objects:
        raise Malformed("lint-empty", "nothing to check", where=", ".join(files), expected="Kubernetes objects in YAML")
    violations = _live(objects, kubeconfig, server, namespace) if live else lint_objects(objects)
    if output == "json":
        click.echo(json.dumps({"ok": not violations, "violations": [v.to_json() for v in violations]}, indent=1))
    else:
        for v in violations:
            click.echo(f"{v.subject}: [{v.rule}] {v.message}\n    leads to: {v.symptom}")
        click.echo(f"{len(violations)} problems" if violations else f"ok, {len(objects)} objects")
    return ExitCode.NEGATIVE if violations else ExitCode.OK


def _objects(documents: list[Any], where: str) -> list[Any]:
    for document in documents:
        if not isinstance(document, dict) or "kind" not in document:
            got = sorted(map(str, document))[:5] if isinstance(document, dict) else document
            raise Malformed("lint-object", "not a Kubernetes object", where=where, expected="apiVersion and kind",
                            got=repr(got)[:80])  # fmt: skip
    return documents


def _live(objects: list[Any], kubeconfig: Path | None, server: str, namespace: str) -> "tuple[Violation, ...]":
    from kata_gpu.host.kube import KubeApi
    from kata_gpu.ops.lint_live import lint_live

    return lint_live(objects, KubeApi.connect(kubeconfig=kubeconfig, server=server), namespace=namespace)


def _read(name: str) -> bytes:
    if name == "-":
        return sys.stdin.buffer.read(MAX_BYTES + 1)
    try:
        with Path(name).open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except OSError as exc:
        raise Misconfigured("lint-read", "cannot read", where=name, got=exc.strerror or exc) from exc
