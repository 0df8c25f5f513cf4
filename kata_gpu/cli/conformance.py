"""`kata-gpu conformance`: the AI conformance report of a cluster, as far as accelerators go."""

import json
from pathlib import Path

import click

from kata_gpu.errors import ExitCode

_AUTHOR = {
    "platform-name": "platformName", "platform-version": "platformVersion", "vendor-name": "vendorName",
    "website-url": "websiteUrl", "documentation-url": "documentationUrl", "contact": "contactEmailAddress",
}  # fmt: skip


def _metadata_options(command: click.decorators.FC) -> click.decorators.FC:
    for name, field in reversed(_AUTHOR.items()):
        command = click.option(f"--{name}", field, default="", help=f"{field} of the report")(command)
    return command


@click.command()
@click.option("--kubeconfig", type=click.Path(path_type=Path, exists=True, dir_okay=False), metavar="FILE",
              help="Without it the pod's service account.")  # fmt: skip
@click.option("--server", default="", hidden=True, help="Plain URL of an API server, for tests.")
@_metadata_options
@click.option(
    "--output",
    type=click.Choice(["text", "yaml", "json"]),
    default="text",
    show_default=True,
    help="Form of the result.",
)
def conformance(kubeconfig: Path | None, server: str, output: str, **metadata: str) -> int:
    """Judge a cluster by the accelerator requirements of the Kubernetes AI Conformance programme.

    Reads objects and changes nothing. `--output yaml` has the shape of the programme's PRODUCT.yaml; fields that
    objects cannot answer stay empty with a note. Exit code 1 where a MUST is not implemented.

    \b
    Example:
      kata-gpu conformance --kubeconfig ~/.kube/config
      kata-gpu conformance --kubeconfig ~/.kube/config --platform-name Example --output yaml > PRODUCT.yaml
    """
    from kata_gpu.core.conformance import Level, Status, appraise, report
    from kata_gpu.core.manifests.template import render_yaml
    from kata_gpu.host.kube import KubeApi
    from kata_gpu.ops.conformance import observe

    seen = observe(KubeApi.connect(kubeconfig=kubeconfig, server=server))
    rows = appraise(seen)
    if output == "text":
        click.echo(f"Kubernetes {seen.version}")
        for row in rows:
            click.echo(f"  {row.level:6} {row.id:26} {row.status or 'to be shown by you'}")
            for line in (*row.evidence, *filter(None, [row.notes])):
                click.echo(f"         {line}")
    else:
        document = report(seen, rows, metadata)
        click.echo(render_yaml(document) if output == "yaml" else json.dumps(document, indent=1), nl=output == "json")
    missing = any(r.level is Level.MUST and r.status is Status.MISSING for r in rows)
    return ExitCode.NEGATIVE if missing else ExitCode.OK
